"""The k largest of N scores, exactly, without sorting them.

A non-negative float32 orders as its bit pattern does. Two passes of counting (the upper 16 bits,
then the lower 15 bits within the bin that holds the k-th largest) give the exact threshold; a third
pass marks what lies above it and as many equals as are still due, the earliest first. Nothing as
long as the scores is kept but one bit per score and ratio.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from src.errors import WagleError
from src.optim.bitmask import BitMask, Mask, pack_bits
from src.unlearn.mask.kinds import layer_index, parameter_kind
from src.unlearn.mask.scores import ScoreStream

_LOW_BITS = 15
_HIGH_BINS = 1 << 16  # the sign bit is always clear
_LOW_BINS = 1 << _LOW_BITS
_INFINITY = 0x7F800000  # this bit pattern and all above it are infinite or not a number


@dataclass
class _Target:
    """One selection: the ``k`` largest of a group's scores for one ratio."""

    group: str
    ratio: float
    k: int
    bin: int = -1  # upper bits of the k-th largest score
    due: int = 0  # how many are to be taken from that bin, later from the equals
    threshold: int = _INFINITY  # bit pattern of the k-th largest score


def select_top(
    scores: ScoreStream,
    shapes: Mapping[str, torch.Size],
    ratios: Sequence[float],
    *,
    scope: str = "global",
    exclude: Sequence[str] = (),
) -> dict[float, Mask]:
    """Select the ``int(N · ratio)`` largest scores, for several ratios in the same passes.

    Equal scores are taken in the order of ``shapes`` and then of the flat index, so the same scores
    always give the same mask. +0 and −0 are equal. Wider scores are ranked as float32.

    Args:
        scores: the stream of scores; read three times.
        shapes: shape of every parameter, in order.
        ratios: shares in [0, 1].
        scope: ``global``: one ranking over all weights; ``layer``: one in each decoder layer and
            one over everything outside the layers; ``tensor``: one in each tensor.
        exclude: kinds of parameters (see ``parameter_kind``) that are never selected nor counted.

    Returns:
        A mask over all parameters for each ratio.

    Raises:
        WagleError: a score is negative, infinite or not a number; the message names the tensor.
    """
    groups = {name: _group(name, scope) for name in shapes if parameter_kind(name) not in exclude}
    sizes: dict[str, int] = {}
    for name, group in groups.items():
        sizes[group] = sizes.get(group, 0) + shapes[name].numel()
    targets = [
        _Target(group, ratio, int(size * ratio))
        for group, size in sizes.items()
        for ratio in ratios
    ]
    masks = {ratio: {n: BitMask.full(s, False) for n, s in shapes.items()} for ratio in ratios}
    _find_bins(scores, groups, targets)
    _find_thresholds(scores, groups, targets)
    _mark(scores, groups, targets, masks)
    return masks


def _group(name: str, scope: str) -> str:
    if scope == "global":
        return "all"
    if scope == "tensor":
        return name
    return f"layer {layer_index(name)}"


def _bit_patterns(
    scores: ScoreStream, groups: Mapping[str, str], description: str
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Chunks of the ranked scores as int32 bit patterns that order as the scores do."""
    with tqdm(desc=description, unit="score", unit_scale=True, disable=None) as bar:
        for name, start, chunk in scores():
            if name in groups:
                # adding +0 turns −0 into +0
                yield name, start, chunk.float().add(0.0).view(torch.int32)
            bar.update(chunk.numel())


def _find_bins(scores: ScoreStream, groups: Mapping[str, str], targets: list[_Target]) -> None:
    """First pass: the bin of each target's k-th largest score, by the upper 16 bits."""
    counts = {t.group: torch.zeros(_HIGH_BINS, dtype=torch.int64) for t in targets}
    for name, _, bits in _bit_patterns(scores, groups, "selecting, pass 1 of 3"):
        low, high = (int(value) for value in bits.aminmax())
        if low < 0 or high >= _INFINITY:
            bad = int(((bits < 0) | (bits >= _INFINITY)).sum())
            raise WagleError(
                f"{bad} scores of {name} are not finite and non-negative; the gradients of this "
                "model and data overflow (try --overall.dtype float32)"
            )
        counts[groups[name]] += torch.bincount(bits >> _LOW_BITS, minlength=_HIGH_BINS).cpu()
    for target in targets:
        if target.k:
            target.bin, target.due = _locate(counts[target.group], target.k)


def _locate(counts: torch.Tensor, k: int) -> tuple[int, int]:
    """The bin of the k-th largest, and how many of the k are in that bin."""
    from_top = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_top, k))
    above = int(from_top[index - 1]) if index else 0
    return len(counts) - 1 - index, k - above


def _find_thresholds(
    scores: ScoreStream, groups: Mapping[str, str], targets: list[_Target]
) -> None:
    """Second pass: the exact k-th largest score, by the lower bits within its bin."""
    bins = {(t.group, t.bin): torch.zeros(_LOW_BINS, dtype=torch.int64) for t in targets if t.k}
    by_group: dict[str, list[int]] = {}
    for group, bin_ in bins:
        by_group.setdefault(group, []).append(bin_)
    for name, _, bits in _bit_patterns(scores, groups, "selecting, pass 2 of 3"):
        upper = bits >> _LOW_BITS
        for bin_ in by_group.get(groups[name], ()):
            lower = bits[upper == bin_] & (_LOW_BINS - 1)
            if lower.numel():
                bins[groups[name], bin_] += torch.bincount(lower, minlength=_LOW_BINS).cpu()
    for target in targets:
        if target.k:
            lower_bits, target.due = _locate(bins[target.group, target.bin], target.due)
            target.threshold = (target.bin << _LOW_BITS) | lower_bits


def _mark(
    scores: ScoreStream,
    groups: Mapping[str, str],
    targets: list[_Target],
    masks: dict[float, Mask],
) -> None:
    """Third pass: set the bits of the selected scores."""
    by_group: dict[str, list[_Target]] = {}
    for target in targets:
        by_group.setdefault(target.group, []).append(target)
    for name, start, bits in _bit_patterns(scores, groups, "selecting, pass 3 of 3"):
        for target in by_group[groups[name]]:
            chosen = bits > target.threshold
            if target.due:
                equal = (bits == target.threshold).nonzero().squeeze(1)[: target.due]
                chosen[equal] = True
                target.due -= equal.numel()
            packed = pack_bits(chosen.cpu())
            masks[target.ratio][name].bits[start // 8 : start // 8 + packed.numel()] = packed
