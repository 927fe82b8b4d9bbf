"""Which evaluation belongs to which task.

To add one: a function from :class:`EvaluationContext` to flat results, and a line in
``EVALUATIONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.dataset.templates import Template
from src.metrics.sentence import load_sentence_encoder
from src.metrics.tofu import evaluate_tofu, summarize_tofu, tofu_subsets


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluation works with.

    Attributes:
        template: the one that training used.
        load_rows: rows of a data set by name.
        forget_dataset_name: decides which questions are asked.
        protocol: ``corrected`` or ``published``.
        batch_size: sequences that are run together.
        limit: first rows of each set, for quick looks; ``None``: all.
        sentence_model: hub id, folder or Python package of the sentence encoder.
        save: keeps a document of the run: (file name, content).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    load_rows: Callable[[str], Sequence[Mapping[str, Any]]]
    forget_dataset_name: str
    protocol: str
    batch_size: int
    limit: int | None
    sentence_model: str
    save: Callable[[str, Any], None]


def evaluate_tofu_task(context: EvaluationContext) -> dict[str, float]:
    """TOFU: ``tofu.json``, and the paper's UE and UT numbers as flat results."""
    subsets = tofu_subsets(context.forget_dataset_name)
    result = evaluate_tofu(
        context.model,
        context.tokenizer,
        context.template,
        {name: context.load_rows(subset) for name, subset in subsets.items()},
        encoder=load_sentence_encoder(context.sentence_model, context.model.device),
        protocol=context.protocol,
        batch_size=context.batch_size,
        limit=context.limit,
    )
    context.save("tofu.json", result)
    return summarize_tofu(result)


EVALUATIONS: dict[str, Callable[[EvaluationContext], dict[str, float]]] = {
    "tofu": evaluate_tofu_task,
}
"""By ``unlearn.task_name``."""
