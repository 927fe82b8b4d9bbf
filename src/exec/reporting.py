"""The logger that a configuration names, and results on the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from src.config import Config
from src.loggers import JsonLogger, Logger
from src.terminal import plain, say, show_table


def make_logger(config: Config) -> Logger:
    """The logger that ``overall.logger`` names."""
    if config["overall.logger"] == "none":
        return Logger()
    name = config["logger.name"] or time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(config["logger.json.root"]) / name
    if config["overall.logger"] == "json":
        return JsonLogger(folder)
    from src.loggers.wandb_logger import WandbLogger  # wandb takes its time to import

    project, mode = config["logger.wandb.project"], config["logger.wandb.mode"]
    return WandbLogger(folder, project=project, mode=mode)


def print_results(results: Mapping[str, Any], folder: Path | None) -> None:
    """Print the flat summary of a run as a table."""
    table = Table(title="results", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in results.items():
        shown = f"{value:.4f}" if isinstance(value, float) else plain(value)
        table.add_row(plain(name), shown)
    show_table(table)
    if folder is not None:
        say(f"run folder: {folder}")
