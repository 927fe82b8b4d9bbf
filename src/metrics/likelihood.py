"""Log-probabilities of labelled tokens, batched and without wide logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from src.dataset.encoding import IGNORED, Encoded, pad_batch

LOGITS_CHUNK = 1024  # tokens whose vocabulary-wide logits exist at once


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode, without gradients; the mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def splits_into_backbone_and_head(model: PreTrainedModel) -> bool:
    """Whether the logits are just the output head applied to the backbone's last hidden state.

    Some architectures scale or cap the logits after the head; they are found by trying.
    """
    head, backbone = model.get_output_embeddings(), model.base_model
    if head is None or backbone is model:
        return False
    probe = torch.arange(4, device=model.device)[None]
    with evaluating(model):
        hidden = backbone(input_ids=probe).last_hidden_state
        return torch.equal(head(hidden), model(input_ids=probe).logits)


def token_log_probs(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    *,
    batch_size: int,
    pad_token_id: int,
    description: str,
    logits_chunk: int = LOGITS_CHUNK,
) -> list[np.ndarray]:
    """Log-probability of every labelled token given everything before it.

    Sequences are run sorted by length in right-padded batches. Vocabulary-wide logits exist for at
    most ``logits_chunk`` tokens at once, and only for labelled ones; architectures whose logits are
    more than the head of the hidden state run as many rows at once as that allows.

    Returns:
        For each sequence, in the order given, float32 ``(labelled tokens,)``. The first token of a
        sequence is never predicted.
    """
    results: list[np.ndarray] = [np.empty(0, np.float32)] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].input_ids))
    with (
        evaluating(model),
        tqdm(total=len(order), desc=description, unit="row", disable=None) as bar,
    ):
        split = splits_into_backbone_and_head(model)
        for rows in _batches(sequences, order, batch_size, None if split else logits_chunk):
            batch = pad_batch([sequences[i] for i in rows], pad_token_id)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            scored = batch["labels"][:, 1:] != IGNORED
            targets = batch["labels"][:, 1:][scored]
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            if split:
                states = model.base_model(**inputs).last_hidden_state[:, :-1][scored]
                head = model.get_output_embeddings()
            else:
                states = model(**inputs).logits[:, :-1][scored]
                head = torch.nn.Identity()
            log_probs = torch.cat(
                [
                    _log_probs(head(part), target)
                    for part, target in zip(
                        states.split(logits_chunk), targets.split(logits_chunk), strict=True
                    )
                ]
            )
            counts = scored.sum(dim=1).tolist()
            for row, values in zip(rows, log_probs.cpu().split(counts), strict=True):
                results[row] = values.numpy()
            bar.update(len(rows))
    return results


def _log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """``(M, V)`` logits and ``(M,)`` tokens to float32 ``(M,)``."""
    logits = logits.float()
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(dim=1)


def _batches(
    sequences: Sequence[Encoded], order: Sequence[int], rows: int, tokens: int | None
) -> Iterator[list[int]]:
    """Runs of ``order`` (ascending length): at most ``rows`` rows, ``tokens`` padded tokens."""
    batch: list[int] = []
    for index in order:
        padded = (len(batch) + 1) * len(sequences[index].input_ids)
        if batch and (len(batch) == rows or (tokens is not None and padded > tokens)):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
