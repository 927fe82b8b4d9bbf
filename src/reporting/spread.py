"""Several runs' numbers as one: mean, spread, and whether one is better than others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


class Spread(NamedTuple):
    """Numbers of runs that differ by their seed alone.

    Attributes:
        mean: of all.
        deviation: sample standard deviation (divisor n − 1); ``None`` of a single number, and where
            one is infinite.
        size: how many there are.
    """

    mean: float
    deviation: float | None
    size: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread | None:
        """Of the numbers; ``None`` where there are none."""
        if not numbers:
            return None
        finite = all(map(math.isfinite, numbers))
        deviation = statistics.stdev(numbers) if finite and len(numbers) > 1 else None
        return cls(statistics.fmean(numbers), deviation, len(numbers))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean (Student's t); ``None`` of a single number."""
        if self.deviation is None:
            return None
        from scipy.special import stdtrit

        quantile = float(stdtrit(self.size - 1, (1 + CONFIDENCE) / 2))
        half = quantile * self.deviation / math.sqrt(self.size)
        return self.mean - half, self.mean + half


def clearly_best(spreads: Sequence[Spread | None], better: int) -> int | None:
    """Index of the one whose interval lies beyond the intervals of all others, if there is one.

    Args:
        better: 1 where more is better, -1 where less is, 0 where nothing is.
    """
    present = [(index, spread) for index, spread in enumerate(spreads) if spread is not None]
    if not better or len(present) < 2:
        return None
    index, best = max(present, key=lambda pair: better * pair[1].mean)
    edge = _ends(best)
    if edge is None:
        return None
    nearest = min(better * end for end in edge)
    for other, spread in present:
        ends = _ends(spread)
        if other != index and (ends is None or max(better * end for end in ends) >= nearest):
            return None
    return index


def _ends(spread: Spread) -> tuple[float, ...] | None:
    """Of the interval; an infinite mean is certain, a single run could have come out elsewhere."""
    return (spread.mean,) if math.isinf(spread.mean) else spread.interval
