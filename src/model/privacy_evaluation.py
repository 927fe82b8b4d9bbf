"""Privacy against held-out rows, measured: one row is attacked as another, whatever it is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wagle.catalogue import ATTACKS
from wagle.config import UnlearnConfig
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.dataset.pairing import count_shared
from wagle.errors import ConfigError, WagleError
from wagle.metrics.benchmark import Rows
from wagle.metrics.gradient_norms import gradient_norms
from wagle.metrics.likelihood import TokenScores, score_tokens
from wagle.metrics.membership import attack_aucs, attack_scores
from wagle.metrics.privacy import HOLDOUT_ATTACKS
from wagle.model.evaluation_context import EvaluationContext
from wagle.model.reference_model import load_reference


class Attacked(NamedTuple):
    """What is attacked of a row.

    Attributes:
        text: of the labels, for attacks that read it.
        sequence: whose labels are attacked.
        ends: of the labels the last ones that count in the loss alone, such as an EOS.
    """

    text: str
    sequence: Encoded
    ends: int = 0


def check_holdout(config: UnlearnConfig, rows: Mapping[str, Rows]) -> None:
    """Whether held-out rows, where there are any, are no rows to forget or to retain.

    Args:
        rows: what will be asked, by set.

    Raises:
        ConfigError: some are.
    """
    for role in ("forget", "retain"):
        if "holdout" in rows and (shared := count_shared(rows["holdout"], rows[role])):
            raise ConfigError(
                f"evaluation.holdout_dataset_name: {shared} of the rows of "
                f"{config.evaluation.holdout_dataset_name} are among those to {role}; give rows "
                "that the model has never been trained on"
            )


def attack_holdout(
    context: EvaluationContext, forget: Sequence[Attacked], holdout: Sequence[Attacked]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Attack rows to forget and held-out rows.

    Returns:
        AUCs by column, with the rows to forget as class 0 and the others as class 1; and the scores
        of all rows, first those to forget.
    """
    scores = _scores(context, [*forget, *holdout])
    return attack_aucs(scores[len(forget) :], scores[: len(forget)]), scores


def _scores(context: EvaluationContext, rows: Sequence[Attacked]) -> list[dict[str, float]]:
    asked = context.config.evaluation.attacks
    attacks = [*HOLDOUT_ATTACKS, *asked]
    sequences = [row.sequence for row in rows]
    scored = _score(context, sequences)
    references: Sequence[float | None] = [None] * len(rows)
    if any(ATTACKS[name].reference for name in asked):
        references = _reference_losses(context, sequences)
    norms: Sequence[float | None] = [None] * len(rows)
    if any(ATTACKS[name].gradients for name in asked):
        norms = gradient_norms(
            context.model,
            [_without_ends(row) for row in rows],
            pad_token_id=context.tokenizer.pad_token_id,
        )
    return [
        attack_scores(
            row.text,
            tokens.first(len(tokens) - row.ends),
            attacks,
            reference,
            loss=tokens.loss,
            gradient_norm=norm,
        )
        for row, tokens, reference, norm in zip(rows, scored, references, norms, strict=True)
    ]


def _score(context: EvaluationContext, sequences: Sequence[Encoded]) -> list[TokenScores]:
    return score_tokens(
        context.model,
        sequences,
        batch_size=context.batch_size,
        pad_token_id=context.tokenizer.pad_token_id,
        description="attacking with held-out rows",
        standardize=True,
    )


def _without_ends(row: Attacked) -> Encoded:
    ids, labels = row.sequence.input_ids, list(row.sequence.labels)
    if row.ends:
        labels[-row.ends :] = [IGNORED] * row.ends
    return Encoded(ids, labels)


def _reference_losses(context: EvaluationContext, sequences: Sequence[Encoded]) -> list[float]:
    """Of the same tokens under ``evaluation.reference_model``.

    Raises:
        WagleError: it has other tokens.
    """
    model, tokenizer = load_reference(context)
    if tokenizer.get_vocab() != context.tokenizer.get_vocab():
        name = context.config.evaluation.reference_model
        raise WagleError(
            f"evaluation.reference_model {name} has another vocabulary than the model, and its "
            "losses are of other tokens; give a model with the same tokenizer"
        )
    scored = score_tokens(
        model,
        sequences,
        batch_size=context.batch_size,
        pad_token_id=tokenizer.pad_token_id,
        description="reference model",
    )
    return [tokens.loss for tokens in scored]
