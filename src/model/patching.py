"""Activation patching: which blocks of a model hold what it knows, and another does not.

The residual stream of a source model, behind one block and at the places from which an answer is
predicted, is put into the full model, and the blocks above go on with it. What the answer's tokens
lose by that, in nats, is what the source lacks up to there. A model patched into itself loses
nothing; behind the last block, the full model's head reads what the source has made of the text
(Unlearning Depth Score, arXiv 2605.24614).

For example: with the states of a model that never saw the author, "Lisbon" loses 0.1 nats behind
block 0, 2.5 behind block 1 and 6 behind block 2. If the states of an unlearned model cost 0.1, 0.2
and 6, its block 1 still holds the author.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from wagle.errors import WagleError
from wagle.model.architecture import decoder_layers
from wagle.model.head import Head, token_losses
from wagle.model.reading import agree, evaluating, succeeds

RETAIN, UNLEARNED = "retain-only", "unlearned"
KNOWN = 0.05
"""Nats that a block must cost for it to hold knowledge (2605.24614)."""

View = Mapping[str, torch.Tensor]
"""A padded batch, as :func:`wagle.dataset.encoding.pad_batch` makes it, on the model's device."""


class Read(NamedTuple):
    """What a model makes of a batch.

    Attributes:
        log_probs: of its labelled tokens, row by row, ``(M,)``.
        rows: the row of each, int64 ``(M,)``.
        outputs: what each block gives: the residual stream behind it, ``(B, T, hidden)``, or a
            tuple that begins with it.
    """

    log_probs: torch.Tensor
    rows: torch.Tensor
    outputs: list[Any]


def read_blocks(model: PreTrainedModel, view: View) -> Read:
    """The labelled tokens' log-probabilities, and what every block gives.

    Raises:
        WagleError: the architecture has no list of decoder blocks.
    """
    Head.of(model)  # is found out by passes of its own, the first time, which must not be seen here
    outputs: list[Any] = []
    handles = [
        block.register_forward_hook(lambda *call: outputs.append(call[-1]))
        for block in decoder_layers(model)[1]
    ]
    try:
        with evaluating(model):
            losses, rows = token_losses(model, view)
    finally:
        for handle in handles:
            handle.remove()
    return Read(-losses, rows, outputs)


def patched_log_probs(
    model: PreTrainedModel, view: View, own: Sequence[Any], block: int, source: Any
) -> torch.Tensor:
    """The labelled tokens' log-probabilities with another model's states behind one block.

    Args:
        own: the model's ``outputs`` of the batch. Blocks up to the patched one give these, and do
            not run again.
        block: from 0.
        source: what the other model's block gives. Its states are put in at the places from which
            labelled tokens are predicted.

    Returns:
        ``(M,)``.
    """
    with evaluating(model):
        states = _states(own[block]).clone(memory_format=torch.contiguous_format)
        flat, places = states.flatten(0, 1), view["predicted"]
        flat[places] = _states(source).flatten(0, 1)[places].to(flat)
        patched = (states, *own[block][1:]) if isinstance(own[block], tuple) else states
        with _giving(decoder_layers(model)[1], [*own[:block], patched]):
            return -token_losses(model, view)[0]


def patching_losses(
    full: PreTrainedModel, view: View, own: Read, source: Sequence[Any]
) -> torch.Tensor:
    """What each labelled token's log-probability loses by patching behind each block, in nats.

    Args:
        own: what the full model makes of the batch.
        source: the ``outputs`` of another model of the same shape.

    Returns:
        float64 ``(blocks, M)``, on the CPU: log p of the full model minus that of the patched one.
    """
    patched = [
        patched_log_probs(full, view, own.outputs, block, output)
        for block, output in enumerate(source)
    ]
    return (own.log_probs - torch.stack(patched)).double().cpu()


class Lost(NamedTuple):
    """What a row's answer loses by patching.

    Attributes:
        tokens: which of its labelled tokens, counted from 0: those that the full model finds more
            likely than the retain-only one by the most, at least by something.
        by_source: mean over these tokens of log p of the full model minus that of the patched one,
            in nats, for each source a number a block; empty where there are no such tokens.
    """

    tokens: list[int]
    by_source: dict[str, list[float]]


def patch_rows(
    full: PreTrainedModel,
    retain: PreTrainedModel,
    unlearned: PreTrainedModel,
    view: View,
    *,
    tokens: int,
) -> list[Lost]:
    """What each row of a batch loses by the states of the two other models.

    Args:
        full: the model that knows.
        retain: the one that never knew.
        unlearned: the one that is to have forgotten.
        tokens: the most tokens of a row that are looked at.

    Raises:
        WagleError: the architecture cannot be patched.
    """
    own = read_blocks(full, view)
    check_patching(full, view, own)
    reads = {RETAIN: read_blocks(retain, view), UNLEARNED: read_blocks(unlearned, view)}
    losses = {n: patching_losses(full, view, own, read.outputs) for n, read in reads.items()}
    gap, rows = (own.log_probs - reads[RETAIN].log_probs).cpu(), own.rows.cpu()
    found = []
    for row in range(len(view["labels"])):
        places = (rows == row).nonzero()[:, 0]
        largest = gap[places].topk(min(tokens, len(places)))
        chosen = largest.indices[largest.values > 0].sort().values
        means = {n: loss[:, places[chosen]].mean(dim=1).tolist() for n, loss in losses.items()}
        found.append(Lost(chosen.tolist(), means if len(chosen) else {}))
    return found


def depth_score(lacking: Sequence[float], unlearned: Sequence[float]) -> float | None:
    """UDS of one row: how much of what a model never knew is gone from another, block by block.

    Σ Δ¹·clip(Δ²/Δ¹, 0, 1) / Σ Δ¹ over the blocks that hold knowledge, those with Δ¹ above
    :data:`KNOWN`. With Δ¹ = (0.01, 2, 6) and Δ² = (0, 0.5, 6) it is (0.5 + 6) / 8.

    Args:
        lacking: Δ¹ of each block: the loss by the states of the model that never knew, in nats.
        unlearned: Δ²: the loss by those of the unlearned model.

    Returns:
        From 0, all is still there, to 1, as little as if it had never been; ``None`` where no
        block holds knowledge.
    """
    known = [(a, min(max(b, 0.0), a)) for a, b in zip(lacking, unlearned, strict=True) if a > KNOWN]
    return sum(b for _, b in known) / sum(a for a, _ in known) if known else None


def check_alike(full: PreTrainedModel, source: PreTrainedModel, name: str) -> None:
    """Make sure that two models have blocks of one shape, and as many tokens.

    Args:
        name: of the source, for the message.

    Raises:
        WagleError: they have not.
    """
    if _shape(source) != _shape(full):
        raise WagleError(
            f"the {name} model has {_shape(source)}, the original one {_shape(full)}: states of "
            "the one cannot be put into the other"
        )


def check_patching(full: PreTrainedModel, view: View, own: Read) -> None:
    """Make sure that blocks hand on what they give and nothing else, by patching in a model's own.

    Raises:
        WagleError: the architecture hands on more.
    """
    middle = len(own.outputs) // 2
    if not succeeds(
        lambda: agree(
            patched_log_probs(full, view, own.outputs, middle, own.outputs[middle]), own.log_probs
        )
    ):
        raise WagleError(
            f"{type(full).__name__} does not answer as before when it is given its own states "
            f"behind block {middle}: its blocks hand on more than these, and patching would not "
            "mean what it is called"
        )


def _shape(model: PreTrainedModel) -> str:
    config, blocks = model.config.get_text_config(), len(decoder_layers(model)[1])
    return f"{blocks} blocks of width {config.hidden_size} and {config.vocab_size:,} tokens"


def _states(output: Any) -> torch.Tensor:
    """The residual stream in what a block gives."""
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


@contextmanager
def _giving(blocks: torch.nn.ModuleList, outputs: Sequence[Any]) -> Iterator[None]:
    """Within, the first blocks give these outputs instead of running."""

    def give(output: Any) -> Callable[..., Any]:
        return lambda *_, **__: output

    given = list(zip(blocks, outputs, strict=False))
    try:
        for block, output in given:
            block.forward = give(output)
        yield
    finally:
        for block, _ in given:
            vars(block).pop("forward", None)  # the class's is found again
