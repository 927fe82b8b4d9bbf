"""Sophia-G: clipped second-order steps over the selected weights only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from wagle.optim.bitmask import BitMask
from wagle.optim.chunks import ParameterChunk
from wagle.optim.packed import FIRST_MOMENT, PackedOptimizer, Selected

EPSILON = 1e-15  # keeps the division defined where the Hessian estimate is zero
SAMPLED_AT_ONCE = 256  # positions; their float32 probabilities are all that is held beside logits


class SophiaG(PackedOptimizer):
    """Sophia with the Gauss-Newton-Bartlett estimator (Liu et al. 2023, arXiv 2305.14342).

    θ ← θ − lr · clip(m / max(ρ·h, ε), 1) after decoupled weight decay (Algorithm 3), where h is the
    moving average that :meth:`update_hessian` refreshes.

    Args:
        params: parameters or groups.
        betas: of the gradient's and of the Hessian's moving average.
        rho: scale of the Hessian in the clipped ratio.
        masks: selected weights by parameter; absent: all of a parameter.
        master_weights, eight_bit: as in :class:`PackedOptimizer`.
    """

    slots = (FIRST_MOMENT, "hessian")

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        rho: float,
        weight_decay: float = 0.0,
        masks: Mapping[torch.Tensor, BitMask] | None = None,
        master_weights: bool = False,
        eight_bit: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "rho": rho, "weight_decay": weight_decay}
        super().__init__(params, defaults, masks, master_weights, eight_bit)

    def _update(self, selected: Selected, group: dict[str, Any]) -> None:
        weights, average = selected.weights, selected.vectors["exp_avg"]
        average.lerp_(selected.gradients, 1 - group["betas"][0])
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        smallest = max(EPSILON, torch.finfo(average.dtype).tiny)
        scale = (selected.vectors["hessian"] * group["rho"]).clamp_(min=smallest)
        weights.sub_((average / scale).clamp_(-1, 1), alpha=group["lr"])

    @torch.no_grad()
    def update_hessian(self, batch_size: int) -> None:
        """h ← β2·h + (1 − β2)·B·ĝ², from the gradients that there are now, packed or in ``.grad``.

        Args:
            batch_size: B, the number of predictions that the loss behind ĝ is the mean of; its
                labels were sampled from the model (:func:`sample_tokens`).
        """
        parameters = list(self._trained())
        for parameter in parameters:
            self._state_of(parameter)

        def refresh(group: dict[str, Any], parameter: torch.Tensor, chunk: ParameterChunk) -> None:
            positions = None if parameter in self.packed_gradients else chunk.positions()
            decay = group["betas"][1]
            with self._moments(parameter, chunk, ["hessian"]) as vectors:
                hessian = vectors["hessian"]
                gradients = self._gradients(parameter, chunk, positions).to(hessian.dtype)
                hessian.mul_(decay)
                hessian.addcmul_(gradients, gradients, value=(1 - decay) * batch_size)

        self._for_each_chunk(parameters, refresh)


@torch.no_grad()
def sample_tokens(logits: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Tokens drawn from a model's own predictions (Gauss-Newton-Bartlett, Algorithm 2).

    Args:
        logits: ``(N, V)``.
        generator: on the logits' device; ``None``: torch's own.

    Returns:
        int64 ``(N,)``.
    """
    drawn = [
        torch.multinomial(part.float().softmax(dim=-1), 1, generator=generator)
        for part in torch.split(logits, SAMPLED_AT_ONCE)
    ]
    return torch.cat(drawn).squeeze(1)
