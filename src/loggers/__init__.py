"""Loggers: none, json, wandb."""

from src.loggers.base import Logger
from src.loggers.json_logger import JsonLogger

__all__ = ["JsonLogger", "Logger"]
