"""TOFU as its authors and open-unlearning evaluate a model: ``evaluation.protocol official``.

Maini et al. 2024 (arXiv 2401.06121), Dorna et al. 2025 (arXiv 2506.12618). The scores themselves
come from what is measured here by :func:`wagle.metrics.tofu_official.official_scores`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.dataset.encoding import Encoded, encode_conversation
from wagle.dataset.templates import Template
from wagle.metrics.generation import end_tokens, generate_greedy
from wagle.metrics.likelihood import TokenScores
from wagle.metrics.memorization import exact_memorization, extraction_strength
from wagle.metrics.text import rouge_l_recall
from wagle.metrics.tofu import MAX_TEXT_LENGTH, score_answers
from wagle.metrics.tofu_results import (
    EPSILON,
    Keep,
    PerAnswer,
    Sources,
    TofuResults,
    TofuRow,
    TofuSet,
    answers_of,
    keep_nothing,
    measure_in_stages,
)

NEW_TOKENS = 200  # of a greedy answer


def evaluate_official(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    sets: Sources,
    *,
    batch_size: int,
    keep: Keep = keep_nothing,
) -> TofuResults:
    """Evaluate on the sets ``forget``, ``retain``, ``real_author`` and ``world_fact``.

    Answers, paraphrased and wrong answers alike follow the original question and end with EOS,
    which counts; exact memorisation and extraction strength leave the last label out, and where EOS
    is the only one, there is no exact memorisation. Greedy answers have up to ``NEW_TOKENS``
    tokens.

    Args:
        sets: rows with ``question``, ``answer``, ``perturbed_answer`` (a list) and, in the first
            two sets, ``paraphrased_answer``.
        keep: as of :func:`wagle.metrics.tofu_results.measure_in_stages`.
    """
    asked = [
        _ask(tokenizer, template, source, role) for role, group in sets.items() for source in group
    ]

    def score() -> Iterator[TofuRow]:
        sequences = [row.sequences for row in asked]
        scored = score_answers(model, tokenizer, sequences, batch_size=batch_size)
        return map(_scored_row, asked, scored)

    judged = measure_in_stages(
        sets,
        keep,
        score=score,
        answer=lambda rows: _answer(model, tokenizer, asked, rows.rows, batch_size),
        judge=lambda role, rows: _judge(rows, sets[role], role),
    )
    return TofuResults(judged, "official", EPSILON)


@dataclass(frozen=True)
class _Asked:
    """A row of data, the tokens of its prompt, and its answers as they follow that."""

    source: Mapping[str, Any]
    prompt: list[int]
    sequences: PerAnswer[Encoded]


def _ask(
    tokenizer: PreTrainedTokenizerBase, template: Template, source: Mapping[str, Any], role: str
) -> _Asked:
    encode = partial(
        encode_conversation, tokenizer, template, source["question"], max_length=MAX_TEXT_LENGTH
    )
    encoded = answers_of(source, role).map(encode)
    return _Asked(source, encoded.answer[0], encoded.map(lambda pair: pair[1]))


def _scored_row(asked: _Asked, scores: PerAnswer[TokenScores]) -> TofuRow:
    known = scores.answer.is_greedy[:-1]
    return TofuRow(
        question=asked.source["question"],
        answer=asked.source["answer"],
        exact_memorization=exact_memorization(known) if len(known) else None,
        # Of a start that is never enough, all but one token count as needed.
        extraction_strength=max(extraction_strength(known), 1 / len(known)) if len(known) else 0,
        loss=scores.map(attrgetter("loss")),
        tokens=scores.map(len),
    )


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[_Asked],
    rows: Sequence[TofuRow],
    batch_size: int,
) -> list[TofuRow]:
    """The rows with greedy answers, and what these are compared with."""
    prompts = [row.prompt for row in asked]
    generated = generate_greedy(
        model,
        prompts,
        eos_token_ids=end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_total_length=max(map(len, prompts)) + NEW_TOKENS,
        batch_size=batch_size,
        description="answering questions",
    )
    whole = [row.sequences.answer.input_ids for row in asked]
    texts = (
        tokenizer.batch_decode(ids, skip_special_tokens=True)
        for ids in (prompts, whole, [tokens[:NEW_TOKENS] for tokens in generated])
    )
    return [
        # The reference is what the tokens say beside the prompt, not the answer as given.
        replace(row, reference=true.replace(prompt, "").strip(), generated=text.strip())
        for row, prompt, true, text in zip(rows, *texts, strict=True)
    ]


def _judge(rows: TofuSet, sources: Sequence[Mapping[str, Any]], role: str) -> TofuSet:
    """The set with the ROUGE of its answers."""
    references, texts = rows.all(lambda row: row.reference), rows.all(lambda row: row.generated)
    others = [answers_of(source, role).paraphrase.strip() for source in sources]
    return TofuSet(
        tuple(
            replace(
                row,
                rouge=rouge_l_recall(reference, generated),
                paraphrase_rouge=rouge_l_recall(other, generated) if role == "forget" else None,
            )
            for row, reference, generated, other in zip(
                rows.rows, references, texts, others, strict=True
            )
        )
    )
