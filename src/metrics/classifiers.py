"""Text classifiers that judge what a model has written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wagle.errors import WagleError

if TYPE_CHECKING:
    import torch
    from transformers import TextClassificationPipeline


def load_classifier(
    name: str, label: str, *, what: str, key: str, device: torch.device, cache_dir: Path
) -> TextClassificationPipeline:
    """Load a text classifier.

    Args:
        name: a local folder or a hub id.
        label: that it must have.
        what, key: for messages: what it is called, and the key that names it.

    Raises:
        WagleError: it cannot be loaded, or has no such label.
    """
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TextClassificationPipeline,
    )

    from wagle.hub import hub_options, loading
    from wagle.model.weights import load_whole

    options = hub_options(name, cache_dir)
    with loading(what, name, f"a folder with --{key} FOLDER"):
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model = load_whole(AutoModelForSequenceClassification, name, **options)
    longest = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    labels = [str(label) for label in (model.config.id2label or {}).values()]
    if label not in labels:
        raise WagleError(f"the {what} {name!r} has no label {label!r} but {', '.join(labels)}")
    return TextClassificationPipeline(model=model, tokenizer=tokenizer, device=device)


def label_scores(
    classifier: TextClassificationPipeline,
    texts: Sequence[str],
    label: str,
    *,
    function: Literal["sigmoid", "softmax"],
    batch_size: int,
    max_length: int | None = None,
) -> list[float]:
    """How sure the classifier is of the label, 0 to 1, of each text in the order given.

    Args:
        function: of labels that may hold together, or of which one holds.
        max_length: tokens of each text that are read; ``None``: as many as it can.
    """
    scores = [0.0] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    judged: Any = classifier(
        [texts[i] for i in order],
        top_k=None,
        function_to_apply=function,
        batch_size=batch_size,
        truncation=True,
        max_length=max_length,
    )
    for index, labels in zip(order, judged, strict=True):
        scores[index] = next(entry["score"] for entry in labels if entry["label"] == label)
    return scores
