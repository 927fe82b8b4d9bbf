"""Finished runs beside one another, with intervals over the questions that they were asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table as Grid

from wagle.errors import WagleError
from wagle.metrics.benchmark import Benchmark, Headline, Metric
from wagle.metrics.benchmarks import find_metric
from wagle.reporting.bootstrap import (
    RESAMPLES,
    Interval,
    Resampled,
    check_same_questions,
    differences,
    resample,
)
from wagle.reporting.planned import ORIGINAL, RETAIN_ONLY
from wagle.reporting.runs import read_run, read_runs
from wagle.reporting.summary import number
from wagle.terminal import Progress, plain

_NARROW = {ORIGINAL: "orig-\ninal", RETAIN_ONLY: "retain-\nonly"}


@dataclass(frozen=True)
class Compared:
    """Runs that were asked the same.

    Attributes:
        runs: the first is what the others are compared with.
        references: models that do not compete, by their titles: the original, the retain-only one.
    """

    runs: Sequence[Resampled]
    references: Mapping[str, Resampled]

    @classmethod
    def read(
        cls,
        folders: Sequence[Path],
        *,
        titles: Sequence[str] = (),
        original: Path | None = None,
        retain: Path | None = None,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> Compared:
        """From run folders; of references those of the evaluations without training.

        Args:
            titles: of the runs; not given: what they are.

        Raises:
            WagleError: a folder is given twice, a run is not finished, or they were not asked the
                same; a reference is of an unlearned model.
        """
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise WagleError("the same run folder is given twice")
        for folder in folders:
            read_run(folder)  # reading them together leaves out what has not finished
        given = {ORIGINAL: original, RETAIN_ONLY: retain}
        named = {title: read_run(folder, title) for title, folder in given.items() if folder}
        for title, run in named.items():
            if not run.is_original:
                raise WagleError(
                    f"{run.folder} is a run of {run.method}, and no evaluation of the "
                    f"{title.lower()} model: give one with unlearn.unlearn_method origin"
                )
        runs = read_runs(folders)
        if titles:
            runs = [replace(run, title=title) for run, title in zip(runs, titles, strict=True)]
        every = Progress("drawing questions", len(runs) + len(named), "run")
        found = [resample(run, resamples, seed) for run in every.over([*runs, *named.values()])]
        for other in found[1:]:
            check_same_questions(found[0], other)
        references = zip(named, found[len(runs) :], strict=True)
        return cls(found[: len(runs)], dict(references))

    @property
    def everything(self) -> dict[str, Resampled]:
        """All by title, the references last."""
        return {part.run.title: part for part in self.runs} | dict(self.references)

    @property
    def benchmark(self) -> Benchmark:
        return self.runs[0].run.benchmark

    def metric(self, key: str) -> Metric:
        """What a number is."""
        return find_metric(self.benchmark, key) or Metric(key, "", 0)

    def headline(
        self, forgetting: str | None = None, utility: str | None = None
    ) -> Headline | None:
        """The two numbers of the front: those named, or the benchmark's own; ``None``: neither.

        Raises:
            WagleError: a run has no such number, or not from rows.
        """
        own = self.benchmark.headline
        keys = [forgetting or (own and own.forgetting.key), utility or (own and own.utility.key)]
        if None in keys:
            return None
        for key in keys:
            for title, part in self.everything.items():
                if key not in part.values:
                    known = ", ".join(part.values)
                    raise WagleError(f"{title} has no number {key} from its rows; it has: {known}")
        found = Headline(*(self.metric(str(key)) for key in keys))
        if undirected := [metric.key for metric in found if not metric.better]:
            raise WagleError(f"{undirected[0]} has no better and worse, and makes no front")
        return found

    def differences(self) -> dict[str, dict[str, Interval]]:
        """Of each run after the first, by its title: how much larger its numbers are."""
        return {other.run.title: differences(self.runs[0], other) for other in self.runs[1:]}

    def front(self, headline: Headline) -> dict[str, float]:
        """By run, in which share of the draws no other run is better in one and as good in both."""
        points = np.stack(
            [[metric.better * part.draws[metric.key] for metric in headline] for part in self.runs]
        )  # (runs, 2, resamples)
        shares = {}
        for part, point in zip(self.runs, points, strict=True):
            beaten = ((points >= point).all(axis=1) & (points > point).any(axis=1)).any(axis=0)
            shares[part.run.title] = 1.0 - float(beaten.mean())
        return shares

    def document(self, headline: Headline | None) -> dict[str, Any]:
        """The content of ``compare.json``."""
        parts = self.everything
        first = self.runs[0].run.title
        without = sorted(
            {
                key
                for part in parts.values()
                for key, value in part.run.results.items()
                if isinstance(value, float) and key not in part.values and key != "density"
            }
        )
        return {
            "runs": {
                title: {
                    "folder": str(part.run.folder),
                    "fingerprint": part.run.manifest.get("fingerprint"),
                    "numbers": {k: part.interval(k)._asdict() for k in part.values},
                }
                for title, part in parts.items()
            },
            "differences": {
                title: {key: interval._asdict() for key, interval in found.items()}
                for title, found in self.differences().items()
            },
            "differences from": first,
            "questions": {role: len(rows) for role, rows in self.runs[0].asked.items()},
            "numbers without rows": without,
            "front": headline
            and {
                "forgetting": headline.forgetting.key,
                "utility": headline.utility.key,
                "share of draws on it": self.front(headline),
            },
        }

    def tables(self) -> list[Grid]:
        """The benchmark's columns: of each run after the first, and what sets the two apart."""
        if len(self.runs) == 1:
            return [self._alone(self.runs[0])]
        return [self._beside(other) for other in self.runs[1:]]

    def _alone(self, part: Resampled) -> Grid:
        grid = plain_grid(part.run.title, ("value", "95 % interval", *self._narrow))
        for metric in self._columns(part.values):
            found = part.interval(metric.key)
            cells = (number(found.value), f"{found.low:.3f}, {found.high:.3f}")
            grid.add_row(metric.key, *cells, *self._references(metric))
        return grid

    def _beside(self, other: Resampled) -> Grid:
        first, found = self.runs[0], differences(self.runs[0], other)
        heads = ("first", "second", "apart by", "95 % interval", *self._narrow)
        grid = plain_grid(f"first: {first.run.title}; second: {other.run.title}", heads)
        for metric in self._columns(found):
            apart = found[metric.key]
            grid.add_row(
                metric.key,
                *(number(part.values[metric.key]) for part in (first, other)),
                f"{apart.value:+.3f} {'*' if apart.excludes(0) else ' '}",
                f"{apart.low:+.3f}, {apart.high:+.3f}",
                *self._references(metric),
            )
        return grid

    def _columns(self, known: Mapping[str, object]) -> list[Metric]:
        return [metric for metric in self.benchmark.columns if metric.key in known]

    def _references(self, metric: Metric) -> list[str]:
        return [number(part.values.get(metric.key)) for part in self.references.values()]

    @property
    def _narrow(self) -> list[str]:
        return [_NARROW[title] for title in self.references]


def plain_grid(title: str, heads: Sequence[str]) -> Grid:
    """An empty table of numbers by their names, for 80 columns."""
    grid = Grid(
        title=plain(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    grid.add_column("", no_wrap=True)
    for head in heads:
        grid.add_column(head, justify="right", no_wrap=True)
    return grid
