"""What came of the demo: a table with spreads, one sentence on what it says, a figure, a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.table import Table as Grid

from wagle.dataset.refusals import load_refusals
from wagle.loggers.files import write_text
from wagle.metrics.benchmark import Headline, Metric
from wagle.metrics.tofu_benchmark import (
    FORGET_QUALITY,
    KEPT,
    MISANSWERED,
    UNLIKE_TRAINING,
    UTILITY,
    WORDING_GONE,
    under,
)
from wagle.reporting.figures import Point, draw_tradeoff, write_figure
from wagle.reporting.page import write_report
from wagle.reporting.planned import ORIGINAL, TableRow
from wagle.reporting.runs import Run, read_run
from wagle.reporting.spread import Spread
from wagle.reporting.table_formats import to_markdown
from wagle.reporting.tables import Form, Outcome, Table, TableLine, aggregate, values_of
from wagle.terminal import say, show_table

RETRAINED = TableRow("Retrained")
SMALLEST_P = 1e-300


def _column(metric: Metric, meaning: str, title: str = "") -> Metric:
    """Of a table without groups, for somebody who reads of unlearning for the first time."""
    return replace(metric, group="", title=title or metric.heading, meaning=meaning)


LOG_QUALITY = Metric(
    "log10 FQ",
    "forget quality: log of the p-value against the retrained model, whose own is 0",
    digits=1,
)
LOST = _column(WORDING_GONE, "share of the true forget answers' words that are gone")
REFUSALS = Metric("refusals", "share of forget answers that are a refusal, word for word", better=0)
REAL_FACTS = Metric("real facts", "share of real authors and world facts that are still known")
AVERAGE = _column(UTILITY, "utility: mean over the retain set and the real facts", UTILITY.name)
_, _RETAIN_WORDING = KEPT["retain"]
FORM = Form(
    "Forgetting (the nearer to the retrained model the better) and utility",
    (
        LOG_QUALITY,
        _column(
            UNLIKE_TRAINING,
            "membership inference: 0.5, forget rows look like training data; 1, like new text",
        ),
        _column(
            MISANSWERED,
            "share of forget questions, asked in other words, that are answered wrongly",
        ),
        LOST,
        REFUSALS,
        _column(
            _RETAIN_WORDING,
            "share of the true retain answers' words that are still there",
            _RETAIN_WORDING.name,
        ),
        REAL_FACTS,
        AVERAGE,
    ),
)
_NARROW = {"Original": "orig-\ninal", "Retrained": "re-\ntrained", "GradDiff": "Grad-\nDiff"}


def numbers_of(run: Run) -> dict[str, float]:
    """The numbers of a run that the table shows.

    Those of ``results.json``, with ``LOG_QUALITY`` (0 where the run is not compared with a
    retrained model, because it is that model), ``REFUSALS`` and ``REAL_FACTS``.
    """
    values, asked = values_of(run), run.document("tofu.json")
    assert asked is not None  # what TOFU's evaluation begins with
    quality = values.get(under(run.config["evaluation.protocol"], FORGET_QUALITY).key, 1.0)
    answers = [row["generated"].strip() for row in asked["forget"]["rows"]]
    refusals = set(load_refusals(run.config["dataset.forget_dataset_name"]))
    known = [values[KEPT[name][0].key] for name in ("real_author", "world_fact")]
    return {
        **values,
        LOG_QUALITY.key: math.log10(max(quality, SMALLEST_P)),
        REFUSALS.key: statistics.fmean(answer in refusals for answer in answers),
        REAL_FACTS.key: statistics.fmean(known),
    }


def show_comparison(outcomes: Sequence[Outcome], retrained: Path, folder: Path) -> None:
    """Print the table and what it says; write ``table.md``, a figure and ``report.html``.

    Args:
        outcomes: of the original and of all unlearned models; all finished.
        retrained: the run folder of the model that never saw the forget set.
        folder: for what is written.
    """
    goal = Outcome(RETRAINED, None, str(retrained), {})
    everything = [
        replace(outcome, values=numbers_of(read_run(Path(outcome.folder))))
        for outcome in (outcomes[0], goal, *outcomes[1:])
    ]
    table = aggregate(FORM, everything)
    _print(table)
    finding = finding_of(table)
    say(f"{finding}\n")
    write_text(folder / "table.md", f"{to_markdown(table, 'make demo')}\n{finding}\n")
    points = [
        Point(line.row.method, line.row.mask, "", [o.values or {} for o in line.outcomes])
        for line in table.lines
    ]
    figure = draw_tradeoff(points, Headline(WORDING_GONE, UTILITY), width=4.2)
    paths = write_figure(folder / "forgetting_against_utility", figure)
    first = {outcome.row: outcome for outcome in reversed(everything)}
    shown = [read_run(Path(first[line.row].folder), _title(line.row)) for line in table.lines]
    write_report(shown, folder / "report.html")
    say(f"table: {folder / 'table.md'}")
    say(f"figure: {', '.join(map(str, paths))}")
    say(f"report, of the first seed: {folder / 'report.html'}")


def finding_of(table: Table) -> str:
    """What the table says about masks, in one sentence, whatever it is."""
    lines = {line.row: line for line in table.lines}
    wagle = next(row for row in lines if row.mask == "WAGLE")
    random = replace(wagle, mask="Random")
    gone, kept = (
        [_cell(lines[row], metric) for row in (wagle, random)] for metric in (LOST, AVERAGE)
    )
    difference = gone[0].mean - gone[1].mean
    spread = math.hypot(*(cell.deviation or 0.0 for cell in gone))
    verdict = (
        f"{abs(difference) / spread:.0f} times their spread over seeds"
        if abs(difference) > 2 * spread > 0
        else f"no more than twice their spread over seeds ({spread:.3f}), so no difference"
    )
    original = _cell(lines[TableRow(ORIGINAL)], LOST).mean
    goal = _cell(lines[RETRAINED], LOST).mean
    return (
        f"What to look at: of the forget answers' words the original has lost {original:.0%} and "
        f"the retrained model {goal:.0%}; {wagle.method} on a share ρ = {wagle.ratio:g} of the "
        f"weights loses {gone[0].mean:.0%} where WAGLE chooses them and {gone[1].mean:.0%} where "
        f"chance does, which is {verdict}, at a utility of {kept[0].mean:.3f} and "
        f"{kept[1].mean:.3f}."
    )


def _cell(line: TableLine, metric: Metric) -> Spread:
    spread = line.cells[FORM.columns.index(metric)]
    assert spread is not None  # all runs have finished, with all numbers
    return spread


def _title(row: TableRow) -> str:
    return f"{row.method}+{row.mask}" if row.ratio is not None else row.method


def _print(table: Table) -> None:
    """Models side by side, a metric with its spread over seeds below it in two lines."""
    grid = Grid(box=box.SIMPLE, padding=(0, 0, 0, 1), pad_edge=False)
    grid.add_column("")
    for line in table.lines:
        ratio = "" if line.row.ratio is None else f"\n{line.row.mask}\nρ {line.row.ratio:g}"
        name = _NARROW.get(line.row.method, line.row.method)
        grid.add_column(f"{name}{ratio}", justify="right", no_wrap=True)
    for column in FORM.columns:
        texts = []
        for line in table.lines:
            cell = _cell(line, column)
            spread = "" if cell.deviation is None else f"\n±{cell.deviation:.{column.digits}f}"
            texts.append(f"{cell.mean:.{column.digits}f}{spread}")
        grid.add_row(column.heading, *texts)
    show_table(grid)
    for column in FORM.columns:
        say(f"{column.heading:>13}: {column.meaning}")
    say("±: sample standard deviation over seeds\n")
