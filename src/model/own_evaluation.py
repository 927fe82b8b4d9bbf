"""The evaluation of one's own rows: likelihoods, memorisation, membership, and answers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wagle.catalogue import ATTACKS
from wagle.config import UnlearnConfig
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.dataset.sources import row_encoder
from wagle.dataset.sources.registry import OWN_MAX_LENGTH
from wagle.errors import WagleError
from wagle.loggers.run_folder import read_result_file
from wagle.metrics.benchmark import Metric, Rows
from wagle.metrics.generation import answer_questions
from wagle.metrics.gradient_norms import gradient_norms
from wagle.metrics.likelihood import score_tokens
from wagle.metrics.membership import attack_aucs, attack_scores
from wagle.metrics.memorization import exact_memorization, extraction_strength
from wagle.metrics.own import FORGOTTEN, LEAST_TOTAL_LENGTH, OWN, own_numbers
from wagle.metrics.privacy import privacy_numbers
from wagle.metrics.text import rouge_l_recall
from wagle.model.evaluation_context import EvaluationContext, choose_words
from wagle.model.privacy_evaluation import Attacked, attack_holdout, check_holdout
from wagle.model.reading import most_positions
from wagle.model.reference_model import check_reference_model, reference_losses
from wagle.terminal import say


def check_own(config: UnlearnConfig, rows: Mapping[str, Rows]) -> None:
    """Find out what is wrong with the evaluation before the model has been trained for it.

    Args:
        rows: what will be asked, by set.

    Raises:
        ConfigError, WagleError: held-out rows are to be forgotten or retained; there is no
            reference model of that name.
    """
    check_holdout(config, rows)
    _retained_aucs(config)
    check_reference_model(config)


def evaluate_own(context: EvaluationContext) -> dict[Metric, float]:
    """Any rows: ``own.json``, and from it what these rows have."""
    config, names = context.config, OWN.sets(context.config)
    asked = {role: list(rows)[: context.limit] for role, rows in context.asked_rows().items()}
    counts = (f"{len(rows)} of {role}" for role, rows in asked.items())
    say(f"rows asked about: {', '.join(counts)}")
    answered = {role: rows for role, rows in asked.items() if "question" in rows[0]}
    words = choose_words(config, answered) if answered else None
    # The model reads the rows of all sets together: batches are full also where sets are small.
    rows = [(role, row) for role, part in asked.items() for row in part]
    encoders = {role: _encoder(context, names[role]) for role in asked}
    encoded = [encoders[role](row) for role, row in rows]
    measured = context.measured
    scored = measured.get("own scores", lambda: _score(context, [row for _, row in rows], encoded))
    if words is not None:
        questions = [row for row in scored if "question" in row]
        texts = measured.get("own answers", lambda: _answers(context, questions, encoded))
        for row, text in zip(questions, texts, strict=True):
            row["generated"] = text
            row["rougeL_score"] = rouge_l_recall(row["answer"], text, words)
    documents: dict[str, list[dict[str, Any]]] = {role: [] for role in asked}
    for (role, _), document in zip(rows, scored, strict=True):
        documents[role].append(document)
    sets = {role: _summarize(documents[role], names[role]) for role in asked}
    # Texts with a question around them would be told from running text by their form alone.
    alike = [role for role in asked if (role in answered) == ("forget" in answered)]
    aucs = {
        role: attack_aucs(*(_attacks(sets[each]) for each in ("forget", role)))
        for role in alike
        if role in ("retain", "holdout")
    }
    privacy: dict[str, float] = {}
    if "holdout" in aucs:
        attacked: dict[str, list[Attacked]] = {role: [] for role in asked}
        for (role, asked_row), sequence in zip(rows, encoded, strict=True):
            attacked[role].append(_attacked(asked_row, sequence))
        privacy, _ = attack_holdout(context, attacked["forget"], attacked["holdout"])
    context.save(
        "own.json",
        {"word_tokenizer": words, "sets": names, **sets, "MIA": aucs, "holdout AUC": privacy},
    )
    return {**own_numbers(sets, aucs), **privacy_numbers(privacy, _retained_aucs(config))}


def _attacked(row: Mapping[str, str], sequence: Encoded) -> Attacked:
    """A text or an answer, all of whose tokens are attacked but a text's first."""
    return Attacked(row["text"] if "text" in row else row["answer"], sequence)


def _retained_aucs(config: UnlearnConfig) -> dict[str, float] | None:
    """AUCs against held-out rows of the retain-only model, if its results are given.

    Raises:
        WagleError: they are not an ``own.json`` with such numbers.
    """
    path = config.evaluation.retain_results
    if path is None:
        return None
    document = read_result_file(Path(path))
    found = document.get("holdout AUC") if isinstance(document, dict) else None
    if not found:
        raise WagleError(
            f"evaluation.retain_results: {path} is no own.json of a run with held-out rows; "
            "evaluate the retain-only model with the same evaluation.holdout_dataset_name"
        )
    return dict(found)


def _encoder(context: EvaluationContext, name: str) -> Callable[[Mapping[str, str]], Encoded]:
    return row_encoder(name, context.tokenizer, context.template, eos=False)


def _score(
    context: EvaluationContext, rows: Rows, encoded: Sequence[Encoded]
) -> list[dict[str, Any]]:
    """Documents of the rows with what the likelihoods of their tokens tell.

    Membership inference reads every token; of an answer, the last of them are its own.
    """
    attacks = context.config.evaluation.attacks
    scored = score_tokens(
        context.model,
        [Encoded(row.input_ids, list(row.input_ids)) for row in encoded],
        batch_size=context.batch_size,
        pad_token_id=context.tokenizer.pad_token_id,
        description="scoring rows",
        standardize=any(ATTACKS[name].standardized for name in attacks),
    )
    texts = [_text_of(context, row) for row in rows]
    references: Sequence[float | None] = [None] * len(rows)
    if any(ATTACKS[name].reference for name in attacks):
        references = reference_losses(context, texts, max_length=OWN_MAX_LENGTH)
    norms: Sequence[float | None] = [None] * len(rows)
    if any(ATTACKS[name].gradients for name in attacks):
        texts_alone = [Encoded(row.input_ids, list(row.input_ids)) for row in encoded]
        norms = gradient_norms(
            context.model, texts_alone, pad_token_id=context.tokenizer.pad_token_id
        )
    documents = []
    for row, sequence, whole, text, reference, norm in zip(
        rows, encoded, scored, texts, references, norms, strict=True
    ):
        own = whole.last(sum(label != IGNORED for label in sequence.labels))
        loss = -float(own.log_probs.mean(dtype=np.float64))
        documents.append(
            {
                **{key: row[key] for key in ("question", "answer", "text") if key in row},
                "probability": float(np.exp(-loss)),
                "exact_memorization": exact_memorization(own.is_greedy),
                "extraction_strength": extraction_strength(own.is_greedy),
                "loss": loss,
                "tokens": len(own.log_probs),
                "MIA": attack_scores(text, whole, attacks, reference, gradient_norm=norm),
            }
        )
    return documents


def _text_of(context: EvaluationContext, row: Mapping[str, str]) -> str:
    if "text" in row:
        return row["text"]
    template = context.template
    return template.question(row["question"]) + template.answer_start + row["answer"]


def _answers(
    context: EvaluationContext, rows: Sequence[Mapping[str, Any]], encoded: Sequence[Encoded]
) -> list[str]:
    """What the model says to the questions, which may be as long as the longest row is."""
    longest = max(LEAST_TOTAL_LENGTH, *(len(row.input_ids) for row in encoded))
    return answer_questions(
        context.model,
        context.tokenizer,
        context.template,
        [row["question"] for row in rows],
        max_total_length=min(longest, most_positions(context.model)),
        batch_size=context.batch_size,
        description="answering questions",
    )


def _summarize(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """A set's document: means of what its rows have, and the rows."""
    keys = [key for key in (*FORGOTTEN, "loss") if key in rows[0]]
    means = {key: statistics.fmean(row[key] for row in rows) for key in keys}
    return {"name": name, **means, "rows": rows}


def _attacks(part: Mapping[str, Any]) -> list[Mapping[str, float]]:
    return [row["MIA"] for row in part["rows"]]
