"""The terms that unlearning objectives are made of.

Shapes: ``B`` examples, ``T`` tokens, ``V`` vocabulary entries. A view is a dict with int64
``input_ids``, ``attention_mask`` and ``labels``, each ``(B, T)``; labels of -100 are not scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from wagle.dataset.encoding import IGNORED
from wagle.model.head import Head, token_losses, widen

if TYPE_CHECKING:
    from wagle.unlearn.objectives.base import ReferenceModel

View = Mapping[str, torch.Tensor]
"""One kind of example in a batch, such as ``forget``: its tokens, and what belongs to them."""


def example_cross_entropy(model: PreTrainedModel, view: View) -> torch.Tensor:
    """Token-mean cross-entropy of every example, float32 ``(B,)``."""
    losses, _ = token_losses(model, view)
    labelled = view["labels"][:, 1:] != IGNORED
    # Laid out by row and summed along it: adding by index is in no fixed order on a GPU.
    by_row = losses.new_zeros(labelled.shape).masked_scatter(labelled, losses)
    return by_row.sum(dim=1) / labelled.sum(dim=1)


def answer_lengths(labels: torch.Tensor) -> torch.Tensor:
    """Number of scored tokens of every example, ``(B,)``; the first token is never predicted."""
    return (labels[:, 1:] != IGNORED).sum(dim=1)


def cross_entropy(model: PreTrainedModel, view: View) -> torch.Tensor:
    """CE: token-mean cross-entropy per example, then the mean over the batch (scalar)."""
    return example_cross_entropy(model, view).mean()


def excess_cross_entropy(model: PreTrainedModel, view: View) -> torch.Tensor:
    """CE of every example less its CE under the model before unlearning, float32 ``(B,)``.

    That is −log(π(y|x) / π_ref(y|x)) / |y|. The view carries ``reference_loss``, ``(B,)``.
    """
    return example_cross_entropy(model, view) - view["reference_loss"]


def divergences(
    model: PreTrainedModel, views: Sequence[View], reference: ReferenceModel
) -> list[torch.Tensor]:
    """H of each view between the current model and the one before unlearning (scalars).

    H(p, q) is the mean of :func:`soft_cross_entropy` over real tokens. The published implementation
    averages over padding as well; here only positions with ``attention_mask`` 1 count, which is the
    same for unpadded rows.

    The reference runs first for all views: its weights may be swapped into the current model, which
    must not happen between a forward pass and its backward pass. So its logits are kept, those of
    real tokens in the model's dtype; all else that is as wide as the vocabulary lives for a chunk.
    """
    targets = reference_logits(views, reference)
    head = Head.of(model)
    return [
        head.measure(soft_cross_entropy, real_states(head, view), target).mean()
        for view, target in zip(views, targets, strict=True)
    ]


def reference_logits(views: Sequence[View], reference: ReferenceModel) -> list[torch.Tensor]:
    """The original model's logits of each view's ``N`` tokens that are no padding, ``(N, V)``."""
    with torch.no_grad(), reference() as original:
        head = Head.of(original)
        return [head.logits(real_states(head, view)) for view in views]


def kl_divergence(model: PreTrainedModel, view: View, target: torch.Tensor) -> torch.Tensor:
    """Mean over real tokens of Σ_v p_ref,v · (log p_ref,v − log p_v), a scalar.

    The proper divergence, in the direction of distillation; :func:`divergences` is the quantity
    that the WAGLE paper's methods call KL. Unlike open-unlearning's, whose mean is over padding as
    well, it does not depend on what a row is batched with.

    Args:
        target: of :func:`reference_logits`, ``(N, V)``.
    """
    head = Head.of(model)
    return head.measure(_kl_from_reference, real_states(head, view), target).mean()


def _kl_from_reference(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    p_ref = widen(target).log_softmax(dim=-1)
    return (p_ref.exp() * (p_ref - widen(logits).log_softmax(dim=-1))).sum(dim=-1)


def real_states(head: Head, view: View) -> torch.Tensor:
    """States of the ``N`` tokens that are no padding, ``(N, width)``."""
    attention_mask = view["attention_mask"]
    places = view["real"] if "real" in view else attention_mask.flatten().nonzero()[:, 0]
    states = head.states(input_ids=view["input_ids"], attention_mask=attention_mask)
    return states.flatten(0, 1).index_select(0, places)


def soft_cross_entropy(logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """−Σ_v p_v · log(q_v + 1e-12) of every token, float32 ``(N,)``.

    p is the current model's distribution and q the reference's. The mean of this is the quantity
    that the published implementation calls KL.

    Args:
        logits, reference_logits: ``(N, V)``.
    """
    p = widen(logits).softmax(dim=-1)
    q = widen(reference_logits).softmax(dim=-1)
    return -(p * (q + 1e-12).log()).sum(dim=-1)
