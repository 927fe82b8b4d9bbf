"""The logger that a configuration names, and results on the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from wagle import launch
from wagle.config import UnlearnConfig
from wagle.loggers import JsonLogger, Logger
from wagle.loggers.shared_logger import SharedLogger
from wagle.terminal import plain, say, show_table

_READABLE = 80
"""Characters of a run's name in front of the digest."""


def make_logger(config: UnlearnConfig) -> Logger:
    """The logger that ``overall.logger`` names; of several processes the first one's keeps all."""
    logger = _make_logger(config)
    return logger if launch.processes() == 1 else SharedLogger(logger)


def _make_logger(config: UnlearnConfig) -> Logger:
    if config.overall.logger == "none":
        return Logger()
    folder = Path(config.logger.json.root) / (config.logger.name or default_name(config))
    if config.overall.logger == "json":
        return JsonLogger(folder)
    from wagle.loggers.wandb_logger import WandbLogger  # wandb takes its time to import

    project, mode = config.logger.wandb.project, config.logger.wandb.mode
    return WandbLogger(folder, project=project, mode=mode)


def default_name(config: UnlearnConfig) -> str:
    """A run folder's name: the same for the same configuration, another for any other.

    Example: ``GradDiff+WAGLE_mu=0.0001_seed=1_5b0e2a61``, of the file GradDiff+WAGLE.json with two
    keys changed on the command line. The digest at the end tells names apart, whatever is left
    out in front for the sake of length.
    """
    files = config.files
    parts = [Path(files[-1]).stem if files else config.unlearn.unlearn_method]
    if files:
        parts += [f"{key.rpartition('.')[2]}={_short(v)}" for key, v in config.changes.items()]
    name = re.sub(r"[^\w+=.,-]+", "-", "_".join(parts), flags=re.ASCII)
    return f"{name[:_READABLE].strip('-_.')}_{config.fingerprint()[:8]}"


def _short(value: Any) -> str:
    """A value in a name: of a path its last part."""
    return Path(value).name if isinstance(value, str) else str(value)


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
