"""The reference model of membership inference: is it there, and how likely does it find texts?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.config import UnlearnConfig
from wagle.metrics.membership import text_losses
from wagle.model.evaluation_context import EvaluationContext
from wagle.model.loading import load_model, read_tokenizer


def check_reference_model(config: UnlearnConfig) -> None:
    """Whether ``evaluation.reference_model``, if it is set, can be found.

    Raises:
        WagleError: it cannot.
    """
    name, cache = config.evaluation.reference_model, Path(config.overall.cache_dir)
    if name is not None:
        hint = "a local folder with --evaluation.reference_model FOLDER"
        read_tokenizer(name, cache, what="reference model", hint=hint)


def load_reference(
    context: EvaluationContext,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that ``evaluation.reference_model`` names, as the evaluated one is held."""
    name = context.config.evaluation.reference_model
    assert name is not None  # an attack asks for it, and so has the configuration
    return load_model(
        name,
        dtype=context.model.dtype,
        device=context.model.device,
        cache_dir=context.cache_dir,
    )


def reference_losses(
    context: EvaluationContext, texts: Sequence[str], *, max_length: int
) -> list[float]:
    """Token-mean negative log-likelihood of each text under the reference model.

    Args:
        max_length: tokens of each text that are read.
    """
    model, tokenizer = load_reference(context)
    return text_losses(
        model, tokenizer, texts, max_length=max_length, batch_size=context.batch_size
    )
