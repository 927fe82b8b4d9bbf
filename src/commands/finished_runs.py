"""Command lines that begin with the folders of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from wagle.cli import program
from wagle.config import Config, load_config
from wagle.errors import ConfigError

Kind = TypeVar("Kind", bound=Config)


def read_command_line(
    argv: Sequence[str], command: str, kind: type[Kind], description: str
) -> tuple[list[Path], Kind]:
    """The run folders, which come first, and the configuration.

    Args:
        command: its name; its own keys are ``--command.key``.
        description: of the command, for ``--help``.

    Raises:
        ConfigError: there is no folder, or the configuration is wrong.
    """
    words = list(argv)
    folders = []
    while words and not words[0].startswith("-"):
        folders.append(Path(words.pop(0)))
    name = program(command)
    config = load_config(words, kind, prog=f"{name} RUN [RUN ...]", description=description)
    if not folders:
        raise ConfigError(
            f"give run folders first: {name} RUN [RUN ...] [--{command}.key value ...]"
        )
    return folders, config
