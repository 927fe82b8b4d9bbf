"""What a mask, the scores behind it and an update are in each layer.

Layers are ``"0"``, ``"1"``, … and ``"outside"``, as in :mod:`wagle.unlearn.mask.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from wagle.optim.bitmask import Mask
from wagle.optim.threads import ordered_map
from wagle.unlearn.mask.scores import CHUNK, ScoreStream
from wagle.unlearn.mask.statistics import layer_of
from wagle.unlearn.mask.tensor_file import TensorFile


def score_shares(scores: ScoreStream) -> dict[str, float]:
    """Each layer's share of the sum of all scores, in one pass over their stream.

    Args:
        scores: non-negative.
    """
    sums: dict[str, float] = {}
    for name, total in ordered_map(
        lambda c: (c[0], float(c[2]().sum(dtype=torch.float64))), scores()
    ):
        sums[layer_of(name)] = sums.get(layer_of(name), 0.0) + total
    whole = sum(sums.values())
    return {layer: total / whole if whole else 0.0 for layer, total in sums.items()}


def update_norms(before: torch.nn.Module, after: torch.nn.Module) -> dict[str, float]:
    """L2 norm of what each layer's weights have changed by.

    Args:
        before, after: models of the same parameters.
    """
    squares: dict[str, float] = {}
    others = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        new, old = (p.detach().reshape(-1) for p in (parameter, others[name]))
        square = 0.0
        for start in range(0, len(new), CHUNK):
            part = slice(start, start + CHUNK)
            square += float((new[part].double() - old[part].double()).square().sum())
        squares[layer_of(name)] = squares.get(layer_of(name), 0.0) + square
    return {layer: math.sqrt(square) for layer, square in squares.items()}


class Effect(NamedTuple):
    """What descending L = −CE(forget) + γ · CE(retain) on some weights does, to first order.

    e_D = Σ_i ∂_iL · ∂_iCE(D) (arXiv 2502.19301): a step −η∂L changes CE(D) by −η · e_D. Forgetting
    makes ``forget`` negative; what harms the retained rows makes ``retain`` negative.
    """

    forget: float
    retain: float


def mask_effects(
    mask: Mask, sums: Mapping[str, TensorFile], *, batches: int, gamma: float
) -> dict[str, Effect]:
    """The effect of each layer's selected weights.

    Args:
        sums: of ``forget`` and ``retain`` rows: Σ over batches of the gradient of the mean loss.
        batches: how many; the loss CE is the mean over them.
        gamma: γ, weight of the retain term.
    """
    products: dict[str, list[float]] = {}  # f·f, f·r and r·r
    for name, bits in mask.items():
        total = products.setdefault(layer_of(name), [0.0, 0.0, 0.0])
        forget, retain = (sums[kind].read(name).view(-1) for kind in ("forget", "retain"))
        for start in range(0, bits.numel, CHUNK):
            chosen = bits.flat(start, start + CHUNK)
            f, r = (g[start : start + CHUNK][chosen].double() / batches for g in (forget, retain))
            for place, (a, b) in enumerate(((f, f), (f, r), (r, r))):
                total[place] += float(a @ b)
    return {
        layer: Effect(-ff + gamma * fr, -fr + gamma * rr)
        for layer, (ff, fr, rr) in products.items()
    }
