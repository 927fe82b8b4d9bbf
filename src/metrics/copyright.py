"""The benchmark copyright: does the model still continue a text word for word?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wagle.metrics.benchmark import (
    ROUGE_OF_ANSWER,
    Answers,
    Benchmark,
    Measure,
    Metric,
    Numbers,
    Settings,
    forgets,
)
from wagle.metrics.utility import UTILITY, UTILITY_ROLES, measure_few_shots, measure_perplexity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from wagle.config import UnlearnConfig
    from wagle.dataset.templates import Template
    from wagle.metrics.resampling import Documents, Recount
    from wagle.model.evaluation_context import EvaluationContext

MAX_TOTAL_LENGTH = 600  # tokens of prompt and greedy continuation together


def _known(title: str, text: str) -> dict[str, Metric]:
    """Of the unlearned (seen) text less is better, and so it is said of the other one."""
    return {
        "bleu": Metric(
            f"{title} BLEU",
            f"How exactly its continuations repeat {text}: word sequences in common.",
            -1,
            group=title,
            largest=100,
        ),
        "rougeL_score": Metric(
            f"{title} RougeL",
            f"How much of {text} its continuations contain.",
            -1,
            group=title,
            largest=1,
        ),
    }


KNOWN = {
    "train": _known("seen", "the text that it was to forget"),
    "test": _known("unseen", "a text that it never saw"),
}
"""By the part of the text and the measure in ``copyright.json``."""


def measure_continuations(context: EvaluationContext) -> Numbers:
    """How much of a text is still known: ``copyright.json``."""
    from wagle.model.evaluation_context import choose_words

    parts = {part: list(rows)[: context.limit] for part, rows in context.asked_rows().items()}
    words = choose_words(context.config, parts)
    result = evaluate_copyright(
        context.model,
        context.tokenizer,
        context.template,
        parts,
        batch_size=context.batch_size,
        word_tokenizer=words,
    )
    context.save("copyright.json", {"word_tokenizer": words, **result})
    return {
        metric: result[part][key] for part, known in KNOWN.items() for key, metric in known.items()
    }


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
    from wagle.metrics.generation import answer_questions

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
    from wagle.metrics.text import bleu, rouge_l_recall

    documents: list[dict[str, Any]] = [
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


def _sets(config: UnlearnConfig) -> dict[str, str]:
    return {part: f"HP_{part}_{config.evaluation.prompt_tokens}" for part in KNOWN}


def _is_default(values: Settings) -> bool:
    return forgets(values, "HP", f"HP/hp_test_qa_{values['evaluation.prompt_tokens']}.jsonl")


def _recount(load: Documents, config: Settings) -> Recount:
    from wagle.metrics.resampling import Recount, asked_in, column_of

    rows = {part: load("copyright.json")[part]["rows"] for part in KNOWN}
    return Recount.of_means(
        {part: asked_in(found) for part, found in rows.items()},
        {
            metric: (part, column_of(rows[part], key))
            for part, known in KNOWN.items()
            for key, metric in known.items()
        },
    )


COPYRIGHT = Benchmark(
    "copyright",
    "Copyright: what is still known of the text, and utility (UT)",
    metrics=(*(m for known in KNOWN.values() for m in known.values()), *UTILITY),
    parts={
        "copyright": measure_continuations,
        "perplexity": measure_perplexity,
        "few_shots": measure_few_shots,
    },
    sets=_sets,
    longest=MAX_TOTAL_LENGTH,
    continued=lambda text: MAX_TOTAL_LENGTH,
    lm_eval_roles=UTILITY_ROLES,
    is_default=_is_default,
    answers=Answers.within(
        "copyright.json",
        {"train": "Forget", "test": "Never seen"},
        ROUGE_OF_ANSWER,
        Measure("bleu", "bleu", "BLEU", "how exactly it is repeated, from 0 to 100"),
    ),
    recount=_recount,
)
