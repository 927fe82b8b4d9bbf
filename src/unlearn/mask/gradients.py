"""Sums of gradients over the forget or the retain examples, lean and cached.

The sums are stored without the factor 1/A, before any score is formed, so one file serves every
ratio, every μ, every accumulation setting and every score type that is a function of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from wagle import ranks
from wagle.config.keys import UnlearnSection
from wagle.dataset.encoding import IGNORED, Encoded, pad_batch
from wagle.entries import SQUARES
from wagle.model.head import token_losses
from wagle.stopping import deferring
from wagle.terminal import Progress
from wagle.unlearn.mask.fingerprints import examples_fingerprint, model_fingerprint
from wagle.unlearn.mask.partial_sums import PartialSums
from wagle.unlearn.mask.sums import GradientSums
from wagle.unlearn.mask.tensor_file import TensorFile, cached_tensors

FORMAT = "1"  # part of every fingerprint: raise it when the meaning of the stored sums changes

OnResume = Callable[[dict[str, str]], None]
"""Told that work went on after an interruption, as manifests list it."""


def token_weights(examples: Sequence[Encoded], batch_size: int) -> list[float]:
    """Weight of each example's tokens in Σ over batches of the batch's token-mean loss.

    With these weights the sum does not depend on how examples are grouped when they are run.
    """
    scored = [sum(label != IGNORED for label in e.labels[1:]) for e in examples]
    weights = []
    for start in range(0, len(examples), batch_size):
        batch = scored[start : start + batch_size]
        weights += [1 / max(sum(batch), 1)] * len(batch)
    return weights


def sum_gradients(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    section: UnlearnSection,
    file: TensorFile,
    *,
    batch_size: int,
    pad_token_id: int,
    description: str,
    partial: PartialSums | None = None,
    squares: bool = False,
) -> None:
    """Σ over published batches of ∇θ of the batch's token-mean cross-entropy, into a file.

    The model is in eval mode and its weights do not change between batches (Jia et al. 2024,
    section 4). Examples are run sorted by length. Of N processes each runs every Nth batch and
    writes its part of the sums, which are those of one. A signal that asks the program to end is
    obeyed after a few examples, those that are run at the same time.

    Args:
        section: its keys ``attribution_…`` say how many rows are run together, where the sums live
            while they grow (``none``: the weights' device), and their dtype.
        file: made for the model's parameters and the dtype of the sums, all zeros.
        batch_size: rows of a published batch; its loss is the mean over its labelled tokens.
        partial: where summation goes on from, and what it leaves to go on from.
        squares: sum the squares of the gradients instead, each of one row's token-mean
            cross-entropy: a backward pass a row, and ``batch_size`` has no part in it.
    """
    dtype, offload = sums_dtype(section), section.attribution_offload
    sums = GradientSums(model, dtype, offload, file, squares=squares)
    rows = 1 if squares else section.attribution_batch_size
    weights = token_weights(examples, 1 if squares else batch_size)
    was_training = model.training
    model.eval()
    try:
        with deferring("these rows") as request, sums.consuming(model):
            first = partial.restore(sums) if partial else 0
            rounds = _weighted_losses(
                model, examples, weights, rows, pad_token_id, first, description
            )
            for done, sums.present, loss in rounds:
                loss.backward()
                sums.add_whole()
                asked = ranks.any_of(request.kind is not None)
                if partial:
                    partial.after(done, sums, asked=asked)
                if asked:
                    request.end()
        sums.finish()
    finally:
        model.train(was_training)


def _weighted_losses(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    weights: Sequence[float],
    rows_at_once: int,
    pad_token_id: int,
    first: int,
    description: str,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The losses of this process's batches of the rows from a number on.

    Each with the number of rows up to the last one of all processes' batches, and how many
    processes have one. Those that have none in the last round run another's: all take the same
    part.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    starts = range(first, len(order), rows_at_once)
    with Progress(description, len(order)) as bar:
        bar.update(first)
        for number in range(0, len(starts), ranks.size()):
            dealt = starts[number : number + ranks.size()]
            start = dealt[min(ranks.rank(), len(dealt) - 1)]
            chosen = order[start : start + rows_at_once]
            batch = pad_batch([examples[i] for i in chosen], pad_token_id)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            losses, rows = token_losses(model, batch)
            row_weights = torch.tensor([weights[i] for i in chosen], device=model.device)
            done = min(dealt[-1] + rows_at_once, len(order))
            yield done, len(dealt), (losses * row_weights[rows]).sum()
            bar.update(done - dealt[0])


def cached_gradient_sums(
    model: PreTrainedModel,
    examples_by_kind: Mapping[str, Sequence[Encoded]],
    section: UnlearnSection,
    prefix: Path,
    *,
    batch_size: int,
    pad_token_id: int,
    on_resume: OnResume = lambda entry: None,
) -> dict[str, TensorFile]:
    """The gradient sums of each kind of example, from the cache where its fingerprint fits.

    They depend on the model, the examples, the dtype of the sums and, but for squares, on the
    published batch size.

    Args:
        examples_by_kind: for example ``{"forget": …, "retain": …, "retain_squares": …}``; of the
            last the squares are summed.
        section, batch_size: as for :func:`sum_gradients`; ``section.lock_timeout``: seconds to wait
            for another process that makes the same sums.
        on_resume: told when summing went on after an interruption.
        prefix: the files are ``{prefix}.{kind}_gradients.safetensors``, and
            ``{prefix}.retain_squares.safetensors``.

    Returns:
        For each kind a file with one tensor per parameter.
    """
    shapes = {name: p.shape for name, p in model.named_parameters()}
    model_hash = model_fingerprint(model) if examples_by_kind else ""
    dtype = sums_dtype(section)
    files = {}
    for kind, examples in examples_by_kind.items():
        squares = kind.endswith(SQUARES)
        name = kind if squares else f"{kind}_gradients"
        path = prefix.with_name(f"{prefix.name}.{name}.safetensors")
        batches = "squares" if squares else str(batch_size)
        parts = [FORMAT, model_hash, batches, str(dtype), examples_fingerprint(examples)]
        fingerprint = " ".join(parts)
        fill = functools.partial(
            sum_gradients,
            *(model, examples, section),
            batch_size=batch_size,
            pad_token_id=pad_token_id,
            description=name.replace("_", " "),
            partial=PartialSums(path, fingerprint, len(examples), on_resume),
            squares=squares,
        )
        files[kind] = cached_tensors(path, fingerprint, shapes, dtype, fill, section.lock_timeout)
    return files


def sums_dtype(section: UnlearnSection) -> torch.dtype:
    """Of the sums, float32 or float64, whatever the weights' dtype."""
    dtype: torch.dtype = getattr(torch, section.attribution_dtype)
    return dtype
