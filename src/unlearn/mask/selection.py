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
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from typing import TypeVar

import numpy as np
import torch

from wagle.errors import WagleError
from wagle.model.architecture import KINDS, layer_index, parameter_kind
from wagle.optim.bitmask import BitMask, Mask
from wagle.optim.threads import ordered_map
from wagle.terminal import Progress
from wagle.unlearn.mask.scores import ScoreStream

SCOPES: dict[str, Callable[[str], str]] = {
    "global": lambda name: "all",
    "layer": lambda name: f"layer {layer_index(name)}",
    "tensor": lambda name: name,
}
"""From a parameter's name to the group it is ranked in."""

# How many bits each counting pass fixes; the sign bit is always clear.
_DIGITS = {torch.float32: (16, 15), torch.float64: (16, 16, 16, 15)}
_INFINITY = {torch.float32: 0xFF << 23, torch.float64: 0x7FF << 52}
_NOTHING = np.empty(0, np.int64)

Outcome = TypeVar("Outcome")


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

    def choose(self, patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What may be selected of some patterns, as packed bits, and which are only equal.

        Called from any thread. For :meth:`settle` to decide, the second has the positions of those
        equal to the prefix where not all such can be selected.
        """
        if not self.due:  # it never grows, so that no earlier chunk can want an equal any more
            return np.packbits(patterns > self.prefix, bitorder="little"), _NOTHING
        chosen = np.packbits(patterns >= self.prefix, bitorder="little")
        if self.due == self.candidates:
            return chosen, _NOTHING
        return chosen, np.flatnonzero(patterns == self.prefix)

    def settle(self, chosen: np.ndarray, equal: np.ndarray) -> np.ndarray:
        """The packed bits without the equals that are not due; called in the order of chunks."""
        surplus = equal[self.due :]
        np.bitwise_and.at(chosen, surplus >> 3, ~(1 << (surplus & 7)).astype(np.uint8))
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
    exactly in the stream's dtype, on the CPU, in as many threads as torch uses.

    Args:
        scores: the stream of scores, all of one floating dtype; read three times (five times if
            float64), and its first chunk once more. Its chunks start at multiples of 8 and are best
            of a size that stays in a core's cache with what is made of them.
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
        *_, form = next(scores())
        self.dtype = torch.promote_types(form().dtype, torch.float32)

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
        counts: dict[str, dict[int, np.ndarray]] = defaultdict(
            lambda: defaultdict(lambda: np.zeros(1 << width, np.int64))
        )
        adding = threading.Lock()

        def count(group: str, scores: np.ndarray) -> bool:
            patterns = _patterns(scores)
            if number == 1 and not (scores.min() >= 0 and patterns.max() < _INFINITY[self.dtype]):
                return False
            prefixes = {target.prefix for target in targets[group]}
            for prefix, some in _agreeing(patterns, prefixes, below + width).items():
                digits = (some >> below) & ((1 << width) - 1)
                with adding:
                    count_of = counts[group][prefix]
                _add_counts(digits, count_of, adding)
            return True

        missing = self.sizes.copy()
        chunks = self._chunks(number, count)
        for name, _, scores, usable in chunks:
            if not usable:
                self._refuse(name, scores, chunks)
            group = self.groups[name]
            missing[group] -= len(scores)
            if not missing[group]:
                for target in targets[group]:
                    target.descend(counts[group][target.prefix])
                counts.pop(group, None)
        if wrong := {group: count for group, count in missing.items() if count}:
            raise ValueError(f"the stream lacks scores, or has too many (negative): {wrong}")

    def mark(self, targets: Mapping[str, list[_Target]], masks: Mapping[float, Mask]) -> None:
        """Last pass: set the bits of the selected scores."""

        def choose(group: str, scores: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
            patterns = _patterns(scores)
            return [target.choose(patterns) for target in targets[group]]

        for name, start, _, chosen in self._chunks(len(_DIGITS[self.dtype]) + 1, choose):
            for target, found in zip(targets[self.groups[name]], chosen, strict=True):
                packed, first = target.settle(*found), start // 8
                masks[target.ratio][name].bits[first : first + len(packed)] = torch.from_numpy(
                    packed
                )

    def _chunks(
        self, number: int, work: Callable[[str, np.ndarray], Outcome]
    ) -> Iterator[tuple[str, int, np.ndarray, Outcome]]:
        """The ranked scores as (name, start, flat chunk, ``work(group, chunk)``), in order.

        Scores are formed and ``work`` runs in other threads, a few chunks ahead. Shows progress as
        pass ``number``.
        """

        def outcome(
            item: tuple[str, int, Callable[[], torch.Tensor]],
        ) -> tuple[str, int, np.ndarray, Outcome]:
            name, start, form = item
            chunk = form()
            if torch.promote_types(chunk.dtype, self.dtype) != self.dtype:
                raise ValueError(f"scores of {name} are {chunk.dtype}, others {self.dtype}")
            scores = chunk.to("cpu", self.dtype).numpy()
            return name, start, scores, work(self.groups[name], scores)

        description = f"selecting, pass {number} of {len(_DIGITS[self.dtype]) + 1}"
        with Progress(description, sum(self.sizes.values()), "score", scale=True) as bar:
            for done in ordered_map(outcome, (i for i in self.scores() if i[0] in self.groups)):
                yield done
                bar.update(len(done[2]))

    def _refuse(
        self,
        name: str,
        scores: np.ndarray,
        following: Iterator[tuple[str, int, np.ndarray, object]],
    ) -> None:
        """Refuse scores that have no rank; ``following`` gives the rest of the tensor's."""
        rest = (chunk for _, _, chunk, _ in takewhile(lambda item: item[0] == name, following))
        bad = sum(np.count_nonzero(~((s >= 0) & (s < math.inf))) for s in (scores, *rest))
        raise WagleError(
            f"{bad} scores of {name} are not finite and non-negative; the gradients of this model "
            "and data overflow (try --overall.dtype float32)"
        )


def _patterns(scores: np.ndarray) -> np.ndarray:
    """Integers that order as the scores do; −0 and +0 have the same."""
    return np.abs(scores).view(f"int{8 * scores.itemsize}")


def _add_counts(values: np.ndarray, counts: np.ndarray, lock: threading.Lock) -> None:
    """Add to ``counts[i]`` how often ``i`` occurs; called from any thread."""
    if 8 * len(values) < len(counts):
        with lock:
            np.add.at(counts, values, 1)
    else:  # unlike numpy's, torch's takes int32 as it is and leaves the interpreter free
        found = torch.bincount(torch.from_numpy(values), minlength=len(counts)).numpy()
        with lock:
            counts += found


def _agreeing(patterns: np.ndarray, prefixes: set[int], below: int) -> dict[int, np.ndarray]:
    """For every prefix, the patterns that have it above their lowest ``below`` bits."""
    if prefixes == {0} and below == 8 * patterns.itemsize - 1:
        return {0: patterns}
    upper = patterns >> below
    if len(prefixes) > 1:  # few patterns agree with any, so the choice among those is quick
        agree = reduce(operator.or_, (upper == prefix for prefix in prefixes))
        patterns, upper = patterns[agree], upper[agree]
    return {prefix: patterns[upper == prefix] for prefix in prefixes}
