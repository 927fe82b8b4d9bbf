"""Task arithmetic: what learning the forget set changes is taken away from the weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from wagle.dataset.pairing import FORGET
from wagle.unlearn.objectives.base import Batch, Objective, ReferenceModel, Terms
from wagle.unlearn.objectives.losses import cross_entropy


@dataclass(frozen=True)
class TaskArithmetic(Objective):
    """θ = θ₀ − a · (θ_ft − θ₀), θ_ft trained by CE(forget) (Ilharco et al. 2022, arXiv 2212.04089).

    θ_ft is trained here, from θ₀, and with a mask the selected weights alone. Example: where
    training moves a weight from 0.5 to 0.6, it ends at 0.4 with a = 1.

    Attributes:
        scale: a.
    """

    scale: float
    views = (FORGET,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extrapolation", -self.scale)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        return {FORGET: cross_entropy(model, batch[FORGET])}
