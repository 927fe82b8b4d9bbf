"""A sweep: a table of many settings, the best of each method and mask, and the front of all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from wagle.config.help import table as aligned
from wagle.loggers.files import to_json
from wagle.metrics.benchmark import Metric
from wagle.metrics.benchmarks import benchmark_of
from wagle.reporting.figures import Point, draw_tradeoff
from wagle.reporting.planned import PlannedRun, TableRow
from wagle.reporting.reproduction import Reproduction
from wagle.reporting.request import SWEEP
from wagle.reporting.selection import REFERENCES, Selection, cell_of, choose, front, kept_by
from wagle.reporting.spread import Spread
from wagle.reporting.style import DOUBLE_COLUMN
from wagle.reporting.table_formats import MISSING, csv_of
from wagle.reporting.tables import Table, TableLine, aggregate

MOST_EXPLAINED = 12
"""Points whose settings a figure has room for."""
WIDE = 1000  # columns: a line that is too long for a terminal is better than numbers in pieces


class Sweep(Reproduction):
    """The runs of a sweep, and what has come of them so far.

    Args:
        selection: by what settings are chosen.
        runs, output, command: as of :class:`Reproduction`.
    """

    def __init__(
        self, selection: Selection, runs: Sequence[PlannedRun], output: Path, command: str
    ) -> None:
        settings = dict.fromkeys(name for run in runs for name, _ in run.row.settings)
        form = selection.form(benchmark_of(runs[0].config), list(settings))
        super().__init__(SWEEP, runs, output, command, form)
        self.selection = selection
        self.seeds = {run.seed for run in runs}
        """With which settings are chosen; further runs are of those that have been."""

    def chosen(self) -> dict[TableRow, float | None]:
        """As :func:`choose`, by the runs that all rows have."""
        outcomes = [outcome for outcome in self.outcomes() if outcome.seed in self.seeds]
        return choose(aggregate(self.form, outcomes), self.selection)

    def _documents(self, table: Table) -> dict[str, str]:
        """As of any table, and everything about each row as JSON and CSV."""
        rows = list(self._rows(table))
        content = {
            "command": self.command,
            "metric": self.selection.metric.key,
            "forgetting": self.selection.forgetting.key,
            "utility": self.selection.utility.key,
            "floor": self.selection.floor,
            "chosen with seeds": sorted(seed for seed in self.seeds if seed is not None),
            "rows": rows,
        }
        return {
            **super()._documents(table),
            ".csv": csv_of(map(_flat, rows)),
            ".json": to_json(content),
        }

    def _rows(self, table: Table) -> Iterator[dict[str, Any]]:
        chosen, best = self.chosen(), set(front(table, self.selection))
        for line in table.lines:
            row = line.row
            yield {
                **{name: row.value(name) for name in self.form.varied},
                "seeds": [o.seed for o in line.outcomes if o.values and o.seed is not None],
                "of": len(line.outcomes),
                "kept": kept_by(line, table, self.selection),
                "chosen": row in chosen,
                "front": row in best,
                "numbers": {
                    column.key: _number(cell)
                    for column, cell in zip(self.form.columns, line.cells, strict=True)
                    if cell is not None
                },
                "folders": [outcome.folder for outcome in line.outcomes],
            }

    def _figure(self) -> Figure | None:
        """Forgetting against utility: what stands on the front, or is chosen, is explained."""
        table = aggregate(self.form, self.outcomes())
        best = front(table, self.selection)
        marked = {*self.chosen(), *best}
        varied = [
            name
            for name in self.form.varied
            if name not in ("method", "mask")
            and len({line.row.value(name) for line in table.lines} - {None}) > 1
        ]
        shown = varied if len(marked) <= MOST_EXPLAINED else []
        points = {
            line.row: _point(line, shown if line.row in marked else []) for line in table.lines
        }
        return draw_tradeoff(
            [point for point in points.values() if point.results],
            self.selection.axes,
            front=[points[row] for row in best],
            width=DOUBLE_COLUMN,
        )

    def summary(self) -> str:
        """The original and the chosen rows, with means and 95 % intervals over seeds, as text."""
        table = aggregate(self.form, [*self.outcomes(), *self.references()])
        chosen, best = self.chosen(), front(table, self.selection)
        numbers = {m.name: m for m in (self.selection.metric, *self.selection.axes)}
        rows = [(*self.form.heads, *numbers, "kept", "front")]
        for line in table.lines:
            if line.row not in chosen and line.row.method not in REFERENCES:
                continue
            share = kept_by(line, table, self.selection)
            rows.append(
                (
                    *(_text(line.row.value(name)) for name in self.form.varied),
                    str(line.finished),
                    *(_interval(cell_of(line, table, m), m) for m in numbers.values()),
                    MISSING if share is None else f"{share:.3f}",
                    "yes" if line.row in best else "",
                )
            )
        title = f"{self.selection.title}; ± half of the 95 % interval over seeds"
        return f"{title}\n\n{aligned(rows, WIDE)}"

    def without_choice(self) -> Iterator[str]:
        """Of each method and mask of which no row was chosen, why."""
        table = aggregate(self.form, self.outcomes())
        having = {(row.method, row.mask) for row in self.chosen()}
        groups: dict[tuple[str, str], list[TableLine]] = {}
        for line in table.lines:
            if line.row.method not in REFERENCES and (line.row.method, line.row.mask) not in having:
                groups.setdefault((line.row.method, line.row.mask), []).append(line)
        for group, lines in groups.items():
            shares = [kept_by(line, table, self.selection) for line in lines]
            known = [share for share in shares if share is not None]
            reason = f"none of them is known to keep {self.selection.utility.key}"
            if known:
                reason = f"the most that one keeps is {max(known):.3f}"
            yield f"{'+'.join(group)}: none of {len(lines)} settings is chosen; {reason}"


def _number(cell: Spread) -> dict[str, Any]:
    low, high = cell.interval or (None, None)
    mean = cell.mean if math.isfinite(cell.mean) else str(cell.mean)
    return {"mean": mean, "std": cell.deviation, "low": low, "high": high}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    numbers = {
        f"{key} {kind}": value
        for key, number in row["numbers"].items()
        for kind, value in number.items()
    }
    return {**{k: v for k, v in row.items() if k != "numbers"}, **numbers}


def _point(line: TableLine, explained: Sequence[str]) -> Point:
    row = line.row
    values = {name.rpartition(".")[2]: row.value(name) for name in explained}
    said = [f"{name} {_text(value)}" for name, value in values.items() if value is not None]
    results = [o.values for o in line.outcomes if o.values is not None]
    return Point(row.method, row.mask, ", ".join(said), results)


def _text(value: object) -> str:
    return (
        MISSING if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)
    )


def _interval(cell: Spread | None, metric: Metric) -> str:
    """The mean and, over several seeds, half of its interval."""
    if cell is None:
        return MISSING
    mean, ends = f"{cell.mean:.{metric.digits}f}", cell.interval
    return f"{mean} ± {(ends[1] - ends[0]) / 2:.{metric.digits}f}" if ends else mean
