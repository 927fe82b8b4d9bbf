"""SimNPO: negative preference optimisation without a reference model."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from transformers import PreTrainedModel

from wagle.dataset.pairing import FORGET, RETAIN
from wagle.unlearn.objectives.base import Batch, Objective, ReferenceModel, Terms
from wagle.unlearn.objectives.losses import cross_entropy, example_cross_entropy


@dataclass(frozen=True)
class SimpleNegativePreference(Objective):
    """SimNPO+FT: −(2/β) · mean log σ(β · CE(forget) − δ) + γ · CE(retain).

    Fan et al. 2024 (arXiv 2410.07163): −(2/β) · E log σ(−(β/|y|) · log π(y|x) − δ), where CE is
    −log π(y|x) / |y|. The margin δ (there γ) is not scaled by β.
    """

    gamma: float
    beta: float
    delta: float
    views = (FORGET, RETAIN)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        losses = example_cross_entropy(model, batch[FORGET])
        forget = -2 / self.beta * F.logsigmoid(self.beta * losses - self.delta).mean()
        return {FORGET: forget, RETAIN: self.gamma * cross_entropy(model, batch[RETAIN])}
