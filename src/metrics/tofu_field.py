"""TOFU as its authors and open-unlearning evaluate a model: ``evaluation.protocol official``.

Maini et al. 2024 (arXiv 2401.06121), Dorna et al. 2025 (arXiv 2506.12618). The scores themselves
come from what is measured here by :func:`wagle.metrics.tofu_official.official_scores`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.dataset.encoding import Encoded, encode_conversation
from wagle.dataset.templates import Template
from wagle.metrics.generation import end_tokens, generate_greedy
from wagle.metrics.likelihood import TokenScores, score_tokens
from wagle.metrics.memorization import exact_memorization, extraction_strength
from wagle.metrics.text import rouge_l_recall
from wagle.metrics.tofu import AUTHOR_SETS, FACT_SETS, MAX_TEXT_LENGTH, mean_loss

NEW_TOKENS = 200  # of a greedy answer
MEANS = ("truth_prob", "rougeL_score", "exact_memorization", "extraction_strength")


def evaluate_official(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    sets: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    batch_size: int,
    limit: int | None = None,
) -> dict[str, Any]:
    """Evaluate on the sets ``forget``, ``retain``, ``real_author`` and ``world_fact``.

    Answers, paraphrased and wrong answers alike follow the original question and end with EOS,
    which counts; exact memorisation and extraction strength leave the last label out. Greedy
    answers have up to ``NEW_TOKENS`` tokens.

    Args:
        sets: rows with ``question``, ``answer``, ``perturbed_answer`` (a list) and, in the first
            two sets, ``paraphrased_answer``.
        limit: the first rows of each set only.

    Returns:
        The content of ``tofu.json``: per set the means of ``MEANS``, and per row these values, the
        generated answer, its reference and the token-mean losses. Where EOS is the only label,
        ``exact_memorization`` is ``None``, and the mean is over the other rows.
    """
    rows = {name: list(sets[name])[:limit] for name in (*AUTHOR_SETS, *FACT_SETS)}
    everything = [(row, name in AUTHOR_SETS) for name, group in rows.items() for row in group]

    def encode(question: str, answer: str) -> tuple[list[int], Encoded]:
        return encode_conversation(
            tokenizer, template, question, answer, max_length=MAX_TEXT_LENGTH
        )

    encoded = [
        [encode(row["question"], answer) for answer in _answers(row, is_author)]
        for row, is_author in everything
    ]
    prompts = [answers[0][0] for answers in encoded]
    whole = [answers[0][1].input_ids for answers in encoded]
    scored = iter(
        score_tokens(
            model,
            [sequence for answers in encoded for _, sequence in answers],
            batch_size=batch_size,
            pad_token_id=tokenizer.pad_token_id,
            description="scoring answers",
        )
    )
    generated = generate_greedy(
        model,
        prompts,
        eos_token_ids=end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_total_length=max(map(len, prompts)) + NEW_TOKENS,
        batch_size=batch_size,
        description="answering questions",
    )
    decoded_prompts, references, texts = (
        tokenizer.batch_decode(ids, skip_special_tokens=True)
        for ids in (prompts, whole, [tokens[:NEW_TOKENS] for tokens in generated])
    )
    documents = iter(
        _document(
            row,
            is_author,
            [next(scored) for _ in answers],
            # The reference is what the tokens say beside the prompt, not the answer as given.
            reference.replace(prompt, "").strip(),
            text.strip(),
        )
        for (row, is_author), answers, prompt, reference, text in zip(
            everything, encoded, decoded_prompts, references, texts, strict=True
        )
    )
    return {
        "protocol": "official",
        **{name: _summarize([next(documents) for _ in group]) for name, group in rows.items()},
    }


def _answers(row: Mapping[str, Any], is_author: bool) -> Iterator[str]:
    """The true answer, its paraphrase (of facts there is none), the wrong ones."""
    yield row["answer"]
    if is_author:
        yield row["paraphrased_answer"]
    yield from row["perturbed_answer"]


def _document(
    row: Mapping[str, Any],
    is_author: bool,
    scores: Sequence[TokenScores],
    reference: str,
    generated: str,
) -> dict[str, Any]:
    answer, *others = scores
    paraphrase = others.pop(0) if is_author else answer
    known = answer.is_greedy[:-1]
    return {
        "question": row["question"],
        "answer": row["answer"],
        "reference": reference,
        "generated": generated,
        "truth_prob": float(np.exp(-mean_loss(answer))),
        "rougeL_score": rouge_l_recall(reference, generated),
        "exact_memorization": exact_memorization(known) if len(known) else None,
        # Of a start that is never enough, all but one token count as needed.
        "extraction_strength": max(extraction_strength(known), 1 / len(known)) if len(known) else 0,
        "loss": {
            "answer": mean_loss(answer),
            "paraphrase": mean_loss(paraphrase),
            "perturbed": [mean_loss(other) for other in others],
        },
        "tokens": {
            "answer": len(answer.log_probs),
            "paraphrase": len(paraphrase.log_probs),
            "perturbed": [len(other.log_probs) for other in others],
        },
    }


def _summarize(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = {key: [row[key] for row in documents if row[key] is not None] for key in MEANS}
    means = {key: statistics.fmean(column) if column else None for key, column in columns.items()}
    return {**means, "rows": list(documents)}
