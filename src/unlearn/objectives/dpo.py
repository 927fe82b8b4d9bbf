"""DPO with a refusal as the preferred answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from transformers import PreTrainedModel

from wagle.dataset.pairing import FORGET, REFUSAL, RETAIN
from wagle.unlearn.objectives.base import Batch, Objective, ReferenceModel, Terms
from wagle.unlearn.objectives.losses import answer_lengths, cross_entropy, excess_cross_entropy


@dataclass(frozen=True)
class DirectPreference(Objective):
    """DPO+FT: −(2/β) · mean log σ(β · (r(refusal) − r(forget))) + γ · CE(retain).

    r = log(π(y|x) / π_ref(y|x)), summed over the answer's tokens (Rafailov et al. 2023, arXiv
    2305.18290, eq. 7). The factor 2/β is NPO's: at the start the gradient is that of
    log π(forget) − log π(refusal), whatever β is.
    """

    gamma: float
    beta: float
    views = (FORGET, REFUSAL, RETAIN)
    reference_losses = (FORGET, REFUSAL)

    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        forget, refusal = (
            -excess_cross_entropy(model, batch[view]) * answer_lengths(batch[view]["labels"])
            for view in (FORGET, REFUSAL)
        )
        preference = -2 / self.beta * F.logsigmoid(self.beta * (refusal - forget)).mean()
        retain = self.gamma * cross_entropy(model, batch[RETAIN])
        return {FORGET: preference, RETAIN: retain}
