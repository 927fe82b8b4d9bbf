"""How commands show tables of numbers and say which pictures they have written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wagle.terminal import plain, say, show_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = TypeVar("Cell")


def write_figure(name: Path, figure: Figure) -> None:
    """Write a picture, and say where."""
    from wagle.loggers import files

    for path in files.write_figure(name, figure):
        say(f"wrote {path}", sys.stderr)  # standard output may be JSON


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Mapping[str, Cell]],
    style: Callable[[Cell], str],
) -> None:
    """Print rows of numbers; a row may lack some of them, and what all lack is no column."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    columns = [column for column in columns if any(column in row for row in rows.values())]
    say(title)  # of a table it would be broken to the table's width
    table = Table(
        box=SIMPLE_HEAD,  # with what follows, a Llama's kinds fit 80 columns
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column(no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(
            plain(name), *(style(row[column]) if column in row else "" for column in columns)
        )
    show_table(table)
