"""The optimizer of both recipes: which weights it sees, and which of them decay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from wagle.config.keys import SophiaParams
from wagle.optim.bitmask import BitMask
from wagle.optim.masked_adamw import MaskedAdamW
from wagle.optim.packed import PackedOptimizer
from wagle.optim.sophia import SophiaG

# Biases and norms do not decay, by the names that architectures give them.
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def make_optimizer(
    model: torch.nn.Module,
    *,
    lr: float,
    weight_decay: float,
    master_weights: bool,
    eight_bit: bool = False,
    masks: Mapping[torch.Tensor, BitMask] | None = None,
    sophia: SophiaParams | None = None,
) -> PackedOptimizer:
    """AdamW (betas 0.9 and 0.999, epsilon 1e-8), or Sophia-G, over the trainable parameters.

    Args:
        master_weights: float32 copies of 16-bit weights take the updates.
        eight_bit: the moments have 8 bits each.
        masks: the weights to update, by parameter; absent: all of a parameter.
        sophia: Sophia-G's hyper-parameters; ``None``: AdamW.
    """
    groups = _groups(model, weight_decay)
    options: dict[str, Any] = {
        "masks": masks,
        "master_weights": master_weights,
        "eight_bit": eight_bit,
    }
    if sophia is None:
        return MaskedAdamW(groups, lr=lr, **options)
    return SophiaG(
        groups,
        lr=lr,
        betas=(sophia.betas_low, sophia.betas_high),
        rho=sophia.rho,
        **options,
    )


def _groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    layer_norms = {
        parameter
        for module in model.modules()
        if isinstance(module, torch.nn.LayerNorm)
        for parameter in module.parameters()
    }
    decaying: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = parameter in layer_norms or _UNDECAYED.search(name.lower())
            (others if spared else decaying).append(parameter)
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
