"""How long the gradients of a text are, tensor by tensor, without keeping any of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from wagle.dataset.encoding import IGNORED, Encoded, pad_batch
from wagle.metrics.partial_work import PartialWork
from wagle.model.head import token_losses
from wagle.terminal import Progress


def gradient_norms(
    model: PreTrainedModel, sequences: Sequence[Encoded], *, pad_token_id: int
) -> list[float]:
    """Mean over the parameters of the length of the gradient of each sequence's mean loss.

    A backward pass makes the gradients one tensor after another; each is measured and dropped as
    soon as it is there, so that of a model of two gigabytes in tensors of 50 MB there are never
    more than a few such tensors. The mean is over the tensors that get a gradient (gradnorm of
    open-unlearning, arXiv 2506.12618; Wang et al. 2024, arXiv 2402.17012).

    Args:
        sequences: a token-mean loss of the labelled tokens of each; without any, 0.

    Returns:
        Euclidean lengths, computed in float32, of each sequence, in the order given.
    """
    lengths: list[torch.Tensor] = []

    def measure(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        lengths.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
        parameter.grad = None

    work = PartialWork(
        model,
        "gradients of texts",
        len(sequences),
        lambda: [[[row.input_ids, row.labels] for row in sequences], pad_token_id],
        until="this text",
    )
    norms: list[float] = work.found or []
    with _trainable(model), Progress("gradients of texts", len(sequences)) as bar, work:
        bar.update(len(norms))
        handles = [p.register_post_accumulate_grad_hook(measure) for p in model.parameters()]
        try:
            for sequence in sequences[len(norms) :]:
                lengths.clear()
                if any(label != IGNORED for label in sequence.labels[1:]):
                    batch = pad_batch([sequence], pad_token_id)
                    losses, _ = token_losses(
                        model, {name: part.to(model.device) for name, part in batch.items()}
                    )
                    losses.mean().backward()
                norms.append(float(torch.stack(lengths).mean()) if lengths else 0.0)
                bar.update()
                work.note(len(norms), lambda: norms)
        finally:
            for handle in handles:
                handle.remove()
    return norms


@contextmanager
def _trainable(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, with gradients for every parameter; all is as before afterwards.

    Gradients that are there already are kept, and do not count.
    """
    was_training = model.training
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    model.eval()
    for parameter, *_ in before:
        parameter.requires_grad_(True)
        parameter.grad = None
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(was_training)
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient
