"""DPO with a refusal as the preferred answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from wagle.dataset.pairing import FORGET, REFUSAL, RETAIN
from wagle.unlearn.objectives.base import Batch, ReferenceModel
from wagle.unlearn.objectives.losses import answer_lengths, excess_cross_entropy
from wagle.unlearn.objectives.with_retain import WithRetain


@dataclass(frozen=True)
class DirectPreference(WithRetain):
    """DPO+FT: −(2/β) · mean log σ(β · (r(refusal) − r(forget))) + γ · CE(retain).

    r = log(π(y|x) / π_ref(y|x)), summed over the answer's tokens (Rafailov et al. 2023, arXiv
    2305.18290, eq. 7). The factor 2/β is NPO's: at the start the gradient is that of
    log π(forget) − log π(refusal), whatever β is.
    """

    beta: float
    views = (FORGET, REFUSAL, RETAIN)
    reference_losses = (FORGET, REFUSAL)

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        forget, refusal = (
            -excess_cross_entropy(model, batch[view]) * answer_lengths(batch[view]["labels"])
            for view in (FORGET, REFUSAL)
        )
        return -2 / self.beta * F.logsigmoid(self.beta * (refusal - forget)).mean()
