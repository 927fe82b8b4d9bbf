"""Averages of numbers, and of arrays with one number for each of several draws of the rows.

numpy is imported for arrays alone: what a benchmark is should be read fast.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

Number = TypeVar("Number", float, "np.ndarray")


def mean(values: Iterable[Number]) -> Number:
    """Plain mean; of arrays, elementwise."""
    parts = list(values)
    if isinstance(parts[0], float | int):
        return statistics.fmean(parts)
    import numpy as np

    return np.mean(parts, axis=0)


def harmonic_mean(values: Iterable[Number]) -> Number:
    """0 where one of them is, and rounding below 0 is 0; of arrays, elementwise."""
    parts = list(values)
    if isinstance(parts[0], float | int):
        return float(statistics.harmonic_mean([max(part, 0.0) for part in parts]))
    import numpy as np

    with np.errstate(divide="ignore"):
        return len(parts) / np.sum([1 / np.maximum(part, 0.0) for part in parts], axis=0)


def within(value: Number, lowest: float, highest: float) -> Number:
    """The nearest that lies between two bounds; of an array, elementwise."""
    if isinstance(value, float | int):
        return min(max(value, lowest), highest)
    return value.clip(lowest, highest)
