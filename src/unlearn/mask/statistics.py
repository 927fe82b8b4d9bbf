"""What a mask selects, how alike two masks are, how scores are spread.

Masks are counted on their packed bits, scores as they stream by: nothing as long as the model is
made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from wagle import ranks
from wagle.errors import WagleError
from wagle.model.architecture import KINDS, layer_index, parameter_kind
from wagle.optim.bitmask import BitMask, Mask
from wagle.optim.threads import ordered_map
from wagle.unlearn.mask.scores import ScoreStream

LayerKindTable = dict[str, dict[str, float]]
"""A number for each layer (``"0"``, ``"1"``, … and ``"outside"``) and, in it, each kind."""


def density(mask: Mask) -> float:
    """Share of all weights that are selected."""
    return sum(m.count() for m in mask.values()) / sum(m.numel for m in mask.values())


def density_by(mask: Mask, what: str) -> dict[str, float]:
    """Selected share per ``layer``, per ``kind`` or per ``tensor``.

    Weights outside the decoder layers are the layer ``"outside"``.
    """
    totals: dict[str, list[int]] = {}
    for name, bits in mask.items():
        group = {
            "layer": layer_of(name),
            "kind": parameter_kind(name),
            "tensor": name,
        }[what]
        total = totals.setdefault(group, [0, 0])
        total[0] += bits.count()
        total[1] += bits.numel
    return {group: selected / size for group, (selected, size) in totals.items()}


def density_table(mask: Mask) -> LayerKindTable:
    """Selected share per layer and kind of parameter."""
    return _table((name, bits.count(), bits.numel) for name, bits in mask.items())


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to, as tables name it."""
    index = layer_index(name)
    return "outside" if index is None else str(index)


def _table(parts: Iterable[tuple[str, int, int]]) -> LayerKindTable:
    """Quotients per layer and kind, from (parameter name, dividend, divisor); 0 / 0 is 1."""
    sums: dict[str, dict[str, list[int]]] = {}
    for name, dividend, divisor in parts:
        cell = sums.setdefault(layer_of(name), {}).setdefault(parameter_kind(name), [0, 0])
        cell[0] += dividend
        cell[1] += divisor
    return {
        layer: {
            kind: row[kind][0] / row[kind][1] if row[kind][1] else 1.0
            for kind in KINDS
            if kind in row
        }
        for layer, row in sums.items()
    }


def jaccard(first: Mask, second: Mask) -> tuple[float, dict[str, float]]:
    """Size of the intersection over size of the union: overall, and per tensor.

    Two empty selections are alike (1).

    Raises:
        WagleError: the masks are of different models.
    """
    counts = _overlaps(first, second)
    both, either = map(sum, zip(*counts.values(), strict=True))
    per_tensor = {name: b / e if e else 1.0 for name, (b, e) in counts.items()}
    return (both / either if either else 1.0), per_tensor


def jaccard_table(first: Mask, second: Mask) -> LayerKindTable:
    """As :func:`jaccard`, per layer and kind of parameter.

    Raises:
        WagleError: the masks are of different models.
    """
    return _table((name, *counts) for name, counts in _overlaps(first, second).items())


def chance_jaccard(first: Mask, second: Mask) -> float:
    """What :func:`jaccard` would be near if both masks had chosen their weights at random.

    For densities a and b, independent selections share ab of all weights and cover a + b − ab.
    """
    a, b = density(first), density(second)
    return a * b / (a + b - a * b) if a or b else 1.0


def complement(mask: Mask) -> Mask:
    """What a mask leaves out."""
    return combined("difference", [_full(mask), mask])


def _full(mask: Mask) -> Mask:
    return {name: BitMask.full(bits.shape, True) for name, bits in mask.items()}


def random_alike(mask: Mask, seed: int) -> Mask:
    """A random mask that selects as many weights of each tensor as another one.

    The same for a seed on every machine: the counts of chunks are drawn first, then positions.
    """
    drawn = {}
    for number, (name, bits) in enumerate(mask.items()):
        generator = np.random.default_rng([seed, number])
        left, selected = bits.numel, bits.count()
        parts = []
        while left:
            size = min(left, _RANDOM_BLOCK)
            count = int(generator.hypergeometric(selected, left - selected, size))
            flags = np.zeros(size, bool)
            flags[generator.permutation(size)[:count]] = True
            parts.append(np.packbits(flags, bitorder="little"))
            left, selected = left - size, selected - count
        packed = torch.from_numpy(np.concatenate(parts or [np.empty(0, np.uint8)]))
        drawn[name] = BitMask(packed, bits.shape)
    return drawn


_RANDOM_BLOCK = 1 << 20  # weights, a multiple of 8


def combined(how: str, masks: Sequence[Mask]) -> Mask:
    """One mask of several of the same model.

    Args:
        how: ``union``, ``intersection``, or ``difference``: what the first selects and none of the
            others.

    Raises:
        WagleError: the masks are of different models.
    """
    result = masks[0]
    for mask in masks[1:]:
        _overlaps(result, mask)
        result = {
            name: BitMask(_OPERATIONS[how](bits.bits, mask[name].bits), bits.shape)
            for name, bits in result.items()
        }
    return result


_OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "union": torch.bitwise_or,
    "intersection": torch.bitwise_and,
    "difference": lambda first, second: first & ~second,
}


def _overlaps(first: Mask, second: Mask) -> dict[str, tuple[int, int]]:
    """Sizes of intersection and union, per tensor."""
    if {n: m.shape for n, m in first.items()} != {n: m.shape for n, m in second.items()}:
        raise WagleError("the masks name other parameters or shapes: they are of different models")
    return {
        name: (
            _count(a.bits & second[name].bits, a.shape),
            _count(a.bits | second[name].bits, a.shape),
        )
        for name, a in first.items()
    }


def _count(bits: torch.Tensor, shape: torch.Size) -> int:
    return BitMask(bits, shape).count()


_BINS_PER_OCTAVE = 8
_MANTISSAS = 2.0 ** (np.arange(_BINS_PER_OCTAVE) / _BINS_PER_OCTAVE - 1)  # bounds within an octave
_LOWEST, _HIGHEST = -1074, 1025  # exponents of float64: every positive float has its bin


@dataclass(frozen=True)
class ScoreHistogram:
    """How often scores of each size occur, in bins of equal width on a logarithmic axis.

    Attributes:
        edges: float64 ``(bins + 1,)``, increasing; eight bins for every factor of two.
        counts: int64 ``(bins,)``.
        zeros: scores that are exactly 0, which no logarithmic bin holds.
    """

    edges: np.ndarray
    counts: np.ndarray
    zeros: int

    @property
    def total(self) -> int:
        """Number of scores."""
        return self.zeros + int(self.counts.sum())

    def threshold(self, ratio: float) -> float:
        """The score that the share ``ratio`` of all weights reaches, right to within its bin.

        Within a bin scores are taken to be spread evenly on the logarithmic axis. 0 where the
        share takes in zero scores.
        """
        below = (1 - ratio) * self.total - self.zeros
        if below < 0 or not len(self.counts):
            return 0.0
        reached = np.concatenate([[0], self.counts.cumsum()])
        return float(np.exp2(np.interp(below, reached, np.log2(self.edges))))


def score_histogram(scores: ScoreStream) -> ScoreHistogram:
    """Count scores in one pass over their stream, those of all processes.

    Args:
        scores: the stream of scores, non-negative and finite.

    Raises:
        WagleError: a score is negative, infinite or NaN.
    """
    unusable = None
    counts = np.zeros((_HIGHEST - _LOWEST) * _BINS_PER_OCTAVE, dtype=np.int64)
    zeros = 0
    for name, values in ordered_map(lambda chunk: (chunk[0], chunk[2]().numpy()), scores()):
        if not (np.isfinite(values).all() and (values >= 0).all()):
            unusable = name
            break
        positive = values[values > 0]
        zeros += values.size - positive.size
        counts += np.bincount(_bins(positive), minlength=counts.size)
    for name in filter(None, ranks.everyone(unusable)):
        raise WagleError(f"the scores of {name} are not all finite and at least 0")
    ranks.add_up(torch.from_numpy(counts))
    zeros = sum(ranks.everyone(zeros))
    used = np.flatnonzero(counts)
    first, stop = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
    octaves, parts = np.divmod(np.arange(first, stop + 1), _BINS_PER_OCTAVE)
    with np.errstate(over="ignore"):
        edges = np.ldexp(_MANTISSAS[parts], octaves + _LOWEST + 1)
    largest = np.finfo(np.float64).max  # no further than a float goes
    return ScoreHistogram(np.minimum(edges, largest), counts[first:stop], zeros)


def _bins(positive: np.ndarray) -> np.ndarray:
    """The bin of each score, by comparing alone: a logarithm's last bit depends on the machine."""
    mantissas, exponents = np.frexp(positive.astype(np.float64))
    parts = _MANTISSAS.searchsorted(mantissas, side="right") - 1
    return (exponents.astype(np.int64) - 1 - _LOWEST) * _BINS_PER_OCTAVE + parts
