"""What a mask selects, and how alike two masks are; on packed bits, without unpacking models."""

from __future__ import annotations

import torch

from src.errors import WagleError
from src.optim.bitmask import BitMask, Mask
from src.unlearn.mask.kinds import layer_index, parameter_kind


def density(mask: Mask) -> float:
    """Share of all weights that are selected."""
    return sum(m.count() for m in mask.values()) / sum(m.numel for m in mask.values())


def density_by(mask: Mask, what: str) -> dict[str, float]:
    """Selected share per ``layer``, per ``kind`` or per ``tensor``.

    Weights outside the decoder layers are the layer ``"outside"``.
    """
    totals: dict[str, list[int]] = {}
    for name, bits in mask.items():
        index = layer_index(name)
        group = {
            "layer": "outside" if index is None else str(index),
            "kind": parameter_kind(name),
            "tensor": name,
        }[what]
        total = totals.setdefault(group, [0, 0])
        total[0] += bits.count()
        total[1] += bits.numel
    return {group: selected / size for group, (selected, size) in totals.items()}


def jaccard(first: Mask, second: Mask) -> tuple[float, dict[str, float]]:
    """Size of the intersection over size of the union: overall, and per tensor.

    Two empty selections are alike (1).

    Raises:
        WagleError: the masks are of different models.
    """
    if {n: m.shape for n, m in first.items()} != {n: m.shape for n, m in second.items()}:
        raise WagleError("the masks name other parameters or shapes: they are of different models")
    both = either = 0
    per_tensor = {}
    for name, a in first.items():
        common = _count(a.bits & second[name].bits, a.shape)
        union = _count(a.bits | second[name].bits, a.shape)
        per_tensor[name] = common / union if union else 1.0
        both += common
        either += union
    return (both / either if either else 1.0), per_tensor


def _count(bits: torch.Tensor, shape: torch.Size) -> int:
    return BitMask(bits, shape).count()
