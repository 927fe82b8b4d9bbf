"""Rows of one's own: JSON lines, JSON, CSV, TSV or Parquet files, and any data set of the hub.

They are questions with answers or running text, whichever of the columns are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import datasets

from wagle.dataset.columns import TEXT, PlacedRow, collect, field_names
from wagle.dataset.json_lines import json_objects
from wagle.dataset.names import (
    DEFAULT_SPLIT,
    FORMATS,
    OWN_FORMS,
    HubName,
    file_format,
    hub_name,
    own_file,
)
from wagle.dataset.reading import ColumnNames, RowsRequest, check_columns, load_from_hub
from wagle.dataset.tables import read_parquet, separated_rows
from wagle.errors import WagleError

_USUAL = {
    "question": ("question", "prompt"),
    "answer": ("answer", "response"),
    "text": ("text",),
}
"""What columns are usually called, by what the program calls them."""

CONTENT = "question and answer, prompt and response, or text"
"""The columns that are found by themselves."""


def load_own(name: str, request: RowsRequest) -> datasets.Dataset:
    """The rows that a file's name, or that of a hub data set, means.

    Returns:
        The columns ``question`` and ``answer``, or ``text``.

    Raises:
        WagleError: there is no such file or data set; it cannot be read; its columns are not found,
            or several could be meant; a row lacks a value, or holds a blank or something else.
    """
    hub, path = hub_name(name), own_file(name)
    if hub is not None:
        return _from_hub(hub, request)
    if path is None:
        raise WagleError(f"{name} names no data; give {OWN_FORMS}")
    form = _form_of(path)
    if form == "parquet":
        return _chosen(read_parquet(path), request.columns, str(path))
    rows = (
        separated_rows(path, form)
        if form in ("csv", "tsv")
        else json_objects(path, f"JSON objects with {CONTENT}")
    )
    return _collected(rows, request.columns, str(path))


def _form_of(path: Path) -> str:
    """One of the formats, after a check that the file is there."""
    if path.is_dir():
        raise WagleError(f"{path} is a folder; name a file in it")
    if not path.is_file():
        raise WagleError(f"there is no data file {path} (from the folder {Path.cwd()})")
    form = file_format(path)
    if form is None:
        known = ", ".join(f".{form}" for form in FORMATS)
        raise WagleError(f"{path}: its suffix says no format; name it with one of {known}")
    return form


def _from_hub(name: HubName, request: RowsRequest) -> datasets.Dataset:
    repository, config, split = name
    where = f"the hub's {repository} ({config or 'default'}, {split})"
    rows = load_from_hub(
        repository,
        config,
        split,
        request.cache_dir,
        hint=f"A file of that name is not there either. A hub data set is org/name, "
        f"org/name:config or org/name:config:split (without a split, {DEFAULT_SPLIT})",
    )
    return _chosen(rows, request.columns, where)


def _collected(rows: Iterable[PlacedRow], names: ColumnNames, where: str) -> datasets.Dataset:
    """Rows of a file, whose columns the first row shows."""
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise WagleError(f"{where} holds no rows; it should hold {CONTENT}")
    chosen = choose_columns(field_names(first[1]), names, where)
    table = collect(chain([first], rows), dict.fromkeys(chosen.values(), TEXT), where)
    return _named(table, chosen, where)


def _chosen(table: datasets.Dataset, names: ColumnNames, where: str) -> datasets.Dataset:
    """Rows of a whole table."""
    if len(table) == 0:
        raise WagleError(f"{where} holds no rows; it should hold {CONTENT}")
    table = table.flatten()
    chosen = choose_columns(table.column_names, names, where)
    return _named(check_columns(table, dict.fromkeys(chosen.values(), TEXT), where), chosen, where)


def choose_columns(there: Sequence[str], names: ColumnNames, where: str) -> dict[str, str]:
    """The columns of questions with answers, by ``question`` and ``answer``, or of ``text``.

    A column that a key names is the one. Without keys, the usual names are looked for.

    >>> choose_columns(["id", "prompt", "response"], ColumnNames(), "rows.csv")
    {'question': 'prompt', 'answer': 'response'}

    Args:
        there: the columns that there are.
        where: names the data in messages.

    Raises:
        WagleError: none fits, or several do; the message says which columns there are.
    """
    given = {kind: name for kind in _USUAL if (name := getattr(names, kind)) is not None}
    found = {
        kind: [name for name in ([given[kind]] if kind in given else usual) if name in there]
        for kind, usual in _USUAL.items()
    }
    columns = f"its columns are {', '.join(there)}"
    for kind, candidates in found.items():
        if len(candidates) > 1:
            raise WagleError(
                f"{where}: both {' and '.join(candidates)} could be the {kind}; {columns}. Say "
                f"which with dataset.{kind}_column"
            )
    pair, text = found["question"] and found["answer"], found["text"]
    if pair and text:
        asks, reads = "question" in given or "answer" in given, "text" in given
        if asks == reads:
            raise WagleError(
                f"{where} holds questions with answers and texts; {columns}. Say which with "
                "dataset.question_column and dataset.answer_column, or with dataset.text_column"
            )
        pair, text = (pair, []) if asks else ([], text)
    if pair:
        return {"question": found["question"][0], "answer": found["answer"][0]}
    if text:
        return {"text": text[0]}
    absent = [f"{name} (dataset.{kind}_column)" for kind, name in given.items() if not found[kind]]
    missing = f"there is no {' and no '.join(absent)}" if absent else f"there is no {CONTENT}"
    raise WagleError(
        f"{where}: {missing}; {columns}. Name the columns with dataset.question_column and "
        "dataset.answer_column, or with dataset.text_column"
    )


def _named(table: datasets.Dataset, chosen: dict[str, str], where: str) -> datasets.Dataset:
    """The chosen columns under the program's names, after a check that none of them is blank."""
    values = {kind: table[name][:] for kind, name in chosen.items()}
    for kind, column in values.items():
        for row, text in enumerate(column, start=1):
            if not text.strip():
                raise WagleError(
                    f"{where}, row {row}: the column {chosen[kind]} is blank; write its {kind} "
                    "there, or take the row out"
                )
    return datasets.Dataset.from_dict(values)
