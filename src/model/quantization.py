"""Weight-only quantisation in plain torch: what rounding to few bits does to an unlearned model.

Each linear layer of the decoder blocks becomes the nearest of few values; embedding, norms and head
stay. The model still computes with ordinary weights, so that any device can measure it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from wagle.model.architecture import linear_names
from wagle.optim.bitmask import Mask
from wagle.terminal import Progress

GROUP = 64  # weights that share a scale, in the row-major order of the layer, as in bitsandbytes

NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Quantiles of a normal distribution (Dettmers et al. 2023, arXiv 2305.14314, appendix E)."""

_FP4_POSITIVE = (1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)
FP4_LEVELS = (*(-level for level in reversed(_FP4_POSITIVE)), 0.0, *_FP4_POSITIVE)
"""What transformers' ``load_in_4bit`` takes by default (bitsandbytes ``fp4``)."""


@dataclass(frozen=True)
class Quantized:
    """A tensor after quantisation; all of its shape.

    Attributes:
        codes: int16, the number of the level, from 0, or of int8 the integer itself.
        values: float32, what the code stands for.
        widths: float32, how wide the bin is that the weight fell into: by how much it can move
            before its code surely changes.
    """

    codes: torch.Tensor
    values: torch.Tensor
    widths: torch.Tensor


def quantize(weight: torch.Tensor, kind: str) -> Quantized:
    """The nearest quantised values of a weight matrix.

    ``nf4`` and ``fp4``: groups of 64 weights in row-major order, the scale is the largest absolute
    value, halfway goes down. ``int8``: a scale for each row, the largest absolute value by 127,
    halfway goes to the even integer.

    Args:
        weight: of any float dtype; a vector is one row.
        kind: ``nf4``, ``fp4`` or ``int8``.
    """
    return QUANTIZERS[kind](weight.detach().float())


def _to_levels(weight: torch.Tensor, levels: tuple[float, ...]) -> Quantized:
    flat = weight.reshape(-1)
    groups = F.pad(flat, (0, -len(flat) % GROUP)).view(-1, GROUP)
    scales = groups.abs().amax(1, keepdim=True)
    table = torch.tensor(levels, device=weight.device)
    middles = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(groups / torch.where(scales > 0, scales, 1.0), middles)
    ends = (2 * table[:1] - middles[:1], middles, 2 * table[-1:] - middles[-1:])
    widths = torch.cat(ends).diff()

    def shaped(grouped: torch.Tensor) -> torch.Tensor:
        return grouped.reshape(-1)[: len(flat)].view(weight.shape)

    return Quantized(
        shaped(codes.to(torch.int16)), shaped(table[codes] * scales), shaped(widths[codes] * scales)
    )


def _to_int8(weight: torch.Tensor) -> Quantized:
    rows = weight.reshape(-1, weight.shape[-1])
    scales = rows.abs().amax(1, keepdim=True) / 127
    codes = (rows / torch.where(scales > 0, scales, 1.0)).round()
    values, widths = codes * scales, scales.expand_as(rows)
    return Quantized(*(t.reshape(weight.shape) for t in (codes.to(torch.int16), values, widths)))


QUANTIZERS: dict[str, Callable[[torch.Tensor], Quantized]] = {
    "nf4": lambda weight: _to_levels(weight, NF4_LEVELS),
    "fp4": lambda weight: _to_levels(weight, FP4_LEVELS),
    "int8": _to_int8,
}


@torch.no_grad()
def quantize_model(model: PreTrainedModel, kind: str) -> None:
    """Quantise the linear layers of a model's decoder blocks in place; the dtype stays."""
    names = linear_names(model)
    for name in Progress(f"rounding to {kind}", len(names), "tensor").over(names):
        weight = model.get_parameter(name)
        weight.copy_(quantize(weight, kind).values)


EDGES = np.logspace(-6, 2, 33)
"""Of the histogram of |Δθ| by bin width: four bins for each factor of ten."""


@torch.no_grad()
def compare_to_bins(
    before: PreTrainedModel, after: PreTrainedModel, mask: Mask | None, kind: str
) -> dict[str, Any]:
    """How far weights have moved, measured by the bins that they were in before.

    Args:
        before, after: models of one architecture, on one device.
        mask: weights to count, of the decoder blocks' linear layers; ``None``: all of these.
        kind: of the quantisation.

    Returns:
        ``weights``: how many are counted; ``changed``: the share whose code is another one after;
        ``moved``: how many have moved at all; ``edges`` and ``counts``: the histogram of those,
        its first and last bin open.
    """
    weights = changed = moved = 0
    counts = np.zeros(len(EDGES) - 1, np.int64)
    names = linear_names(before)
    for name in Progress(f"comparing with {kind}", len(names), "tensor").over(names):
        old, new = before.get_parameter(name), after.get_parameter(name)
        chosen = torch.ones_like(old, dtype=torch.bool)
        if mask is not None:
            chosen = mask[name].to(old.device).to_bool()
        first, second = quantize(old, kind), quantize(new, kind)
        weights += int(chosen.count_nonzero())
        changed += int((chosen & (first.codes != second.codes)).count_nonzero())
        steps = (new.float() - old.float()).abs()
        chosen &= (steps > 0) & (first.widths > 0)
        ratios = (steps[chosen] / first.widths[chosen]).cpu().numpy()
        moved += len(ratios)
        counts += np.histogram(ratios.clip(EDGES[0], EDGES[-1]), EDGES)[0]
    share = changed / weights if weights else 0.0
    histogram = {"edges": EDGES.tolist(), "counts": counts.tolist()}
    return {"weights": weights, "changed": share, "moved": moved, **histogram}
