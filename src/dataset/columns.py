"""What the columns of data rows must hold, and the check that they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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

PlacedRow = tuple[str, Mapping[str, Any]]
"""A row of a file with its place there, such as ``line 3``."""


def expected(columns: Columns) -> str:
    """What rows should hold, for messages."""
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items())


def collect(rows: Iterable[PlacedRow], columns: Columns, where: str) -> datasets.Dataset:
    """``columns`` of the rows, in memory, after a check that each row has them all.

    Other columns are left out and may hold anything.

    Args:
        where: names the file in messages.

    Raises:
        WagleError: there are no rows, or one lacks a column or holds something else there; the
            message names its place.
    """
    values: dict[str, list[Any]] = {name: [] for name in columns}
    count = 0
    for place, row in rows:
        count += 1
        for name, kind in columns.items():
            values[name].append(_checked(row, name, kind, f"{where}, {place}", columns))
    if not count:
        raise WagleError(f"{where} holds no rows; it should hold {expected(columns)}")
    features = datasets.Features({name: _FEATURES[kind] for name, kind in columns.items()})
    return datasets.Dataset.from_dict(values, features=features)


def each_row(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The rows in order; of a data set a thousand at once, which takes a tenth of the time."""
    if not isinstance(rows, datasets.Dataset):
        yield from rows
        return
    for batch in rows.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def field_names(row: Mapping[str, Any]) -> list[str]:
    """The columns that a row has, also those within others: ``a``, ``a.b``."""
    objects = ((top, value) for top, value in row.items() if isinstance(value, dict))
    return [*row, *(f"{top}.{name}" for top, value in objects for name in value)]


def _checked(row: Mapping[str, Any], name: str, kind: str, where: str, columns: Columns) -> Any:
    """The value of a column, after a check of its kind."""
    value = _value(row, name)
    if value is None:
        there = ", ".join(map(str, row))
        raise WagleError(
            f"{where}: {name} is missing (there is: {there}); it should hold {expected(columns)}"
        )
    found = kind_of(value)
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


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
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
