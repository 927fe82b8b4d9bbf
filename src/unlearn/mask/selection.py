"""The k largest of N scores, exactly, without sorting them.

A non-negative float orders as its bit pattern does. Each counting pass fixes some more upper bits
of the k-th largest pattern: it counts the next digit of the patterns that agree with what is fixed
so far. Two such passes give the exact threshold of float32 scores, four that of float64 scores. A
last pass marks what lies above the threshold and as many equals as are still due, the earliest
first. Nothing as long as the scores is kept but one bit per score and ratio.

Several processes each count and mark the scores of their part of every parameter. Their counts are
added up after each pass, so all of them find the same threshold. How many equals each may still
mark, they tell each other tensor by tensor, and then their bits.
"""

from __future__ import annotations

import math
import operator
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby, islice
from operator import itemgetter
from typing import TypeVar

import numpy as np
import torch

from wagle import ranks
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
_BLOCK = 1 << 15  # bytes of packed bits that are unpacked at once

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

    @property
    def splits(self) -> bool:
        """Whether some of the scores equal to the smallest selected one are due, but not all."""
        return 0 < self.due < self.candidates

    def choose(self, patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """What is selected of some patterns in any case, and what may be, as packed bits.

        Called from any thread, while :meth:`settle` decides about earlier tensors.
        """
        due = self.due
        if due == self.candidates:
            return np.packbits(patterns >= self.prefix, bitorder="little"), None
        chosen = np.packbits(patterns > self.prefix, bitorder="little")
        return chosen, np.packbits(patterns == self.prefix, bitorder="little") if due else None

    def settle(self, equal: np.ndarray) -> None:
        """Leave set, of a tensor's packed equals, only those that are due.

        All processes call it, tensor by tensor, each with the bits of its part.
        """
        counts = ranks.everyone(_count_bits(equal))
        _keep_first(equal, max(self.due - sum(counts[: ranks.rank()]), 0))
        self.due -= min(self.due, sum(counts))


def select_top(
    scores: ScoreStream,
    shapes: Mapping[str, torch.Size],
    ratios: Sequence[float],
    *,
    scope: str = "global",
    exclude: Sequence[str] = (),
    parts: Mapping[str, range] | None = None,
    whole: bool = False,
) -> dict[float, Mask]:
    """Select the ``int(N · ratio)`` largest scores, for several ratios in the same passes.

    Equal scores are taken in the order of the stream, which is that of ``shapes`` and then of the
    flat index, so the same scores always give the same mask. +0 and −0 are equal. Scores are ranked
    exactly in the stream's dtype, on the CPU, in as many threads as torch uses.

    Args:
        scores: the stream of scores, all of one floating dtype; read three times (five times if
            float64), and its first chunk once more. Its chunks are best of a size that stays in a
            core's cache with what is made of them.
        shapes: shape of every parameter, in order.
        ratios: shares in [0, 1].
        scope: ``global``: one ranking over all weights; ``layer``: one in each decoder layer and
            one over everything outside the layers; ``tensor``: one in each tensor. N is the number
            of weights in the ranking.
        exclude: kinds of parameters (see ``KINDS``) that are never selected nor counted in N.
        parts: which elements of every flat parameter the stream has; the other processes' streams
            have the others, in the order of ranks. ``None``: all, of one process.
        whole: leave out all scores that are equal to the smallest, where not all of them fit.

    Returns:
        A mask over all parameters for each ratio, on the CPU; the same in all processes.

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
    parts = parts or {name: range(math.prod(shape)) for name, shape in shapes.items()}
    ranking = _Ranking(scores, shapes, parts, scope, exclude)
    targets = {
        group: [_Target(r, k, size) for r in dict.fromkeys(ratios) if (k := int(size * r))]
        for group, size in ranking.sizes.items()
    }
    ranking.find_thresholds(targets)
    for target in (t for of_group in targets.values() for t in of_group if whole and t.splits):
        target.due = 0
    masks = {ratio: {n: BitMask.full(s, False) for n, s in shapes.items()} for ratio in ratios}
    ranking.mark(targets, masks)
    return masks


class _Ranking:
    """Scores in groups that are ranked apart.

    Attributes:
        groups: the group of every parameter that is ranked.
        sizes: number of scores in each group, of all processes.
        dtype: what scores are ranked in; float32 holds the 16-bit ones exactly.
    """

    def __init__(
        self,
        scores: ScoreStream,
        shapes: Mapping[str, torch.Size],
        parts: Mapping[str, range],
        scope: str,
        exclude: Sequence[str],
    ) -> None:
        self.scores = scores
        self.groups = {n: SCOPES[scope](n) for n in shapes if parameter_kind(n) not in exclude}
        self.sizes: Counter[str] = Counter()
        self._held: Counter[str] = Counter()  # of these, this process's
        for name, group in self.groups.items():
            self.sizes[group] += math.prod(shapes[name])
            self._held[group] += len(parts[name])
        self._last = {group: name for name, group in self.groups.items()}  # each group's last
        dtype = torch.float32
        for *_, form in islice(scores(), 1):
            dtype = torch.promote_types(form().dtype, dtype)
        self.dtype = reduce(torch.promote_types, ranks.everyone(dtype))

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

        def count(group: str, start: int, scores: np.ndarray) -> int:
            """Gives the number of scores that have no rank."""
            patterns = _patterns(scores)
            if number == 1 and not (scores.min() >= 0 and patterns.max() < _INFINITY[self.dtype]):
                return int(np.count_nonzero(~((scores >= 0) & (scores < math.inf))))
            prefixes = {target.prefix for target in targets[group]}
            for prefix, some in _agreeing(patterns, prefixes, below + width).items():
                digits = (some >> below) & ((1 << width) - 1)
                with adding:
                    count_of = counts[group][prefix]
                _add_counts(digits, count_of, adding)
            return 0

        missing = self._held.copy()
        for name, chunks in self._tensors(number, count):
            group, unusable = self.groups[name], 0
            for _, length, bad in chunks:
                missing[group] -= length
                unusable += bad
            if number == 1 and (bad := sum(ranks.everyone(unusable))):
                raise WagleError(
                    f"{bad} scores of {name} are not finite and non-negative; the gradients of "
                    "this model and data overflow (try --overall.dtype float32)"
                )
            if name == self._last[group]:
                if missing[group]:
                    raise ValueError(
                        "the stream lacks scores, or has too many (negative): "
                        f"{missing[group]} of {group}"
                    )
                found = {target.prefix: counts[group][target.prefix] for target in targets[group]}
                for count_of in found.values():
                    ranks.add_up(torch.from_numpy(count_of))
                for target in targets[group]:
                    target.descend(found[target.prefix])
                counts.pop(group, None)

    def mark(self, targets: Mapping[str, list[_Target]], masks: Mapping[float, Mask]) -> None:
        """Last pass: set the bits of the selected scores."""

        def choose(
            group: str, start: int, scores: np.ndarray
        ) -> list[tuple[np.ndarray, np.ndarray | None]]:
            patterns = _patterns(scores)
            if start % 8:  # −1, which nothing selects, stands for what is before in the first byte
                patterns = np.pad(patterns, (start % 8, 0), constant_values=-1)
            return [target.choose(patterns) for target in targets[group]]

        for name, chunks in self._tensors(len(_DIGITS[self.dtype]) + 1, choose):
            wanted = targets[self.groups[name]]
            bits = [masks[target.ratio][name].bits.numpy() for target in wanted]
            pairs = list(zip(wanted, bits, strict=True))
            equal = [np.zeros(len(into) * t.splits, np.uint8) for t, into in pairs]
            for start, _, found in chunks:
                for (chosen, undecided), into, aside in zip(found, bits, equal, strict=True):
                    _set_bits(into, start, chosen)
                    if undecided is not None and len(aside):
                        _set_bits(aside, start, undecided)
            for (target, into), aside in zip(pairs, equal, strict=True):
                if target.splits:
                    target.settle(aside)
                    _set_bits(into, 0, aside)
                ranks.add_up(torch.from_numpy(into))  # no bit is set in two processes

    def _tensors(
        self, number: int, work: Callable[[str, int, np.ndarray], Outcome]
    ) -> Iterator[tuple[str, Iterator[tuple[int, int, Outcome]]]]:
        """Every ranked tensor's name and its chunks, all of which have to be asked for.

        A chunk is (start, length, ``work(group, start, flat scores)``). Scores are formed and
        ``work`` runs in other threads, a few chunks ahead. Shows progress as pass ``number``.
        """

        def outcome(
            item: tuple[str, int, Callable[[], torch.Tensor]],
        ) -> tuple[str, tuple[int, int, Outcome]]:
            name, start, form = item
            chunk = form()
            if torch.promote_types(chunk.dtype, self.dtype) != self.dtype:
                raise ValueError(f"scores of {name} are {chunk.dtype}, others {self.dtype}")
            scores = chunk.to("cpu", self.dtype).numpy()
            return name, (start, len(scores), work(self.groups[name], start, scores))

        def progressing() -> Iterator[tuple[str, tuple[int, int, Outcome]]]:
            description = f"selecting, pass {number} of {len(_DIGITS[self.dtype]) + 1}"
            with Progress(description, sum(self._held.values()), "score", scale=True) as bar:
                for done in ordered_map(outcome, (i for i in self.scores() if i[0] in self.groups)):
                    yield done
                    bar.update(done[1][1])

        by_name = groupby(progressing(), key=itemgetter(0))
        ahead = next(by_name, None)
        for name in self.groups:
            if ahead is not None and ahead[0] == name:
                yield name, (chunk for _, chunk in ahead[1])
                ahead = next(by_name, None)
            else:  # none of it is this process's
                yield name, iter(())
        if ahead is not None:
            raise ValueError(f"the stream has scores of {ahead[0]} in another place than shapes")


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


def _set_bits(bits: np.ndarray, start: int, found: np.ndarray) -> None:
    """Set the packed bits that are found, of which the first byte has the bit ``start``."""
    bits[start // 8 : start // 8 + len(found)] |= found


def _count_bits(bits: np.ndarray) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def _keep_first(bits: np.ndarray, count: int) -> None:
    """Clear, in packed bits, all that are set but the first ``count``."""
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK]
        ones = _count_bits(block)
        if ones > count:
            surplus = np.flatnonzero(np.unpackbits(block, bitorder="little"))[count:]
            np.bitwise_and.at(block, surplus >> 3, ~(1 << (surplus & 7)).astype(np.uint8))
        count -= min(count, ones)
