"""Rows from the hub or from local JSON-lines files, with the columns that they must have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import datasets
import pyarrow.compute

from wagle.dataset.columns import FLAG, TEXT, TEXTS, Columns, expected
from wagle.dataset.json_lines import read_json_lines
from wagle.errors import WagleError
from wagle.hub import connect_to_hub

if TYPE_CHECKING:
    from wagle.config import DataSection

Role = Literal["forget", "retain"]


@dataclass(frozen=True)
class ColumnNames:
    """What the columns of one's own data are called; ``None``: as usual."""

    question: str | None = None
    answer: str | None = None
    text: str | None = None

    @classmethod
    def of(cls, data: DataSection) -> ColumnNames:
        """As ``dataset.question_column``, … say."""
        return cls(data.question_column, data.answer_column, data.text_column)


USUAL_NAMES = ColumnNames()


@dataclass(frozen=True)
class RowsRequest:
    """What a loader is asked for.

    Attributes:
        subset: what follows the underscore of the data set's name, "" where there is none.
        role: some data sets hold different rows for forgetting and for retaining.
        data_dir: read local files below this folder instead of the hub.
        cache_dir: the hub's cache.
        columns: of one's own data.
    """

    subset: str
    role: Role
    data_dir: Path | None
    cache_dir: Path
    columns: ColumnNames = USUAL_NAMES

    def rows(
        self,
        local: str,
        hub: str,
        config: str | None = None,
        *,
        columns: Columns,
        split: str = "train",
        **hub_options: Any,
    ) -> datasets.Dataset:
        """Rows of the JSON-lines file ``data_dir / local``, or of a hub data set.

        Args:
            local: file name below ``data_dir``.
            hub, config, split, hub_options: for ``datasets.load_dataset``.
            columns: what the rows must have, and what is returned of them.

        Raises:
            WagleError: no such file; neither hub nor cache has the data; a column is missing.
        """
        if self.data_dir is not None:
            return read_json_lines(self.data_dir / local, columns)
        rows = load_from_hub(
            hub,
            config,
            split,
            self.cache_dir,
            hint=f"Give local files with --dataset.data_dir FOLDER (it would read FOLDER/{local}), "
            "or connect to the network",
            **hub_options,
        )
        return check_columns(rows, columns, f"the hub's {hub} ({config or 'default'}, {split})")


def load_from_hub(
    name: str, config: str | None, split: str, cache_dir: Path, *, hint: str, **options: Any
) -> datasets.Dataset:
    """A data set of the hub, or what the cache has of it.

    Args:
        hint: how to give other data, for the message.
        options: for ``datasets.load_dataset``.

    Raises:
        WagleError: neither hub nor cache has it.
    """
    connect_to_hub()
    try:
        return datasets.load_dataset(name, config, split=split, cache_dir=str(cache_dir), **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise WagleError(
            f"the data set {name} ({config or 'default'}) is not in the cache {cache_dir}, and "
            f"the hub cannot be reached or does not offer it. {hint}. "
            f"[{type(error).__name__}: {str(error).partition(chr(10))[0]}]"
        ) from error


def check_columns(rows: datasets.Dataset, columns: Columns, where: str) -> datasets.Dataset:
    """``columns`` of the hub's rows, after a check that every row has a value in all of them.

    Args:
        where: names the rows in messages.

    Raises:
        WagleError: a column is missing, holds something else or has a gap.
    """
    rows = rows.flatten()
    for name, kind in columns.items():
        if name not in rows.column_names:
            there = ", ".join(rows.column_names)
            raise WagleError(
                f"{where} has no column {name}, only {there}; it should hold {expected(columns)}"
            )
        gap = pyarrow.compute.index(rows.data.column(name).is_null(), True).as_py()
        if gap >= 0:
            raise WagleError(
                f"{where}, row {gap + 1}: {name} is missing; it should hold {expected(columns)}"
            )
        found = _kind(rows.features[name])
        if found != kind:
            raise WagleError(
                f"{where}: column {name} holds {found}; it should hold {expected(columns)}"
            )
        if kind == TEXTS:
            lengths = pyarrow.compute.list_value_length(rows.data.column(name))
            if pyarrow.compute.min(lengths).as_py() == 0:
                raise WagleError(f"{where}: column {name} has a row with an empty list")
    return rows.select_columns(list(columns))


def _kind(feature: Any) -> str:
    if isinstance(feature, datasets.List):
        return TEXTS if _kind(feature.feature) == TEXT else "a list of something else"
    kinds = {"string": TEXT, "large_string": TEXT, "bool": FLAG}
    dtype = getattr(feature, "dtype", type(feature).__name__)
    return kinds.get(dtype, dtype)
