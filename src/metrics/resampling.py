"""A run's numbers over its rows as they are, or drawn again with replacement.

A draw takes of each set as many rows as it has, some of them several times: of three rows perhaps
the first, the third and the first again, which counts as (2, 0, 1). What a number is over many such
draws shows how far chance in the choice of questions reaches (Efron 1979). All is computed for many
draws at once, from how often each row was drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from wagle.metrics.benchmark import Metric

Documents = Callable[[str], Any]
"""The content of a run's document by its name, ``None`` where it has none of that name."""
Column = tuple[str, np.ndarray]
"""A set, and a number of each of its rows: float64 ``(rows,)``, NaN where a row has none."""

_AT_ONCE = 1 << 19  # counts of rows that are in memory together


@dataclass
class Draws:
    """How often each row was drawn.

    Args:
        counts: by set, float64 ``(draws, rows)``; a row of it adds up to the number of rows.
    """

    counts: Mapping[str, np.ndarray]
    _quality: dict[tuple[int, int, int], float] = field(default_factory=dict)

    def mean(self, column: Column) -> np.ndarray:
        """Mean over the rows drawn that have the number; float64 ``(draws,)``."""
        role, values = column
        known = ~np.isnan(values)
        counts = self.counts[role]
        return counts @ np.where(known, values, 0.0) / (counts @ known.astype(np.float64))

    def auc(self, larger: Column, smaller: Column) -> np.ndarray:
        """Share of the pairs in which the first set's row has the larger number; ties are half.

        The area under the curve that tells the first set (class 1) from the second (class 0).
        """
        (first, ones), (second, zeros) = larger, smaller
        order = np.argsort(zeros, kind="stable")
        below = _cumulated(self.counts[second][:, order])
        places = [np.searchsorted(zeros[order], ones, side=side) for side in ("left", "right")]
        wins = (below[:, places[0]] + below[:, places[1]]) / 2
        return (self.counts[first] * wins).sum(axis=1) / (len(ones) * len(zeros))

    def smirnov(self, first: Column, second: Column) -> tuple[np.ndarray, np.ndarray]:
        """Two-sample Kolmogorov-Smirnov test: p-values and statistics, ``(draws,)`` each.

        The p-value is what scipy has for that statistic and these sizes. Sets of rows that are
        drawn together, as the same questions to two models, have the same name.
        """
        sizes = len(first[1]), len(second[1])
        pooled = np.concatenate([first[1], second[1]])
        order = np.argsort(pooled, kind="stable")
        last = np.append(np.diff(pooled[order]) > 0, True)  # of equal values
        counts = [self.counts[first[0]] * sizes[1], self.counts[second[0]] * -sizes[0]]
        apart = np.cumsum(np.concatenate(counts, axis=1)[:, order], axis=1)[:, last]
        steps = np.abs(apart).max(axis=1)  # whole numbers: the statistic by the product of sizes
        found, which, back = np.unique(
            np.rint(steps).astype(np.int64), return_index=True, return_inverse=True
        )
        qualities = []
        for step, draw in zip(found.tolist(), which.tolist(), strict=True):
            if (*sizes, step) not in self._quality:
                samples = (
                    np.repeat(column, self.counts[name][draw].astype(int))
                    for name, column in (first, second)
                )
                with warnings.catch_warnings():  # where exact counts overflow scipy estimates
                    warnings.simplefilter("ignore", RuntimeWarning)
                    self._quality[(*sizes, step)] = float(ks_2samp(*samples).pvalue)
            qualities.append(self._quality[(*sizes, step)])
        return np.array(qualities)[back], found[back] / (sizes[0] * sizes[1])


def _cumulated(counts: np.ndarray) -> np.ndarray:
    """Of each draw, how many of the first 0, 1, … rows: ``(draws, rows + 1)``."""
    below = np.zeros((len(counts), counts.shape[1] + 1))
    np.cumsum(counts, axis=1, out=below[:, 1:])
    return below


@dataclass(frozen=True)
class Recount:
    """How a run's numbers follow from its rows.

    Attributes:
        asked: by set, what each row is about, in order.
        numbers: all that follow from rows alone, over any draws of them: float64 ``(draws,)``.
    """

    asked: Mapping[str, Sequence[str]]
    numbers: Callable[[Draws], Mapping[Metric, np.ndarray]]

    @classmethod
    def of_means(
        cls, asked: Mapping[str, Sequence[str]], columns: Mapping[Metric, Column]
    ) -> Recount:
        """Of numbers each of which is the mean of a column."""
        return cls(asked, lambda draws: {m: draws.mean(column) for m, column in columns.items()})

    def as_they_are(self) -> dict[str, float]:
        """The numbers of the rows themselves, by key."""
        counts = {role: np.ones((1, len(rows))) for role, rows in self.asked.items()}
        return {
            metric.key: float(value[0]) for metric, value in self.numbers(Draws(counts)).items()
        }

    def resampled(self, resamples: int, seed: int) -> dict[str, np.ndarray]:
        """The numbers of draws, by key: float64 ``(resamples,)``.

        Runs with the same sets of the same sizes get the same draws.
        """
        blocks = [self.numbers(draws) for draws in self._draws(resamples, seed)]
        return {m.key: np.concatenate([block[m] for block in blocks]) for m in blocks[0]}

    def _draws(self, resamples: int, seed: int) -> Iterator[Draws]:
        sizes = {role: len(rows) for role, rows in self.asked.items()}
        generators = {role: np.random.default_rng([seed, *role.encode()]) for role in sizes}
        block = max(1, _AT_ONCE // sum(sizes.values()))
        known: dict[tuple[int, int, int], float] = {}
        for start in range(0, resamples, block):
            number = min(block, resamples - start)
            counts = {
                role: _counted(generators[role], number, size) for role, size in sizes.items()
            }
            yield Draws(counts, known)


def _counted(generator: np.random.Generator, draws: int, rows: int) -> np.ndarray:
    """How often each of so many rows is drawn."""
    chosen = generator.integers(rows, size=(draws, rows)) + rows * np.arange(draws)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=draws * rows)
    return counts.reshape(draws, rows).astype(np.float64)


def asked_in(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows of a document are about: their questions, or texts."""
    return [str(row["question"] if "question" in row else row["text"]) for row in rows]


def column_of(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """A number of the rows of a document; NaN where a row has none."""
    values = (row.get(key) for row in rows)
    return np.array([np.nan if value is None else value for value in values], np.float64)
