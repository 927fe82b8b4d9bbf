"""Gradient ascent that weighs every token by how well it is known: WGA, TNPO and SatImp.

All three are −mean over the batch's labelled tokens of w_t · ℓ_t, with ℓ_t = −log p_t and a weight
w_t that gradients do not flow through. Long answers count more than in a mean over rows. Example: a
token of probability 0.01 that is nearly forgotten already has a weight of 0.01 in WGA, where
gradient ascent would push it as hard as a token of probability 0.99.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from wagle.dataset.pairing import FORGET
from wagle.model.head import token_losses
from wagle.unlearn.objectives.base import Batch, ReferenceModel
from wagle.unlearn.objectives.with_retain import WithRetain

SMOOTHING = 1e-5  # in TNPO's denominator, as its authors have it


@dataclass(frozen=True)
class _WeightedAscent(WithRetain):
    @abstractmethod
    def weights(self, probability: torch.Tensor, original: torch.Tensor | None) -> torch.Tensor:
        """w_t ``(M,)`` from p_t and, where a reference is needed, p_ref,t."""

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        view, original = batch[FORGET], None
        if type(self).needs_reference_model:
            with torch.no_grad(), reference() as before:
                original = (-token_losses(before, view)[0]).exp()
        losses, _ = token_losses(model, view)
        weights = self.weights((-losses.detach()).exp(), original)
        return -(weights * losses).mean()


@dataclass(frozen=True)
class WeightedGradientAscent(_WeightedAscent):
    """WGA: w = p^β (Wang et al. 2025, arXiv 2502.19301)."""

    beta: float

    def weights(self, probability: torch.Tensor, original: torch.Tensor | None) -> torch.Tensor:
        return probability**self.beta


@dataclass(frozen=True)
class TokenwiseNegativePreference(_WeightedAscent):
    """TNPO: w = 2 p^β / (p^β + p_ref^β + 1e-5) (Wang et al. 2025, arXiv 2502.19301)."""

    beta: float
    needs_reference_model = True

    def weights(self, probability: torch.Tensor, original: torch.Tensor | None) -> torch.Tensor:
        assert original is not None
        now, before = probability**self.beta, original**self.beta
        return 2 * now / (now + before + SMOOTHING)


@dataclass(frozen=True)
class SaturationImportance(_WeightedAscent):
    """SatImp: w = p^β₁ · (1 − p)^β₂ (Yang et al. 2025, arXiv 2505.11953)."""

    beta1: float
    beta2: float

    def weights(self, probability: torch.Tensor, original: torch.Tensor | None) -> torch.Tensor:
        return probability**self.beta1 * (1 - probability) ** self.beta2
