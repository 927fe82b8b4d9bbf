"""How the rows of a data set are loaded by its name; docs/data.md lists them.

To add one: a loader in a file beside this one, which returns rows with the columns ``question`` and
``answer`` (or ``text``), and a line in :mod:`wagle.catalogue`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import datasets

from wagle.catalogue import DATA_SETS
from wagle.dataset.columns import TEXT, collect
from wagle.dataset.names import OWN_FORMS, is_own
from wagle.dataset.reading import USUAL_NAMES, ColumnNames, Role, RowsRequest
from wagle.dataset.sources.own import load_own
from wagle.entries import DataSet
from wagle.errors import WagleError

OWN_MAX_LENGTH = 1024


def find_source(name: str) -> DataSet:
    """The data set called ``name``: a known one, one from outside, a file, or one of the hub.

    Raises:
        WagleError: there is none.
    """
    if is_own(name):
        return DataSet(name, partial(load_own, name), max_length=OWN_MAX_LENGTH)
    if name in DATA_SETS and DATA_SETS[name].code:
        return DATA_SETS[name]
    family, _, subset = name.partition("_")
    entry = DATA_SETS.get(family)
    if entry and (entry.any_subset or subset in (*entry.subsets, *entry.asked)):
        return entry
    raise WagleError(
        f"there is no data set {name}; there are {', '.join(_names())}; or give {OWN_FORMS}"
    )


def _names() -> list[str]:
    return [
        name
        for entry in DATA_SETS.values()
        for name in entry.names(("SUBSET",) if entry.any_subset else (*entry.subsets, *entry.asked))
    ]


def load_rows(
    name: str,
    *,
    data_dir: Path | None,
    cache_dir: Path,
    role: Role = "forget",
    columns: ColumnNames = USUAL_NAMES,
) -> datasets.Dataset:
    """Rows of a data set, with the columns ``question`` and ``answer``, or ``text``.

    Args:
        name: as in ``dataset.forget_dataset_name``, for example ``Tofu_forget10``, ``rows.csv`` or
            ``org/name``. Some are for evaluation alone: ``HP_train_300``, ``HP_test_300`` (and 50,
            100, 200), ``C4_validation``, and, without an answer, ``SafePku_test``,
            ``RealToxicityPrompts``.
        data_dir: read the files of known data sets below this folder instead of the hub.
        cache_dir: the hub's cache.
        role: whether the rows are to be forgotten or retained.
        columns: where the questions, answers and texts of one's own data are.

    Raises:
        WagleError: the hub cannot be reached, or a file is missing or malformed.
    """
    source = find_source(name)
    subset = "" if source.code else name.partition("_")[2]
    rows = source.load()(RowsRequest(subset, role, data_dir, cache_dir, columns))
    if source.code:
        rows = _checked(rows, name)
    if len(rows) == 0:
        raise WagleError(
            f"no row of {name} can be used: its texts are blank, or its responses are all safe"
        )
    return rows


def _checked(rows: Any, name: str) -> datasets.Dataset:
    """What a loader from outside returns, a data set or dicts, after a check of its columns."""
    table = rows if isinstance(rows, datasets.Dataset) else datasets.Dataset.from_list(list(rows))
    wanted = {"text": TEXT} if "text" in table.column_names else {"question": TEXT, "answer": TEXT}
    collect(((f"row {number}", row) for number, row in enumerate(table, 1)), wanted, name)
    return table
