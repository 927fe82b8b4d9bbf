"""Loggers: none and json; wandb is in ``wagle.loggers.wandb_logger``, as it imports slowly."""

from wagle.loggers.base import Logger
from wagle.loggers.json_logger import JsonLogger

__all__ = ["JsonLogger", "Logger"]
