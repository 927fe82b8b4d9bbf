"""Objectives about a token's whole distribution: CE-U and the inverted hinge loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from wagle.dataset.encoding import IGNORED
from wagle.dataset.pairing import FORGET
from wagle.model.head import Head, widen
from wagle.unlearn.objectives.base import Batch, ReferenceModel
from wagle.unlearn.objectives.with_retain import WithRetain


@dataclass(frozen=True)
class CrossEntropyUnlearning(WithRetain):
    """CE-U: mean over labelled tokens of H(softmax(z without y), softmax(z)).

    Yang 2025 (arXiv 2503.01224). The target is the model's own distribution with the true token
    taken out (its logit −∞); gradients do not flow through it, so that of z is p − target. The
    first ``skipped_tokens`` labelled tokens of each row are left out; where a row's very first
    token is labelled it is one of them, though nothing predicts it.
    """

    skipped_tokens: int

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        head = Head.of(model)
        states, targets, rows = head.predictions(batch[FORGET])
        position = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        never_predicted = (batch[FORGET]["labels"][:, 0] != IGNORED)[rows].long()
        kept = position + never_predicted >= self.skipped_tokens
        losses = head.measure(_without_the_true_token, states, targets)
        # Rows may be shorter than what is skipped.
        return torch.where(kept, losses, 0.0).sum() / kept.sum().clamp(min=1)


def _without_the_true_token(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = widen(logits)
    others = logits.detach().scatter(1, targets[:, None], -math.inf).softmax(dim=-1)
    return -(others * logits.log_softmax(dim=-1)).sum(dim=-1)


@dataclass(frozen=True)
class InvertedHinge(WithRetain):
    """IHL: mean over labelled tokens of 1 + p_y − max over v ≠ y of p_v.

    Cha et al. 2024 (arXiv 2408.06621). It is bounded, and moves mass from the true token to the
    likeliest other one alone.
    """

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        head = Head.of(model)
        states, targets, _ = head.predictions(batch[FORGET])
        return head.measure(_hinge, states, targets).mean()


def _hinge(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    probabilities = widen(logits).softmax(dim=-1)
    true = probabilities.gather(1, targets[:, None])[:, 0]
    others = probabilities.scatter(1, targets[:, None], -math.inf).amax(dim=-1)
    return 1 + true - others
