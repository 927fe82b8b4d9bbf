"""UNDIAL: the model distils itself, with the token to be forgotten made less likely."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from wagle.dataset.pairing import FORGET
from wagle.model.head import Head, widen
from wagle.unlearn.objectives.base import Batch, ReferenceModel
from wagle.unlearn.objectives.losses import View
from wagle.unlearn.objectives.with_retain import WithRetain


@dataclass(frozen=True)
class SelfDistillation(WithRetain):
    """UNDIAL: mean over labelled tokens of H(softmax(z_ref − β · onehot(y)), softmax(z)).

    Dong et al. 2024 (arXiv 2402.10052), with H(q, p) = −Σ_v q_v · log p_v. Where ``published`` is
    true the mean is over all positions of the padded batch, question and padding included, and at a
    position without a label β is subtracted from entry V − 100, as the published program does,
    whose index −100 counts from the end of the vocabulary.
    """

    beta: float
    published: bool
    needs_reference_model = True

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        view = batch[FORGET]
        with torch.no_grad(), reference() as original:
            head = Head.of(original)
            states, targets = self._positions(head, view)
            teacher = head.logits(states)
            entries = targets % teacher.shape[-1]
            penalty = torch.full_like(entries[:, None], -self.beta, dtype=teacher.dtype)
            teacher = teacher.scatter_add(1, entries[:, None], penalty)
        head = Head.of(model)
        states, _ = self._positions(head, view)
        return head.measure(_cross_entropy_with, states, teacher).mean()

    def _positions(self, head: Head, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """States ``(N, width)`` of what is averaged over, and their targets ``(N,)``."""
        if not self.published:
            states, targets, _ = head.predictions(view)
            return states, targets
        states = head.states(input_ids=view["input_ids"], attention_mask=view["attention_mask"])
        return states[:, :-1].flatten(0, 1), view["labels"][:, 1:].flatten()


def _cross_entropy_with(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """H(softmax(teacher), softmax(logits)) of each token ``(N,)``."""
    wanted = widen(teacher).softmax(dim=-1)
    return -(wanted * widen(logits).log_softmax(dim=-1)).sum(dim=-1)
