"""AdamW over the selected weights only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from wagle.optim.bitmask import BitMask
from wagle.optim.packed import FIRST_MOMENT, PackedOptimizer, Selected


class MaskedAdamW(PackedOptimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) that only sees selected weights.

    For these the trajectory is that of ``torch.optim.AdamW`` on the masked gradient; all others
    stay bit-identical. State: two moments per selected weight, in the parameter's dtype, or
    float32 beside a float32 master.

    Args:
        params: parameters or groups.
        masks: selected weights by parameter; absent: all of a parameter.
        master_weights: float32 masters (and moments) of the selected weights of 16-bit parameters.
        eight_bit: as in :class:`PackedOptimizer`.
        lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``.
    """

    slots = (FIRST_MOMENT, "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        masks: Mapping[torch.Tensor, BitMask] | None = None,
        master_weights: bool = False,
        eight_bit: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, masks, master_weights, eight_bit)

    def _update(self, selected: Selected, group: dict[str, Any]) -> None:
        # The kernel of torch.optim.AdamW(fused=True), without the list handling around it, which
        # would cost more than the kernel does on a chunk.
        torch._fused_adamw_(
            [selected.weights],
            [selected.gradients],
            [selected.vectors["exp_avg"]],
            [selected.vectors["exp_avg_sq"]],
            [],
            [selected.step],
            amsgrad=False,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
