"""Several runs' numbers as one: mean, spread, and whether one is better than others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

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


def clearly_best(
    spreads: Sequence[Spread | None],
    better: int,
    draws: Sequence[np.ndarray | None] | None = None,
) -> int | None:
    """Index of the one that is better than all others by more than chance, if there is one.

    Its interval lies beyond the intervals of all others; where draws are known of both, 95 % of the
    draws' differences do as well, and single seeds, which have no interval, are told apart by these
    alone.

    Args:
        better: 1 where more is better, -1 where less is, 0 where nothing is.
        draws: of each, its mean over the seeds in draws of the questions, float64 ``(draws,)``, the
            same for all; ``None`` where there are no rows to draw.
    """
    draws = draws or [None] * len(spreads)
    present = [(index, spread) for index, spread in enumerate(spreads) if spread is not None]
    if not better or len(present) < 2:
        return None
    index, best = max(present, key=lambda pair: better * pair[1].mean)
    ours, drawn = _ends(best), draws[index]
    for other, spread in present:
        if other == index:
            continue
        theirs, beside = _ends(spread), draws[other]
        paired = drawn is not None and beside is not None
        if drawn is not None and beside is not None and not _beyond(better * (drawn - beside)):
            return None
        if ours is None or theirs is None:
            if not paired:
                return None
        elif max(better * end for end in theirs) >= min(better * end for end in ours):
            return None
    return index


def _beyond(differences: np.ndarray) -> bool:
    """Whether the middle 95 % lie above 0."""
    import numpy as np

    return bool(np.quantile(differences, (1 - CONFIDENCE) / 2) > 0)


def _ends(spread: Spread) -> tuple[float, ...] | None:
    """Of the interval; an infinite mean is certain, a single run could have come out elsewhere."""
    return (spread.mean,) if math.isinf(spread.mean) else spread.interval
