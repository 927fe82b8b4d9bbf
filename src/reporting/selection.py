"""Which settings are best where enough utility is kept, and which no others beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wagle.errors import ConfigError
from wagle.metrics.benchmark import Benchmark, Headline, Metric
from wagle.metrics.benchmarks import find_metric
from wagle.reporting.planned import ORIGINAL, RETAIN_ONLY, TableRow
from wagle.reporting.spread import Spread
from wagle.reporting.tables import Form, Table, TableLine

REFERENCES = (ORIGINAL, RETAIN_ONLY)
"""Rows that do not compete."""


@dataclass(frozen=True)
class Selection:
    """By what settings are chosen.

    Attributes:
        metric: which is to be best.
        forgetting, utility: between which the front lies.
        floor: the share of the original's utility that must be kept.
    """

    metric: Metric
    forgetting: Metric
    utility: Metric
    floor: float

    @classmethod
    def of(
        cls,
        benchmark: Benchmark,
        by: str,
        floor: float,
        *,
        forgetting: str | None = None,
        utility: str | None = None,
    ) -> Selection:
        """From names of numbers; those not given are the benchmark's headline or summary.

        Raises:
            ConfigError: a number is not known, or nothing says which way it is better.
        """
        first, *_, last = benchmark.headline or benchmark.summary
        return cls(
            _named(benchmark, by),
            _named(benchmark, forgetting) if forgetting else first,
            _named(benchmark, utility) if utility else last,
            floor,
        )

    @property
    def axes(self) -> Headline:
        """Of the front."""
        return Headline(self.forgetting, self.utility)

    @property
    def title(self) -> str:
        """In words."""
        return (
            f"best {self.metric.key} with at least {self.floor:g} of the original's "
            f"{self.utility.key}"
        )

    def form(self, benchmark: Benchmark, settings: Sequence[str]) -> Form:
        """The table of all rows."""
        columns = (self.metric, self.forgetting, self.utility, *benchmark.columns)
        return Form(
            f"Sweep: {self.title}",
            tuple({column.key: column for column in columns}.values()),
            block=("method", "mask"),
            varied=("method", "mask", "ratio", *settings),
        )


def _named(benchmark: Benchmark, name: str) -> Metric:
    """A number by its key or, where that is clear, by the end of it: ``Agg``."""
    ends = [m for m in benchmark.metrics if m.key.endswith(f" {name}")]
    metric = find_metric(benchmark, name) or (ends[0] if len(ends) == 1 else None)
    if metric is None or not metric.better:
        known = ", ".join(m.key for m in benchmark.metrics if m.better)
        raise ConfigError(f"{name} is no number to choose by; {benchmark.name} has: {known}")
    return metric


def share_kept(utility: Metric, value: float, before: float) -> float | None:
    """Which part of the original's is left; of what is better small, like PPL, the inverse."""
    part, whole = (value, before) if utility.better > 0 else (before, value)
    return part / whole if whole > 0 and math.isfinite(part) else None


def choose(table: Table, selection: Selection) -> dict[TableRow, float | None]:
    """For each method and mask the row that is best among those that keep the utility.

    Rows with runs that failed or are still to be done do not compete.

    Returns:
        The chosen rows, with the share of the utility that they keep.
    """
    chosen: dict[tuple[str, str], tuple[float, TableRow, float]] = {}
    for line in table.lines:
        share, cell = kept_by(line, table, selection), cell_of(line, table, selection.metric)
        if line.row.method in REFERENCES or line.finished < len(line.outcomes):
            continue
        if share is None or cell is None or share < selection.floor:
            continue
        value, group = selection.metric.better * cell.mean, (line.row.method, line.row.mask)
        if group not in chosen or value > chosen[group][0]:
            chosen[group] = value, line.row, share
    return {row: share for _, row, share in chosen.values()}


def kept_by(line: TableLine, table: Table, selection: Selection) -> float | None:
    """The share of the original's utility; ``None`` where one of the two is not known."""
    cells = [cell_of(other, table, selection.utility) for other in (line, *table.lines)]
    originals = (
        cell
        for other, cell in zip(table.lines, cells[1:], strict=True)
        if other.row.method == ORIGINAL
    )
    mine, before = cells[0], next(originals, None)
    return mine and before and share_kept(selection.utility, mine.mean, before.mean)


def front(table: Table, selection: Selection) -> list[TableRow]:
    """Rows that no other is better than in one number and as good as in both, by utility."""
    places = {}
    for line in table.lines:
        across, up = (
            cell_of(line, table, metric) for metric in (selection.utility, selection.forgetting)
        )
        if across and up and line.row.method not in REFERENCES:
            place = (selection.utility.better * across.mean, selection.forgetting.better * up.mean)
            if all(map(math.isfinite, place)):
                places[line.row] = place
    return sorted(
        (
            row
            for row, (x, y) in places.items()
            if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in places.values())
        ),
        key=lambda row: places[row],
    )


def cell_of(line: TableLine, table: Table, metric: Metric) -> Spread | None:
    """A row's value of one of the table's numbers."""
    keys = [column.key for column in table.form.columns]
    return line.cells[keys.index(metric.key)]
