"""Tables of many runs: what they show, and mean ± sample standard deviation over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wagle.loggers.run_folder import ATTACK, DEPTH
from wagle.metrics.benchmark import Benchmark, Metric
from wagle.reporting.attacks import Q, R, attack_numbers
from wagle.reporting.bootstrap import Drawn, mean_draws
from wagle.reporting.depth import UDS, depth_numbers
from wagle.reporting.planned import ORIGINAL, RETAIN_ONLY, TableRow
from wagle.reporting.request import CHAIN, FORGET_SET, STEPS
from wagle.reporting.runs import Run
from wagle.reporting.spread import Spread, clearly_best

MEBIBYTE = 2**20
_SYMBOLS = {"ratio": "ρ", "mu": "μ"}

# --------------------------------------------------------------------------- what tables show


@dataclass(frozen=True)
class Form:
    """What a table shows.

    Attributes:
        caption: what it is about.
        columns: the numbers, from left to right.
        block: attributes that rows share when the best of them is marked.
        varied: the attributes and settings of a row that are shown.
        made_from: of the model, the forget set and the retain set those that must be the same.
    """

    caption: str
    columns: tuple[Metric, ...]
    block: tuple[str, ...] = ("method",)
    varied: tuple[str, ...] = ("method", "mask", "ratio")
    made_from: frozenset[str] = frozenset(("model", "forget", "retain"))

    @property
    def heads(self) -> tuple[str, ...]:
        """Headings of everything but the numbers."""
        return (*(_SYMBOLS.get(name, name) for name in self.varied), "seeds")


def _cost_of(phase: str, title: str) -> tuple[Metric, Metric]:
    return (
        Metric(f"seconds {phase}", "Time of the phase.", 0, title, "seconds", digits=1),
        Metric(f"memory {phase}", "Peak by the end of the phase.", 0, title, "MiB", digits=0),
    )


_COST = Form(
    "Cost of masks: seconds, and the process's peak memory by the end of each phase",
    (*_cost_of("mask", "mask"), *_cost_of("train", "training")),
)


def form_of(table: str, benchmark: Benchmark) -> Form:
    """What a table shows of a benchmark's results.

    Args:
        table: the benchmark's own, or one of :data:`wagle.reporting.request.STUDIES`.
    """
    if table == "cost":
        return _COST
    if table == "ratio":
        caption = "Share ρ of the weights that may change"
        return Form(caption, benchmark.summary, block=("method", "ratio"))
    if table == "mu":
        caption = "WAGLE's Hessian diagonal: several μ, and Gauss-Newton"
        return Form(caption, benchmark.summary, varied=("method", "mask", "ratio", "mu"))
    if table in STEPS:
        return Form(
            _OF_STEPS[table],
            benchmark.columns,
            block=("method", FORGET_SET),
            varied=("method", "mask", "ratio", FORGET_SET),
            made_from=frozenset(("retain",) if table == CHAIN else ("model", "retain")),
        )
    return Form(benchmark.caption, benchmark.columns)


_OF_STEPS = {
    "scalability": "Scalability: forget sets of growing size, each from the original",
    CHAIN: "Sustainability: a chain of requests to forget, each from the model of the one before",
}


def values_of(run: Run) -> dict[str, float]:
    """The numbers of a finished run by name.

    Those of ``results.json``, of attacks and of depth, and for each phase from the manifest
    ``seconds PHASE`` and ``memory PHASE``: the peak in MiB up to its end, on the accelerators where
    they were used.
    """
    values = {
        name: value
        for name, value in run.results.items()
        if name != "seed" and isinstance(value, int | float) and not isinstance(value, bool)
    }
    for phase, seconds in run.manifest["seconds"].items():
        values[f"seconds {phase}"] = seconds
    for phase, peaks in run.manifest.get("peak_memory_bytes_after", {}).items():
        accelerators = sum(size for name, size in peaks.items() if name != "resident")
        values[f"memory {phase}"] = (accelerators or peaks["resident"]) / MEBIBYTE
    return values | attack_numbers(run.document(ATTACK)) | depth_numbers(run.document(DEPTH))


# -------------------------------------------------------------------------------- aggregation


@dataclass(frozen=True)
class Outcome:
    """What has come of a planned run.

    Attributes:
        row, seed: as planned.
        folder: the run folder.
        values: the numbers of a finished run, see :func:`values_of`; else ``None``.
        failure: why it failed; ``None`` where it did not, or has not been tried.
        origins: fingerprints of what a finished run was made from: the model, the data.
    """

    row: TableRow
    seed: int | None
    folder: str
    values: Mapping[str, float] | None = None
    failure: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        if self.values is not None:
            return "finished"
        return "pending" if self.failure is None else "failed"


@dataclass(frozen=True)
class TableLine:
    """A row with its numbers.

    Attributes:
        outcomes: of all its seeds.
        cells: one per column; ``None`` where no run has the number.
        best: indices of the columns in which this row is the best of its block.
        notes: numbers of the notes about failures.
    """

    row: TableRow
    outcomes: tuple[Outcome, ...]
    cells: tuple[Spread | None, ...]
    best: frozenset[int]
    notes: tuple[int, ...]

    @property
    def finished(self) -> int:
        """How many seeds the numbers are about."""
        return sum(outcome.values is not None for outcome in self.outcomes)


@dataclass(frozen=True)
class Table:
    """Lines in order, and the reasons of failures, numbered from 1.

    Attributes:
        warnings: why the numbers must not be compared with one another; empty if all is well.
        remarks: what has to be known of single numbers.
        over_questions: whether draws of the questions count in what is marked.
    """

    form: Form
    lines: tuple[TableLine, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    over_questions: bool = False

    @property
    def pending(self) -> int:
        """How many runs have neither finished nor failed yet."""
        return sum(o.status == "pending" for line in self.lines for o in line.outcomes)


def aggregate(form: Form, outcomes: Iterable[Outcome], drawn: Drawn | None = None) -> Table:
    """Put runs together by row; rows keep the order in which they come first.

    Where runs have been attacked or looked into, the form gets columns of what came of that.

    Args:
        drawn: for what is marked as best; not given: spreads over seeds decide alone.
    """
    outcomes = list(outcomes)
    later = [m for m in (R, Q, UDS) if any(m.key in (o.values or {}) for o in outcomes)]
    form = replace(form, columns=(*form.columns, *later))
    by_row: dict[TableRow, list[Outcome]] = {}
    for outcome in outcomes:
        by_row.setdefault(outcome.row, []).append(outcome)
    cells = {row: tuple(_cells(form, members)) for row, members in by_row.items()}
    draws = {row: _draws(form, members, drawn or {}) for row, members in by_row.items()}
    best = _best(form, cells, draws)
    notes: list[str] = []
    lines = []
    for row, members in by_row.items():
        numbers = []
        for outcome in members:
            if outcome.status == "failed":
                seed = "" if outcome.seed is None else f", seed {outcome.seed}"
                notes.append(f"{row.name}{seed}: {outcome.failure}")
                numbers.append(len(notes))
        lines.append(
            TableLine(row, tuple(members), cells[row], frozenset(best[row]), tuple(numbers))
        )
    warnings, remarks = tuple(_warnings(form, outcomes)), tuple(_remarks(form, lines))
    return Table(form, tuple(lines), tuple(notes), warnings, remarks, over_questions=bool(drawn))


def _remarks(form: Form, lines: Iterable[TableLine]) -> Iterator[str]:
    for line in lines:
        for column, cell in zip(form.columns, line.cells, strict=True):
            if cell is not None and (remark := column.remark(cell.mean)):
                yield f"{line.row.name}: {remark}"


def _warnings(form: Form, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """A model made anew under its old name leaves the configurations as they were."""
    for what, name in {"model": "models", "forget": "forget sets", "retain": "retain sets"}.items():
        count = len({o.origins[what] for o in outcomes if what in o.origins})
        if count > 1 and what in form.made_from:
            yield f"the runs were made from {count} different {name}; use another -o for each"


def _cells(form: Form, outcomes: Sequence[Outcome]) -> Iterator[Spread | None]:
    finished = [outcome.values for outcome in outcomes if outcome.values is not None]
    for column in form.columns:
        yield Spread.of([values[column.key] for values in finished if column.key in values])


def _draws(form: Form, outcomes: Sequence[Outcome], drawn: Drawn) -> list[np.ndarray | None]:
    """Of each column, the mean over the finished seeds."""
    finished = [outcome.folder for outcome in outcomes if outcome.values is not None]
    return [mean_draws(drawn, finished, column.key) for column in form.columns]


def _best(
    form: Form,
    cells: Mapping[TableRow, Sequence[Spread | None]],
    draws: Mapping[TableRow, Sequence[np.ndarray | None]],
) -> dict[TableRow, set[int]]:
    """For each row the columns in which it is clearly the best of its block."""
    best: dict[TableRow, set[int]] = {row: set() for row in cells}
    blocks: dict[tuple[Any, ...], list[TableRow]] = {}
    for row in cells:
        if row.method not in (ORIGINAL, RETAIN_ONLY):
            blocks.setdefault(tuple(map(row.value, form.block)), []).append(row)
    for rows, (index, column) in itertools.product(blocks.values(), enumerate(form.columns)):
        found = clearly_best(
            [cells[row][index] for row in rows],
            column.better,
            [draws[row][index] for row in rows],
        )
        if found is not None:
            best[rows[found]].add(index)
    return best
