"""The objectives of the WAGLE paper (Jia et al. 2024, arXiv 2410.17509)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from transformers import PreTrainedModel

from wagle.dataset.pairing import FORGET, MISMATCHED, REFUSAL, RETAIN
from wagle.model.head import widen
from wagle.unlearn.objectives.base import Batch, Objective, ReferenceModel, Terms
from wagle.unlearn.objectives.losses import cross_entropy, divergences, excess_cross_entropy


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
class GradientDifference(Objective):
    """GA+FT (GradDiff): −CE(forget) + γ · CE(retain) (Liu et al. 2022, arXiv 2203.12817)."""

    gamma: float
    views = (FORGET, RETAIN)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        forget = cross_entropy(model, batch[FORGET])
        return {FORGET: -forget, RETAIN: self.gamma * cross_entropy(model, batch[RETAIN])}


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
class NegativePreference(Objective):
    """NPO+FT: −(2/β) · mean log σ(β · (CE(forget) − CE_ref(forget))) + γ · CE(retain).

    Zhang et al. 2024 (arXiv 2404.05868, eq. 3), with length-normalised losses as WAGLE publishes.
    """

    gamma: float
    beta: float
    views = (FORGET, RETAIN)
    reference_losses = (FORGET,)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        excess = excess_cross_entropy(model, batch[FORGET])
        forget = -2 / self.beta * F.logsigmoid(self.beta * excess).mean()
        return {FORGET: forget, RETAIN: self.gamma * cross_entropy(model, batch[RETAIN])}


@dataclass(frozen=True)
class Refusal(Objective):
    """CL: CE(refusal), the forget question with a refusal as its answer."""

    views = (REFUSAL,)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        return {FORGET: cross_entropy(model, batch[REFUSAL])}


@dataclass(frozen=True)
class PreferenceOptimization(Objective):
    """CL+FT (PO): CE(refusal) + γ · CE(retain) (Maini et al. 2024, arXiv 2401.06121)."""

    gamma: float
    views = (REFUSAL, RETAIN)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        refusal = cross_entropy(model, batch[REFUSAL])
        return {FORGET: refusal, RETAIN: self.gamma * cross_entropy(model, batch[RETAIN])}


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
