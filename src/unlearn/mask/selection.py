"""The k largest of N scores, exactly, without sorting them.

A non-negative float orders as its bit pattern does. Each counting pass fixes some more upper bits
of the k-th largest pattern: it counts the next digit of the patterns that agree with what is fixed
so far. Two such passes give the exact threshold of float32 scores, four that of float64 scores. A
last pass marks what lies above the threshold and as many equals as are still due, the earliest
first. Nothing as long as the scores is kept but one bit per score and ratio.
"""

from __future__ import annotations

import math
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile

import numpy as np
import torch
from tqdm import tqdm

from src.errors import WagleError
from src.optim.bitmask import BitMask, Mask, pack_bits
from src.unlearn.mask.kinds import KINDS, layer_index, parameter_kind
from src.unlearn.mask.scores import ScoreStream

SCOPES: dict[str, Callable[[str], str]] = {
    "global": lambda name: "all",
    "layer": lambda name: f"layer {layer_index(name)}",
    "tensor": lambda name: name,
}
"""From a parameter's name to the group it is ranked in."""

# How many bits each counting pass fixes; the sign bit is always clear.
_DIGITS = {torch.float32: (16, 15), torch.float64: (16, 16, 16, 15)}
_PATTERNS = {torch.float32: torch.int32, torch.float64: torch.int64}
_INFINITY = {torch.float32: 0xFF << 23, torch.float64: 0x7FF << 52}
_PIECE = 1 << 17  # scores worked on at once on the CPU: all that is made of them stays in the cache

# On the CPU numpy: it compares and gathers faster than torch, and starts no threads, which for
# pieces as small as these wait for one another longer than they work.
_Array = np.ndarray | torch.Tensor


@dataclass
class _Target:
    """One selection: the largest scores of a group for one ratio.

    Attributes:
        due: how many of the patterns that agree with ``prefix`` are to be selected.
        candidates: how many patterns agree with ``prefix``.
        prefix: upper bits of the smallest selected pattern; at last all of them.
    """

    ratio: float
    due: int
    candidates: int
    prefix: int = 0

    def descend(self, counts: np.ndarray) -> None:
        """Extend the prefix by a digit, given how often each of its values occurs."""
        from_top = counts[::-1].cumsum()
        index = int(from_top.searchsorted(self.due))
        digit = len(counts) - 1 - index
        self.candidates = int(counts[digit])
        self.due -= int(from_top[index]) - self.candidates
        self.prefix = self.prefix * len(counts) + digit

    def choose(self, patterns: _Array) -> torch.Tensor:
        """Bools for the next patterns: those above the prefix, and the first ``due`` equals."""
        if not self.due:
            return torch.as_tensor(patterns > self.prefix)
        chosen = torch.as_tensor(patterns >= self.prefix)
        if self.due < self.candidates:
            equal = torch.as_tensor(_positions(patterns == self.prefix))
            chosen[equal[self.due :]] = False
            self.due -= min(len(equal), self.due)
        return chosen


def select_top(
    scores: ScoreStream,
    shapes: Mapping[str, torch.Size],
    ratios: Sequence[float],
    *,
    scope: str = "global",
    exclude: Sequence[str] = (),
) -> dict[float, Mask]:
    """Select the ``int(N · ratio)`` largest scores, for several ratios in the same passes.

    Equal scores are taken in the order of the stream, which is that of ``shapes`` and then of the
    flat index, so the same scores always give the same mask. +0 and −0 are equal. Scores are ranked
    exactly in the stream's dtype. They stay on their device; only counts and packed bits leave it.

    Args:
        scores: the stream of scores, all of one floating dtype; read three times (five times if
            float64), and its first chunk once more. Its chunks start at multiples of 8.
        shapes: shape of every parameter, in order.
        ratios: shares in [0, 1].
        scope: ``global``: one ranking over all weights; ``layer``: one in each decoder layer and
            one over everything outside the layers; ``tensor``: one in each tensor. N is the number
            of weights in the ranking.
        exclude: kinds of parameters (see ``KINDS``) that are never selected nor counted in N.

    Returns:
        A mask over all parameters for each ratio, on the CPU.

    Raises:
        WagleError: a score is negative, infinite or not a number; the message names the tensor. Or
            no parameter is of a kind that is to be excluded.
        ValueError: an argument is not as described here.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope is one of {', '.join(SCOPES)}, got {scope!r}")
    if unknown := set(exclude) - set(KINDS):
        raise ValueError(f"kinds to exclude are among {', '.join(KINDS)}, got {sorted(unknown)}")
    there = {parameter_kind(name) for name in shapes}
    if absent := set(exclude) - there:
        raise WagleError(
            f"no parameter is of the kind {', '.join(sorted(absent))}, which is to be excluded "
            f"(unlearn.mask_exclude); there are {', '.join(k for k in KINDS if k in there)}. A "
            "head that is tied to the embedding is of the kind embedding"
        )
    if wrong := [ratio for ratio in ratios if not 0 <= ratio <= 1]:
        raise ValueError(f"a ratio lies in [0, 1], got {wrong}")
    ranking = _Ranking(scores, shapes, scope, exclude)
    targets = {
        group: [_Target(r, k, size) for r in dict.fromkeys(ratios) if (k := int(size * r))]
        for group, size in ranking.sizes.items()
    }
    ranking.find_thresholds(targets)
    masks = {ratio: {n: BitMask.full(s, False) for n, s in shapes.items()} for ratio in ratios}
    ranking.mark(targets, masks)
    return masks


class _Ranking:
    """Scores in groups that are ranked apart.

    Attributes:
        groups: the group of every parameter that is ranked.
        sizes: number of scores in each group.
        dtype: what scores are ranked in; float32 holds the 16-bit ones exactly.
    """

    def __init__(
        self,
        scores: ScoreStream,
        shapes: Mapping[str, torch.Size],
        scope: str,
        exclude: Sequence[str],
    ) -> None:
        self.scores = scores
        self.groups = {n: SCOPES[scope](n) for n in shapes if parameter_kind(n) not in exclude}
        self.sizes: Counter[str] = Counter()
        for name, group in self.groups.items():
            self.sizes[group] += math.prod(shapes[name])
        *_, first_chunk = next(scores())
        self.dtype = torch.promote_types(first_chunk.dtype, torch.float32)

    def find_thresholds(self, targets: Mapping[str, list[_Target]]) -> None:
        """Give every target its whole prefix, one digit a pass."""
        below = sum(_DIGITS[self.dtype])
        for number, width in enumerate(_DIGITS[self.dtype], start=1):
            below -= width
            self._count_digit(targets, width, below, number)

    def _count_digit(
        self, targets: Mapping[str, list[_Target]], width: int, below: int, number: int
    ) -> None:
        """One counting pass, over the digit of ``width`` bits that has ``below`` bits below it.

        A group's counts exist from its first score to its last, so few are held at a time.
        """
        counts: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        missing = self.sizes.copy()
        pieces = self._pieces(number)
        for name, _, piece in pieces:
            group = self.groups[name]
            patterns = _patterns(piece, self.dtype)
            if number == 1:
                self._check(name, piece, patterns, pieces)
            prefixes = {target.prefix for target in targets[group]}
            for prefix, inside in _agreeing(patterns, prefixes, below + width).items():
                found = _histogram((inside >> below) & ((1 << width) - 1), 1 << width)
                if prefix in counts[group]:
                    counts[group][prefix] += found
                else:
                    counts[group][prefix] = found
            missing[group] -= len(piece)
            if not missing[group]:
                for target in targets[group]:
                    target.descend(counts[group][target.prefix])
                counts.pop(group, None)
        if wrong := {group: count for group, count in missing.items() if count}:
            raise ValueError(f"the stream lacks scores, or has too many (negative): {wrong}")

    def mark(self, targets: Mapping[str, list[_Target]], masks: Mapping[float, Mask]) -> None:
        """Last pass: set the bits of the selected scores."""
        for name, start, piece in self._pieces(len(_DIGITS[self.dtype]) + 1):
            patterns = _patterns(piece, self.dtype)
            for target in targets[self.groups[name]]:
                packed = pack_bits(target.choose(patterns)).cpu()
                first = start // 8
                masks[target.ratio][name].bits[first : first + len(packed)] = packed

    def _pieces(self, number: int) -> Iterator[tuple[str, int, _Array]]:
        """The ranked scores as (name, start, flat piece), with a progress bar for the pass."""
        with tqdm(
            desc=f"selecting, pass {number} of {len(_DIGITS[self.dtype]) + 1}",
            total=sum(self.sizes.values()),
            unit="score",
            unit_scale=True,
            disable=None,
        ) as bar:
            for name, start, chunk in self.scores():
                if name not in self.groups:
                    continue
                if torch.promote_types(chunk.dtype, self.dtype) != self.dtype:
                    raise ValueError(f"scores of {name} are {chunk.dtype}, others {self.dtype}")
                if chunk.device.type != "cpu":
                    yield name, start, chunk.to(self.dtype)
                else:
                    for offset in range(0, len(chunk), _PIECE):
                        piece = chunk[offset : offset + _PIECE].to(self.dtype)
                        yield name, start + offset, piece.numpy()
                bar.update(len(chunk))

    def _check(
        self,
        name: str,
        piece: _Array,
        patterns: _Array,
        following: Iterator[tuple[str, int, _Array]],
    ) -> None:
        """Refuse scores that have no rank; ``following`` gives the rest of the tensor's."""
        if piece.min() >= 0 and patterns.max() < _INFINITY[self.dtype]:
            return
        rest = (scores for _, _, scores in takewhile(lambda item: item[0] == name, following))
        bad = sum(len(_positions(~((s >= 0) & (s < math.inf)))) for s in (piece, *rest))
        raise WagleError(
            f"{bad} scores of {name} are not finite and non-negative; the gradients of this model "
            "and data overflow (try --overall.dtype float32)"
        )


def _patterns(piece: _Array, dtype: torch.dtype) -> _Array:
    """Integers that order as the scores do."""
    if isinstance(piece, np.ndarray):  # abs turns −0 into +0
        return np.abs(piece).view(f"int{8 * dtype.itemsize}")
    return piece.abs().view(_PATTERNS[dtype])


def _agreeing(patterns: _Array, prefixes: set[int], below: int) -> dict[int, _Array]:
    """For every prefix, the patterns that have it above their lowest ``below`` bits."""
    if prefixes == {0} and below == 8 * patterns.itemsize - 1:
        return {0: patterns}
    upper = patterns >> below
    if len(prefixes) > 1:  # few patterns agree with any, so the choice among those is quick
        agree = reduce(operator.or_, (upper == prefix for prefix in prefixes))
        patterns, upper = patterns[agree], upper[agree]
    return {prefix: patterns[upper == prefix] for prefix in prefixes}


def _histogram(values: _Array, bins: int) -> np.ndarray:
    """How often each of 0 … ``bins`` − 1 occurs, int64."""
    if isinstance(values, np.ndarray):
        return np.bincount(values, minlength=bins)
    return torch.bincount(values, minlength=bins).cpu().numpy()


def _positions(flags: _Array) -> _Array:
    """Indices of the true flags, ascending."""
    if isinstance(flags, np.ndarray):
        return np.flatnonzero(flags)
    return flags.nonzero().squeeze(1)
