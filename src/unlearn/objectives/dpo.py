"""DPO with a refusal, or with another answer, as the preferred one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from wagle.dataset.pairing import ALTERNATE, FORGET, REFUSAL, RETAIN
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
    preferred: ClassVar[str] = REFUSAL
    views = (FORGET, REFUSAL, RETAIN)
    reference_losses = (FORGET, REFUSAL)

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        forget, preferred = (
            -excess_cross_entropy(model, batch[view]) * answer_lengths(batch[view]["labels"])
            for view in (FORGET, self.preferred)
        )
        return -2 / self.beta * F.logsigmoid(self.beta * (preferred - forget)).mean()


@dataclass(frozen=True)
class AlternatePreference(DirectPreference):
    """AltPO+FT: DPO+FT with another answer that the model itself has written instead of a refusal.

    Mekala et al. 2024 (arXiv 2409.13474). Each alternate of a forget row is a row of training.

    Attributes:
        alternates: the file that they are in (:mod:`wagle.model.alternates`).
    """

    alternates: str | None
    preferred = ALTERNATE
    views = (FORGET, ALTERNATE, RETAIN)
    reference_losses = (FORGET, ALTERNATE)
