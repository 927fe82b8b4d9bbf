"""Loggers: none and json; wandb is in ``src.loggers.wandb_logger``, as it imports slowly."""

from src.loggers.base import Logger
from src.loggers.json_logger import JsonLogger

__all__ = ["JsonLogger", "Logger"]
