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
        size: bytes that may be taken; ``None``: what is free on the device.
    """

    size: int | None


def split_plan(argv: Sequence[str]) -> tuple[Wanted | None, list[str]]:
    """What ``--plan`` or ``--plan SIZE`` in a command line asks for, and the rest of the line.

    For example ``["--plan", "24GB", "-C", "run.json"]`` asks for 24·10⁹ bytes.

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
        wanted = Wanted(_read_size(text) if taken or equals else None)
        break
    return wanted, rest


def _read_size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([GM]i?B)", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"--plan takes a size like 24GB or 80GiB, not {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])
