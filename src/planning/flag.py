"""The flag ``--plan`` of commands that load a model; nothing heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from wagle.errors import ConfigError

_UNITS = {"GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}


class Wanted(NamedTuple):
    """What ``--plan`` asks for.

    Attributes:
        size: bytes that may be taken of each device; ``None``: what is free on this one.
        devices: how many there are; ``None``: as many as processes.
    """

    size: int | None
    devices: int | None = None


def split_plan(argv: Sequence[str]) -> tuple[Wanted | None, list[str]]:
    """What ``--plan`` or ``--plan SIZE`` in a command line asks for, and the rest of the line.

    For example ``["--plan", "24GB", "-C", "run.json"]`` asks for 24·10⁹ bytes, and ``8x80GB`` for
    eight devices of 80·10⁹ each.

    Raises:
        ConfigError: the size is none.
    """
    rest, wanted = list(argv), None
    for index, argument in enumerate(rest):
        option, equals, text = argument.partition("=")
        if option != "--plan":
            continue
        following = rest[index + 1 : index + 2]
        taken = not equals and following and not following[0].startswith("-")
        text = following[0] if taken else text
        del rest[index : index + (2 if taken else 1)]
        wanted = _read(text) if taken or equals else Wanted(None)
        break
    return wanted, rest


def _read(text: str) -> Wanted:
    form = r"(?:([1-9]\d*) ?[x×] ?)?(\d+(?:\.\d+)?) ?([GM]i?B)"
    match = re.fullmatch(form, text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"--plan takes a size like 24GB, 80GiB or 8x80GB, not {text!r}")
    size = int(float(match[2]) * _UNITS[match[3].upper()])
    return Wanted(size, int(match[1]) if match[1] else None)
