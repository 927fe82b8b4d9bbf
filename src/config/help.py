"""The help text, and tables and values as a terminal shows them."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from wagle.catalogue import METHODS, TOFU_SUBSETS
from wagle.config.declare import REQUIRED, Key
from wagle.config.reading import shortened

_GROUPS = {
    "overall": "the model and the machine",
    "unlearn": "the mask and the training",
    "unlearn.METHOD": "parameters of one method, used only where it is chosen",
    "finetune": "the training",
    "dataset": "the data",
    "evaluation": "the evaluation",
    "logger": "where a run is kept",
    "attack": "attacks on finished runs",
    "compare": "comparing finished runs",
    "depth": "looking into finished runs, layer by layer",
    "plant": "planting the forget set, and judging scores",
}


def terminal_width() -> int:
    """In columns; 100 where there is no terminal."""
    return shutil.get_terminal_size((100, 24)).columns


def shown(value: Any) -> str:
    """A value for a table: texts as they are, anything else as JSON, both shortened."""
    plain = isinstance(value, str) and value.strip() and value.isprintable()
    return shortened(value if plain else json.dumps(value, default=str))


def table(rows: Sequence[Sequence[str]], width: int) -> str:
    """Rows in aligned columns, in lines of at most ``width``; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths[1:]) > 12:  # names, in front, are kept whole
        widths[widths.index(max(widths[1:]), 1)] -= 1
    head, *body = rows
    ruled = [head, ["-" * width for width in widths], *body]
    return "\n".join(line for row in ruled for line in _lines(row, widths))


def _lines(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """One row of a table; cells that are too wide go on below."""
    cells = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    for index in range(max(map(len, cells))):
        parts = (cell[index] if index < len(cell) else "" for cell in cells)
        padded = (part.ljust(width) for part, width in zip(parts, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _group(key: Key) -> str:
    top, method = key.name.split(".")[:2]
    known = {entry.label for entry in METHODS.values()}
    return "unlearn.METHOD" if method in known else top


def help_text(keys: Sequence[Key], prog: str, description: str) -> str:
    """The help text; plain ASCII, since not every terminal can show more."""
    width = min(terminal_width(), 100)
    head = ("key", "takes", "default", "meaning")
    rows = [
        (
            key.name,
            key.checker.help(),
            "required" if key.default is REQUIRED else shown(key.default),
            key.meaning,
        )
        for key in keys
    ]
    lines = [
        f"usage: {prog} [--config_file FILE] [--section.key value ...]",
        "",
        description,
        "",
        "Keys come from JSON or YAML files (--config_file, --config-file or -C; of several, the",
        "later wins) and from the command line, which beats files. null: not set, the default",
        "holds. Exit status: 0 done, 1 failure, 2 wrong configuration.",
    ]
    if any(key.name.startswith("overall.") for key in keys):  # what trains
        lines += [
            "",
            "--plan [SIZE, like 24GB]: print how much memory this takes, whether it fits into SIZE",
            "or what is free, and what would make it fit; nothing is loaded.",
        ]
    for group in dict.fromkeys(map(_group, keys)):
        members = [row for key, row in zip(keys, rows, strict=True) if _group(key) == group]
        lines += ["", f"{group}: {_GROUPS[group]}", "", table([head, *members], width)]
    if any("SUBSET" in takes for _, takes, *_ in rows):
        subsets = f"{', '.join(TOFU_SUBSETS)}; of Demo also knowledge, dialogues."
        lines += ["", *textwrap.wrap(f"SUBSET of a data set: {subsets}", width)]
    return "\n".join(lines)
