"""The terms that unlearning objectives are made of.

Shapes: ``B`` examples, ``T`` tokens, ``V`` vocabulary entries. A view is a dict with int64
``input_ids``, ``attention_mask`` and ``labels``, each ``(B, T)``; labels of -100 are not scored.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from wagle.dataset.encoding import IGNORED

View = dict[str, torch.Tensor]


def forward_logits(model: PreTrainedModel, view: View) -> torch.Tensor:
    """Next-token logits ``(B, T, V)`` in the model's dtype."""
    ids, attention_mask = view["input_ids"], view["attention_mask"]
    return model(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in its own dtype where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of every labelled token.

    Args:
        logits: ``(B, T, V)``; position ``t`` predicts token ``t + 1``.
        labels: ``(B, T)``, not shifted.

    Returns:
        float32 losses ``(M,)`` of the ``M`` labelled tokens, row by row, and the row of each.
    """
    targets = labels[:, 1:]
    labelled = targets != IGNORED
    losses = F.cross_entropy(widen(logits[:, :-1][labelled]), targets[labelled], reduction="none")
    return losses, labelled.nonzero()[:, 0]


def example_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Token-mean cross-entropy of every example, float32 ``(B,)``."""
    losses, _ = token_losses(logits, labels)
    labelled = labels[:, 1:] != IGNORED
    # Laid out by row and summed along it: adding by index is in no fixed order on a GPU.
    by_row = losses.new_zeros(labelled.shape).masked_scatter(labelled, losses)
    return by_row.sum(dim=1) / labelled.sum(dim=1)


def answer_lengths(labels: torch.Tensor) -> torch.Tensor:
    """Number of scored tokens of every example, ``(B,)``; the first token is never predicted."""
    return (labels[:, 1:] != IGNORED).sum(dim=1)


def cross_entropy(model: PreTrainedModel, view: View) -> torch.Tensor:
    """CE: token-mean cross-entropy per example, then the mean over the batch (scalar)."""
    return example_cross_entropy(forward_logits(model, view), view["labels"]).mean()


def excess_cross_entropy(model: PreTrainedModel, view: View) -> torch.Tensor:
    """CE of every example less its CE under the model before unlearning, float32 ``(B,)``.

    That is −log(π(y|x) / π_ref(y|x)) / |y|. The view carries ``reference_loss``, ``(B,)``.
    """
    losses = example_cross_entropy(forward_logits(model, view), view["labels"])
    return losses - view["reference_loss"]


def soft_cross_entropy(
    logits: torch.Tensor, reference_logits: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """H(p, q) = −mean over real tokens of Σ_v p_v · log(q_v + 1e-12), a scalar.

    p is the current model's distribution and q the reference's. This is the quantity that the
    published implementation calls KL. It averages over padding as well; here only positions with
    ``attention_mask`` 1 count, which is the same for unpadded rows.

    Args:
        logits, reference_logits: ``(B, T, V)``.
        attention_mask: ``(B, T)``.
    """
    real = attention_mask.bool()
    p = widen(logits[real]).softmax(dim=-1)
    q = widen(reference_logits[real]).softmax(dim=-1)
    return -(p * (q + 1e-12).log()).sum(dim=-1).mean()
