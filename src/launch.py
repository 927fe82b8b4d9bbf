"""How this process was started: alone, or by torchrun as one of several that work as one."""

from __future__ import annotations

import os


def processes() -> int:
    """How many processes the command was started as."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """This one's, from 0; the first one writes and speaks."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def number_here() -> int:
    """This one's among those on the same machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if processes() > 1 else 0


def processes_here() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes())) if processes() > 1 else 1
