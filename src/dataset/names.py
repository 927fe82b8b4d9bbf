"""What a data set's name says: one of the program's own, a file, or a data set of the hub.

Nothing heavy is imported, so that a name that can be none of these shows at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")
"""What files of one's own may be, by their suffix; all but Parquet also with ``.gz`` behind it."""

_SUFFIX = re.compile(r"\.((?:jsonl|json|csv|tsv)(?:\.gz)?|parquet)$", re.IGNORECASE)
_HUB = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?::([^:]*))?(?::(.+))?")
DEFAULT_SPLIT = "train"

OWN_FORMS = "a file (.jsonl, .json, .csv, .tsv, .parquet), or of the hub org/name[:config[:split]]"


class HubName(NamedTuple):
    """A data set of the hub: ``org/name``, its configuration (``None``: the only one), its split.

    Written ``org/name``, ``org/name:config``, ``org/name:config:split`` or ``org/name::split``.
    """

    repository: str
    config: str | None
    split: str


def is_own(name: str) -> bool:
    """Whether a name is a file's or a hub data set's, rather than one that the program knows.

    >>> [is_own(name) for name in ("rows.csv", "org/name:main:test", "Tofu_forget10")]
    [True, True, False]
    """
    return own_file(name) is not None or hub_name(name) is not None


def family_of(name: str) -> str:
    """The family of a known data set, ``Tofu`` of ``Tofu_forget10``; "" of one's own."""
    return "" if is_own(name) else name.partition("_")[0]


def own_file(name: str) -> Path | None:
    """The file that a name means, from the working directory, ``~`` expanded; it may be missing.

    A name with one of the suffixes is a file's; one with a slash is, where there is such a file or
    folder or where no hub data set could be called so. ``None``: it is no file's name.
    """
    path = Path(name).expanduser()
    if _SUFFIX.search(name):
        return path
    if "/" not in name or name.partition(":")[0].endswith(".py"):
        return None
    return path if path.exists() or not _HUB.fullmatch(name) else None


def file_format(path: Path) -> str | None:
    """One of ``FORMATS``, from the suffix; ``None`` where it says none of them."""
    match = _SUFFIX.search(path.name)
    return match[1].lower().removesuffix(".gz") if match else None


def hub_name(name: str) -> HubName | None:
    """The parts of a hub data set's name; ``None`` where it is none.

    >>> hub_name("org/name::train[:10%]")
    HubName(repository='org/name', config=None, split='train[:10%]')
    """
    match = _HUB.fullmatch(name)
    if match is None or own_file(name) is not None or name.partition(":")[0].endswith(".py"):
        return None
    return HubName(match[1], match[2] or None, match[3] or DEFAULT_SPLIT)
