"""FLAT: forgetting by a divergence between refusals and answers, without retain data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from wagle.dataset.encoding import IGNORED
from wagle.dataset.pairing import FORGET, REFUSAL, RETAIN
from wagle.model.head import token_losses
from wagle.unlearn.objectives.base import Batch, ReferenceModel
from wagle.unlearn.objectives.losses import View, answer_lengths
from wagle.unlearn.objectives.with_retain import WithRetain


@dataclass(frozen=True)
class LossAdjustment(WithRetain):
    """FLAT: −mean g(u) + mean f*(g(v)), by total variation: g(u) = tanh(u) / 2, f*(t) = t.

    Wang et al. 2024 (arXiv 2410.11143). u and v are the mean token probabilities of a row's refusal
    and of its answer. It is made to need no retain rows.
    """

    views = (FORGET, REFUSAL, RETAIN)

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        wanted = _mean_probability(model, batch[REFUSAL])
        unwanted = _mean_probability(model, batch[FORGET])
        return (unwanted.tanh() / 2).mean() - (wanted.tanh() / 2).mean()


def _mean_probability(model: PreTrainedModel, view: View) -> torch.Tensor:
    """Mean over each row's labelled tokens of their probabilities, ``(B,)``."""
    losses, _ = token_losses(model, view)
    labelled = view["labels"][:, 1:] != IGNORED
    by_row = losses.new_zeros(labelled.shape).masked_scatter(labelled, (-losses).exp())
    return by_row.sum(dim=1) / answer_lengths(view["labels"])
