"""From planned runs to a written table: what is done, what is to do, how long that may take."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from wagle.errors import WagleError
from wagle.loggers.files import write_text
from wagle.metrics.benchmarks import benchmark_of
from wagle.reporting.bootstrap import Drawn, draw_questions
from wagle.reporting.executor import Start, execute, find_finished
from wagle.reporting.figures import Point, draw_ratio_sweep, draw_tradeoff, write_figure
from wagle.reporting.planned import RETAIN_ONLY, PlannedRun, TableRow
from wagle.reporting.request import CHAIN, FORGET_SET, STEPS, STUDIES
from wagle.reporting.runs import Run, read_run
from wagle.reporting.table_formats import runs_to_csv, to_csv, to_latex, to_markdown
from wagle.reporting.tables import Form, Outcome, Table, aggregate, form_of, values_of
from wagle.terminal import Progress, say


class Reproduction:
    """The runs of one table, and what has come of them so far.

    Args:
        table: as in :class:`wagle.reporting.plan.TableRequest`.
        runs: as planned.
        output: runs are looked for in ``runs/`` in this folder, and the table goes into it.
        command: what makes this table, to be shown in it.
        form: what it shows; not given: what tables of its name do.

    Attributes:
        benchmark: whose numbers are shown.
        failures: reasons by fingerprint, of the runs that this process has tried.
    """

    def __init__(
        self,
        table: str,
        runs: Sequence[PlannedRun],
        output: Path,
        command: str,
        form: Form | None = None,
    ) -> None:
        self.table = table
        self.benchmark = benchmark_of(runs[0].config)
        self.form = form or form_of(table, self.benchmark)
        self.runs = runs
        self.output = output
        self.command = command
        self.failures: dict[str, str] = {}
        self._known: dict[str, Run] = {}
        for fingerprint, folder in find_finished(output / "runs").items():
            try:
                self._known[fingerprint] = read_run(folder)
            except WagleError as error:
                say(f"to be run again: {error}", sys.stderr)

    @property
    def missing(self) -> list[PlannedRun]:
        """Runs that have not finished, in the order in which they are to be run."""
        missing = {r.fingerprint: r for r in self.runs if r.fingerprint not in self._known}
        return list(missing.values())

    def plan(self, slots: int) -> str:
        """What is done and what is to do, for the terminal."""
        rows = list(dict.fromkeys(run.row for run in self.runs))
        width = max(len(row.name) for row in rows)
        missing = self.missing
        total = len({run.fingerprint for run in self.runs})
        done = total - len(missing)
        lines = [f"table {self.table}: {total} runs, {done} done, {len(missing)} to do"]
        for row in rows:
            members = [run for run in self.runs if run.row == row]
            there = sum(run.fingerprint in self._known for run in members)
            lines.append(f"  {row.name:{width}}  {there} of {len(members)} done")
        if missing:
            lines.append(f"time: {self._estimate(missing, slots)}")
        return "\n".join(lines)

    def _estimate(self, missing: Sequence[PlannedRun], slots: int) -> str:
        seconds: dict[tuple[Any, ...], list[float]] = {}
        for run in self._known.values():
            seconds.setdefault(_kind(run.config), []).append(sum(run.manifest["seconds"].values()))
        known = [seconds[_kind(run.config)] for run in missing if _kind(run.config) in seconds]
        if not known:
            return "unknown, as no run of this kind has finished yet"
        total = sum(sum(times) / len(times) for times in known) / slots
        unknown = len(missing) - len(known)
        rest = f", and {unknown} runs of a kind that has not finished yet" if unknown else ""
        return f"about {_duration(total)}{rest} (each run's start not counted)"

    def run(self, start: Start, slots: int) -> None:
        """Run what is missing; the table on disk is up to date after each run.

        Raises:
            KeyboardInterrupt: on SIGINT or SIGTERM, after the runs that were going on have ended.
        """
        missing = self.missing
        began = time.monotonic()
        self.write()
        with Progress(self.table, len(missing), "run") as bar:

            def finished(run: PlannedRun, failure: str | None) -> None:
                if failure is None:
                    self._known[run.fingerprint] = read_run(run.folder)
                else:
                    self.failures[run.fingerprint] = failure
                self.write()
                bar.update()
                ended = len(missing) - len(self.missing) + len(self.failures)
                left = (time.monotonic() - began) / ended * (len(missing) - ended)
                what = "done" if failure is None else f"FAILED: {failure}"
                ahead = f", about {_duration(left)} left" if ended < len(missing) else ""
                say(f"{ended} of {len(missing)}{ahead}: {run.title}: {what}", sys.stderr)

            execute(missing, start, slots, finished)

    def outcomes(self) -> list[Outcome]:
        """Of every planned run."""
        outcomes = []
        for run in self.runs:
            known = self._known.get(run.fingerprint)
            if known is None:
                failure = self.failures.get(run.fingerprint)
                outcomes.append(Outcome(run.row, run.seed, str(run.folder), failure=failure))
            else:
                origins = known.manifest.get("fingerprints", {})
                about = (run.row, run.seed, str(known.folder))
                outcomes.append(Outcome(*about, values_of(known), origins=origins))
        return outcomes

    def references(self) -> list[Outcome]:
        """Of the retain-only model, where runs were given its results: a row beside theirs."""
        for run in self._known.values():
            if RETAIN_ONLY in run.references and self.table not in STUDIES:
                row, numbers = TableRow(RETAIN_ONLY), run.references[RETAIN_ONLY]
                return [Outcome(row, None, str(run.folder), numbers)]
        return []

    def write(self, *, over_questions: bool = False) -> Table:
        """Write the table and its runs into the output folder.

        Args:
            over_questions: draw questions again, to find out which cells are clearly the best; a
                second for each run. Otherwise seeds decide alone.
        """
        self._clear()
        drawn = self._drawn() if over_questions else {}
        table = aggregate(self.form, [*self.outcomes(), *self.references()], drawn)
        self.output.mkdir(parents=True, exist_ok=True)
        for suffix, text in self._documents(table).items():
            write_text(self.output / f"{self.table}{suffix}", text)
        return table

    def _documents(self, table: Table) -> dict[str, str]:
        """What is written, by the end of the file's name."""
        return {
            ".md": to_markdown(table, self.command),
            ".tex": to_latex(table, f"tab:{self.table}"),
            ".csv": to_csv(table),
            "_runs.csv": runs_to_csv(self.outcomes()),
        }

    def _drawn(self) -> Drawn:
        if len({run.row for run in self.runs}) < 2:
            return {}
        known = {run.fingerprint: self._known.get(run.fingerprint) for run in self.runs}
        runs = [run for run in known.values() if run is not None]
        return draw_questions(runs, {column.key for column in self.form.columns if column.better})

    def draw(self) -> list[Path]:
        """Draw finished runs beside the table, as PNG and PDF; nothing where no figure fits it."""
        figure = self._figure()
        return write_figure(self.output / self.table, figure) if figure else []

    def _figure(self) -> Figure | None:
        finished = [
            (run.row, self._known[run.fingerprint].results)
            for run in self.runs
            if run.fingerprint in self._known
        ]
        headline = self.benchmark.headline
        if not finished:
            return None
        if self.table in STEPS:
            points = list(_steps(finished))
            known = {name for *_, results in points for name in results}
            metrics = [metric for metric in self.benchmark.summary if metric.key in known]
            return draw_ratio_sweep(points, metrics, across=_STEP[self.table]) if metrics else None
        if self.table == "ratio" and headline:
            points = [
                (row.method, row.mask, row.ratio, results)
                for row, results in finished
                if row.ratio is not None
            ]
            return draw_ratio_sweep(points, headline) if points else None
        if self.table in STUDIES or not headline:
            return None
        return draw_tradeoff(_points(finished), headline)

    def _clear(self) -> None:
        """Remove what only other runs needed, of runs that have finished, once these have too.

        Sums of gradients that a run shares with no other, and models between two requests.
        """
        for run in self.runs:
            if run.fingerprint not in self._known:
                continue
            if self.table == "cost":
                for path in run.folder.glob("sums.*"):
                    path.unlink()
            if run.clears:
                shutil.rmtree(run.clears, ignore_errors=True)


_STEP = {"scalability": "step of growing forget sets", CHAIN: "requests so far"}


def _steps(
    finished: Sequence[tuple[TableRow, Mapping[str, float]]],
) -> Iterator[tuple[str, str, float, Mapping[str, float]]]:
    """Points by the number of the forget set; the original is where each line begins."""
    sets = list(dict.fromkeys(dict(row.settings).get(FORGET_SET) for row, _ in finished))
    number = {name: step for step, name in enumerate((s for s in sets if s is not None), start=1)}
    lines = dict.fromkeys((row.method, row.mask) for row, _ in finished if row.settings)
    for row, results in finished:
        if row.settings:
            yield row.method, row.mask, number[dict(row.settings)[FORGET_SET]], results
        else:
            yield from ((*line, 0, results) for line in lines)


def _points(finished: Sequence[tuple[TableRow, Mapping[str, float]]]) -> list[Point]:
    """A point for each row, which says its ratio where the table has several."""
    rows: dict[TableRow, list[Mapping[str, float]]] = {}
    for row, results in finished:
        rows.setdefault(row, []).append(results)
    ratios = Counter((row.method, row.mask) for row in rows)
    return [
        Point(row.method, row.mask, f"ρ {row.ratio:g}" if several else "", results)
        for row, results in rows.items()
        for several in [row.ratio is not None and ratios[row.method, row.mask] > 1]
    ]


def _kind(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """Runs that take about as long as one another."""
    masked = config["unlearn.mask_path"] is not None
    return config["unlearn.unlearn_method"], config["unlearn.use_lora"], masked


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
