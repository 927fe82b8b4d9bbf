"""Rows of a JSON-lines file, read as they are written: no cache, no guessed types."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import datasets

from wagle.dataset.columns import Columns, PlacedRow, collect, expected, kind_of
from wagle.errors import WagleError


def read_json_lines(path: Path, columns: Columns) -> datasets.Dataset:
    """Rows of a file with one JSON object per line, or with one JSON list of them.

    What the file holds now is read, whatever its name, time or size; other columns than those asked
    for are left out and may hold anything.

    Returns:
        ``columns``, in memory.

    Raises:
        WagleError: the file is missing or holds no rows; a line is no UTF-8 text or no JSON object,
            or lacks one of ``columns``. The message names file and line.
    """
    content = f"one JSON object per line, with {expected(columns)}"
    if not path.is_file():
        raise WagleError(f"there is no data file {path}; it should hold {content}")
    return collect(json_objects(path, content), columns, str(path))


def json_objects(path: Path, content: str) -> Iterator[PlacedRow]:
    """The rows of such a file, each with its place there.

    Args:
        content: what the file should hold, for messages.

    Raises:
        WagleError: a line is no UTF-8 text or no JSON object; the message names it.
    """
    place = "line 1"
    try:
        with open_plain(path) as file:
            for number, line in enumerate(file, start=1):
                place = f"line {number}"
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if number == 1 and text.startswith("["):
                    place = "as one JSON list"
                    whole = text + file.read().decode()
                    yield from (
                        (f"row {index}", _row(item))
                        for index, item in enumerate(_parse(whole), start=1)
                    )
                    return
                if text:
                    yield place, _row(_parse(text))
    except UnicodeDecodeError as error:
        raise not_utf8(path, place, error) from error
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise WagleError(
            f"{path} cannot be read as JSON lines ({place}: {error}); it should hold {content}"
        ) from error


def open_plain(path: Path) -> BufferedReader | gzip.GzipFile:
    """The file's bytes; of one whose name ends in ``.gz``, what was compressed."""
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def not_utf8(path: Path, place: str, error: UnicodeDecodeError) -> WagleError:
    """What to say of a text in another encoding."""
    return WagleError(
        f"{path}, {place}, is no UTF-8 text (byte {error.object[error.start]:#04x}); "
        "save the file as UTF-8"
    )


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name is given twice")
    return row


def _row(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"{kind_of(item)} instead of an object")
    return item
