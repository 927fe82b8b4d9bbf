"""The copyright task: does the model still continue a text word for word?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.dataset.templates import Template
from wagle.metrics.generation import answer_questions
from wagle.metrics.text import bleu, rouge_l_recall

MAX_TOTAL_LENGTH = 600  # tokens of prompt and greedy continuation together


def evaluate_copyright(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    parts: Mapping[str, Sequence[Mapping[str, str]]],
    *,
    batch_size: int,
    word_tokenizer: str = "rouge_score",
) -> dict[str, Any]:
    """Continue the prompts of each part greedily and compare with the true continuations.

    Args:
        parts: rows with a prompt as ``question`` and its true continuation as ``answer``.
        word_tokenizer: of ROUGE and BLEU, as in :mod:`wagle.metrics.text`.

    Returns:
        The content of ``copyright.json``: per part the means of bleu (0 to 100) and rougeL_score (0
        to 1), and per row these values with the generated text.
    """
    rows = [row for part in parts.values() for row in part]
    generated = iter(
        answer_questions(
            model,
            tokenizer,
            template,
            [row["question"] for row in rows],
            max_total_length=MAX_TOTAL_LENGTH,
            batch_size=batch_size,
            description="continuing texts",
        )
    )
    return {
        name: _compare(part, [next(generated) for _ in part], word_tokenizer)
        for name, part in parts.items()
    }


def _compare(
    rows: Sequence[Mapping[str, str]], texts: Sequence[str], word_tokenizer: str
) -> dict[str, Any]:
    documents = [
        {
            "question": row["question"],
            "answer": row["answer"],
            "generated": text,
            "bleu": bleu(row["answer"], text, word_tokenizer),
            "rougeL_score": rouge_l_recall(row["answer"], text, word_tokenizer),
        }
        for row, text in zip(rows, texts, strict=True)
    ]
    means = {
        key: statistics.fmean(document[key] for document in documents)
        for key in ("bleu", "rougeL_score")
    }
    return {**means, "rows": documents}
