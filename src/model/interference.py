"""What each of several requests does to what the others were to forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedModel

from wagle.dataset.encoding import Encoded
from wagle.dataset.sources import row_encoder
from wagle.metrics.likelihood import token_log_probs
from wagle.model.opened import OpenedRun
from wagle.unlearn.mask.certificate import model_bits
from wagle.unlearn.mask.delta import Delta, apply_delta

BASE = "before"
"""The column of the model before any request."""


def interference(
    run: OpenedRun, deltas: Mapping[str, Delta], sets: Sequence[str]
) -> dict[str, dict[str, float]]:
    """How likely the answers of sets are before all requests, and after each one.

    Args:
        run: with the model before all requests, loaded; it gets the deltas, one after the other.
        deltas: by the name of their request, in the order in which they are put in.
        sets: data sets, as ``dataset.forget_dataset_name`` names them.

    Returns:
        By set and request: mean over rows of e^{-a}, a the mean loss of a row's labelled tokens.

    Raises:
        WagleError: a set cannot be had; a delta does not fit what came before it.
    """
    table: dict[str, dict[str, float]] = {name: {} for name in sets}

    def measure(column: str) -> None:
        for name in sets:
            table[name][column] = answer_probability(run, name, f"{name} {column}")

    measure(BASE)
    for request, delta in deltas.items():
        apply_delta(delta, model_bits(run.model))
        measure(f"after {request}")
    return table


def answer_probability(run: OpenedRun, name: str, description: str) -> float:
    """:func:`mean_probability` of the rows of a data set."""
    encode = row_encoder(name, run.tokenizer, run.template)
    return mean_probability(
        run.model,
        [encode(row) for row in run.data.rows(name)],
        batch_size=run.config.evaluation.batch_size,
        pad_token_id=run.tokenizer.pad_token_id,
        description=description,
    )


def mean_probability(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    *,
    batch_size: int,
    pad_token_id: int,
    description: str = "asking",
) -> float:
    """Mean over rows of e^{-a}, a the mean loss of a row's labelled tokens."""
    log_probs = token_log_probs(
        model, rows, batch_size=batch_size, pad_token_id=pad_token_id, description=description
    )
    return float(np.mean([np.exp(float(row.mean())) for row in log_probs]))
