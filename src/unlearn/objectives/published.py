"""The objectives of the WAGLE paper (Jia et al. 2024, arXiv 2410.17509)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from wagle.dataset.pairing import FORGET, MISMATCHED, REFUSAL, RETAIN
from wagle.model.head import widen
from wagle.unlearn.objectives.base import Batch, Objective, ReferenceModel, Terms
from wagle.unlearn.objectives.losses import (
    answer_lengths,
    cross_entropy,
    divergences,
    excess_cross_entropy,
)
from wagle.unlearn.objectives.with_retain import WithRetain


@dataclass(frozen=True)
class FineTuning(Objective):
    """FT: CE(retain)."""

    views = (RETAIN,)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        return {RETAIN: cross_entropy(model, batch[RETAIN])}


@dataclass(frozen=True)
class L1Sparse(Objective):
    """l1_sparse: CE(retain) + alpha · Σ|θ| (Jia et al. 2023, arXiv 2304.04934)."""

    alpha: float
    views = (RETAIN,)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        norm = sum(widen(parameter.abs()).sum() for parameter in model.parameters())
        return {RETAIN: cross_entropy(model, batch[RETAIN]) + self.alpha * norm}


@dataclass(frozen=True)
class GradientAscent(Objective):
    """GA: −CE(forget)."""

    views = (FORGET,)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        return {FORGET: -cross_entropy(model, batch[FORGET])}


@dataclass(frozen=True)
class GradientDifference(WithRetain):
    """GA+FT (GradDiff): −CE(forget) + γ · CE(retain) (Liu et al. 2022, arXiv 2203.12817)."""

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        return -cross_entropy(model, batch[FORGET])


@dataclass(frozen=True)
class GradientAscentKL(Objective):
    """GA+KL: −γ · CE(forget) + (1 − γ) · H(retain)."""

    gamma: float
    views = (FORGET, RETAIN)
    needs_reference_model = True

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        (retain,) = divergences(model, [batch[RETAIN]], reference)
        forget = cross_entropy(model, batch[FORGET])
        return {FORGET: -self.gamma * forget, RETAIN: (1 - self.gamma) * retain}


@dataclass(frozen=True)
class NegativePreference(WithRetain):
    """NPO+FT: −(2/β) · mean log σ(β · (CE(forget) − CE_ref(forget))) + γ · CE(retain).

    Zhang et al. 2024 (arXiv 2404.05868, eq. 3). With ``length_normalised`` losses are means over an
    answer's tokens, as WAGLE publishes; without, sums, as in the paper and in open-unlearning.
    """

    beta: float
    length_normalised: bool
    reference_losses = (FORGET,)

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        excess = excess_cross_entropy(model, batch[FORGET])
        if not self.length_normalised:
            excess = excess * answer_lengths(batch[FORGET]["labels"])
        return -2 / self.beta * F.logsigmoid(self.beta * excess).mean()


@dataclass(frozen=True)
class Refusal(Objective):
    """CL: CE(refusal), the forget question with a refusal as its answer."""

    views = (REFUSAL,)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        return {FORGET: cross_entropy(model, batch[REFUSAL])}


@dataclass(frozen=True)
class PreferenceOptimization(WithRetain):
    """CL+FT (PO): CE(refusal) + γ · CE(retain) (Maini et al. 2024, arXiv 2401.06121)."""

    views = (REFUSAL, RETAIN)

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        return cross_entropy(model, batch[REFUSAL])


@dataclass(frozen=True)
class RefusalKL(Objective):
    """CL+KL: CE(refusal) + γ · H(retain)."""

    gamma: float
    views = (REFUSAL, RETAIN)
    needs_reference_model = True

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        (retain,) = divergences(model, [batch[RETAIN]], reference)
        refusal = cross_entropy(model, batch[REFUSAL])
        return {FORGET: refusal, RETAIN: self.gamma * retain}


@dataclass(frozen=True)
class RandomLabel(Objective):
    """RL: CE of the forget question with the answer of the paired retain example."""

    views = (MISMATCHED,)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        return {FORGET: cross_entropy(model, batch[MISMATCHED])}


@dataclass(frozen=True)
class Divergence(Objective):
    """KL: −γ · H(forget) + H(retain)."""

    gamma: float
    views = (FORGET, RETAIN)
    needs_reference_model = True

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        forget, retain = divergences(model, [batch[FORGET], batch[RETAIN]], reference)
        return {RETAIN: retain, FORGET: -self.gamma * forget}
