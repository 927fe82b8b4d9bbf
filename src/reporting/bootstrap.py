"""How far chance in the choice of questions reaches: intervals of finished runs, from their rows.

The rows of each set are drawn again with replacement, the same ones for every run, and the numbers
are made of them as they were made of all rows. Two runs of the same model that differ in a few
answers differ in few draws, although either alone varies a lot: that is why draws are paired. The
intervals hold the middle 95 % of the draws (the percentile method of Efron 1979).

Example::

    first, second = (resample(read_run(folder)) for folder in folders)
    differences(first, second)["UT Avg"]       # Interval(value=-0.021, low=-0.034, high=-0.009)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from wagle.errors import WagleError
from wagle.reporting.runs import Run
from wagle.reporting.spread import CONFIDENCE
from wagle.terminal import Progress, say

RESAMPLES = 10_000
Drawn = Mapping[str, Mapping[str, np.ndarray]]
"""By run folder and number, what the number is in draws of the questions: float64 ``(draws,)``."""
_WRONG_FORM = (KeyError, TypeError, ValueError, AttributeError, IndexError)


class Interval(NamedTuple):
    """A number of all rows, and between what it lies in the middle 95 % of the draws."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether a value lies outside."""
        return not self.low <= value <= self.high

    @classmethod
    def of(cls, value: float, draws: np.ndarray) -> Interval:
        """Of what a number is in each draw."""
        rest = (1 - CONFIDENCE) / 2
        low, high = np.quantile(draws, [rest, 1 - rest])
        return cls(value, float(low), float(high))


@dataclass(frozen=True)
class Resampled:
    """A run and its numbers over draws of its rows.

    Attributes:
        asked: by set, what each row is about, in order.
        values: of all rows, by key; of the run's results those that follow from rows.
        draws: the same of each draw, float64 ``(resamples,)``.
    """

    run: Run
    asked: Mapping[str, Sequence[str]]
    values: Mapping[str, float]
    draws: Mapping[str, np.ndarray]

    def interval(self, key: str) -> Interval:
        """Of a number by itself."""
        return Interval.of(self.values[key], self.draws[key])

    def minus(self, other: Resampled, key: str) -> Interval:
        """Of how much larger a number is than another run's, question by question."""
        value = self.values[key] - other.values[key]
        return Interval.of(value, self.draws[key] - other.draws[key])


def resample(run: Run, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """A run's numbers over draws of its rows, without a model.

    Args:
        resamples: how many draws.
        seed: of the draws, which are the same for all runs that were asked the same.

    Raises:
        WagleError: its benchmark keeps no rows, its documents are damaged, or its results are not
            what its rows give.
    """
    if run.benchmark.recount is None:
        raise WagleError(
            f"the run in {run.folder} is of the benchmark {run.benchmark.name}: it keeps no rows "
            "that its numbers could be made of again: there are no intervals over questions"
        )
    try:
        recount = run.benchmark.recount(run.document, run.config)
        found = recount.as_they_are()
    except _WRONG_FORM as error:
        raise WagleError(
            f"the rows of the run in {run.folder} are not complete, or damaged "
            f"({type(error).__name__}: {error})"
        ) from error
    # Where results of another model are gone, rows give other numbers than with them.
    values = {key: value for key, value in found.items() if key in run.results}
    for key, value in values.items():
        written = run.results[key]
        if written is None or not math.isclose(value, written, rel_tol=1e-6, abs_tol=1e-9):
            raise WagleError(
                f"the rows of the run in {run.folder} give {key} {value:.6g}, and its results say "
                f"{written}: another version made them, or evaluation.retain_results or "
                "original_results names another file by now"
            )
    draws = recount.resampled(resamples, seed)
    return Resampled(run, recount.asked, values, {key: draws[key] for key in values})


def check_same_questions(first: Resampled, second: Resampled) -> None:
    """Make sure that two runs were asked the same, so that their rows can be paired.

    Raises:
        WagleError: they were not; the message says of which set.
    """
    for role in dict.fromkeys([*first.asked, *second.asked]):
        one, other = (list(part.asked.get(role, [])) for part in (first, second))
        if one != other:
            same = len(set(one) & set(other))
            raise WagleError(
                f"the runs in {first.run.folder} and {second.run.folder} were not asked the same: "
                f"of the set {role} {len(one)} and {len(other)} rows, {same} in common or in "
                "another order; compare runs with the same data sets and evaluation.limit"
            )


def differences(first: Resampled, second: Resampled) -> dict[str, Interval]:
    """How much larger each number of the second run is, with its paired 95 % interval.

    Raises:
        WagleError: the runs were not asked the same.
    """
    check_same_questions(first, second)
    return {key: second.minus(first, key) for key in second.values if key in first.values}


def draw_questions(runs: Sequence[Run], numbers: Container[str]) -> Drawn:
    """Draws for what is marked as best: of those numbers, where all runs share their questions.

    Where they do not, or one run's rows do not give its results, that is said, and there are none.
    """
    if any(run.benchmark.recount is None for run in runs):
        return {}
    if not any(name in numbers for run in runs for name in run.results):
        return {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    first: Resampled | None = None
    try:
        for run in Progress("drawing questions", len(runs), "run").over(runs):
            found = resample(run)
            first = first or found
            check_same_questions(first, found)
            drawn[str(run.folder)] = {k: v for k, v in found.draws.items() if k in numbers}
    except WagleError as error:
        say(f"note: best cells are marked by seeds alone: {error}", sys.stderr)
        return {}
    return drawn


def mean_draws(drawn: Drawn, folders: Sequence[str], name: str) -> np.ndarray | None:
    """A number's mean over runs in each draw; ``None`` where it is not known of all of them."""
    found = [drawn.get(folder, {}).get(name) for folder in folders]
    known = [draws for draws in found if draws is not None]
    return np.mean(known, axis=0) if known and len(known) == len(found) else None
