"""SimNPO: negative preference optimisation without a reference model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from wagle.dataset.pairing import FORGET
from wagle.unlearn.objectives.base import Batch, ReferenceModel
from wagle.unlearn.objectives.losses import example_cross_entropy
from wagle.unlearn.objectives.with_retain import WithRetain


@dataclass(frozen=True)
class SimpleNegativePreference(WithRetain):
    """SimNPO+FT: −(2/β) · mean log σ(β · CE(forget) − δ) + γ · CE(retain).

    Fan et al. 2024 (arXiv 2410.07163): −(2/β) · E log σ(−(β/|y|) · log π(y|x) − δ), where CE is
    −log π(y|x) / |y|. The margin δ (there γ) is not scaled by β; open-unlearning writes
    −(2/β) · log σ(β · (CE − δ′)), so that its δ′ is δ / β.
    """

    beta: float
    delta: float

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        losses = example_cross_entropy(model, batch[FORGET])
        return -2 / self.beta * F.logsigmoid(self.beta * losses - self.delta).mean()
