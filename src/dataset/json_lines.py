"""Rows of a JSON-lines file, read as they are written: no cache, no guessed types."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from wagle.errors import WagleError

Columns = Mapping[str, str]
"""What each column holds: ``TEXT``, ``TEXTS`` or ``FLAG``; ``a.b`` is field b of column a."""

TEXT, TEXTS, FLAG = "text", "a list of texts", "true or false"
_FEATURES = {
    TEXT: datasets.Value("string"),
    TEXTS: datasets.List(datasets.Value("string")),
    FLAG: datasets.Value("bool"),
}


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
    if not path.is_file():
        raise WagleError(f"there is no data file {path}; it should hold {expected(columns)}")
    values: dict[str, list[Any]] = {name: [] for name in columns}
    count = 0
    for place, row in _objects(path, columns):
        count += 1
        for name, kind in columns.items():
            values[name].append(_checked(row, name, kind, f"{path}, {place}", columns))
    if not count:
        raise WagleError(f"{path} holds no rows; it should hold {expected(columns)}")
    features = datasets.Features({name: _FEATURES[kind] for name, kind in columns.items()})
    return datasets.Dataset.from_dict(values, features=features)


def expected(columns: Columns) -> str:
    """What a data file should hold, for messages."""
    fields = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
    return f"one JSON object per line, with {fields}"


def _objects(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows, each with its place in the file."""
    place = "line 1"
    try:
        with path.open("rb") as file:
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
        raise WagleError(
            f"{path}, {place}, is no UTF-8 text (byte {error.object[error.start]:#04x}); "
            "save the file as UTF-8"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise WagleError(
            f"{path} cannot be read as JSON lines ({place}: {error}); it should hold "
            f"{expected(columns)}"
        ) from error


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name is given twice")
    return row


def _row(item: Any) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"{_kind(item)} instead of an object")
    return item


def _checked(row: Mapping[str, Any], name: str, kind: str, where: str, columns: Columns) -> Any:
    """The value of a column, after a check of its kind."""
    value = _value(row, name)
    if value is None:
        there = ", ".join(map(str, row))
        raise WagleError(
            f"{where}: {name} is missing (there is: {there}); it should hold {expected(columns)}"
        )
    found = _kind(value)
    if found != kind:
        raise WagleError(f"{where}: {name} holds {found}; it should hold {expected(columns)}")
    for text in value if kind == TEXTS else [value]:
        if isinstance(text, str) and not _is_unicode(text):
            raise WagleError(f"{where}: {name} holds half a character (a lone surrogate)")
    return value


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    top, _, field = name.partition(".")
    inner = row.get(top)
    return inner.get(field) if isinstance(inner, dict) else None


def _kind(value: Any) -> str:
    if isinstance(value, list):
        if not value:
            return "an empty list"
        return TEXTS if all(isinstance(item, str) for item in value) else "a list of other things"
    kinds = {str: TEXT, bool: FLAG, int: "a number", float: "a number", dict: "an object"}
    return kinds.get(type(value), "null")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
