"""What objectives of two terms share: a loss to forget by, and one of two that keep the rest."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from transformers import PreTrainedModel

from wagle.dataset.pairing import FORGET, RETAIN
from wagle.unlearn.objectives.base import Batch, Objective, ReferenceModel, Terms
from wagle.unlearn.objectives.losses import (
    cross_entropy,
    kl_divergence,
    reference_logits,
)


@dataclass(frozen=True)
class WithRetain(Objective):
    """γ_f · L_forget + γ · L_retain, as open-unlearning composes its losses.

    Attributes:
        gamma: γ; where it is 0 the retain rows are not run.
        forget_weight: γ_f.
        retain_loss: ``nll``: CE(retain); ``kl``: mean over real tokens of KL(ref ‖ current).
    """

    gamma: float
    forget_weight: float
    retain_loss: Literal["nll", "kl"]
    views: ClassVar[tuple[str, ...]] = (FORGET, RETAIN)

    def __post_init__(self) -> None:
        if self.retain_loss == "kl" and self.gamma:
            object.__setattr__(self, "needs_reference_model", True)

    @abstractmethod
    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        """L_forget, a scalar with gradients to the model's parameters."""

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        # The reference runs first: its weights may be swapped into the current model, which must
        # not happen between a forward pass and its backward pass.
        target = self._retain_target(batch, reference)
        forget = self.forget_weight * self.forget_loss(model, batch, reference)
        if not self.gamma:
            return {FORGET: forget}
        return {FORGET: forget, RETAIN: self._retain_term(model, batch, target)}

    def part(
        self, name: str, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor | None:
        if name == FORGET:
            return self.forget_weight * self.forget_loss(model, batch, reference)
        if not self.gamma:
            return None
        return self._retain_term(model, batch, self._retain_target(batch, reference))

    def _retain_target(self, batch: Batch, reference: ReferenceModel) -> torch.Tensor | None:
        if self.retain_loss == "kl" and self.gamma:
            return reference_logits([batch[RETAIN]], reference)[0]
        return None

    def _retain_term(
        self, model: PreTrainedModel, batch: Batch, target: torch.Tensor | None
    ) -> torch.Tensor:
        if target is None:
            return self.weigh_retain(cross_entropy(model, batch[RETAIN]))
        return self.weigh_retain(kl_divergence(model, batch[RETAIN], target))

    def weigh_retain(self, loss: torch.Tensor) -> torch.Tensor:
        """The retain term, γ · L_retain."""
        return self.gamma * loss
