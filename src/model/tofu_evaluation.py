"""The evaluation of TOFU: by the protocol, the paper's numbers or those of the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wagle.config import Config
from wagle.metrics.benchmark import Metric, Rows
from wagle.metrics.membership import text_losses
from wagle.metrics.sentence import load_sentence_encoder
from wagle.metrics.tofu import MAX_TEXT_LENGTH, check_rows, evaluate_tofu
from wagle.metrics.tofu_benchmark import (
    ATTACK,
    EXACT_MEMORIZATION,
    EXTRACTION_STRENGTH,
    numbers_under,
    paper_numbers,
)
from wagle.metrics.tofu_field import evaluate_official
from wagle.metrics.tofu_official import official_scores
from wagle.metrics.tofu_results import TofuResults, check_comparable, load_results, parse_results
from wagle.model.evaluation_context import EvaluationContext, asked_sets, choose_words
from wagle.model.loading import load_model, read_tokenizer


def check_tofu(config: Config, rows: Mapping[str, Rows]) -> None:
    """Find out what is wrong with the evaluation of TOFU before the model has been trained for it.

    Args:
        rows: what will be asked, by set.

    Raises:
        WagleError: with what is wrong.
    """
    for name, data_set in asked_sets(config).items():
        check_rows(rows[name], data_set)
    _retain_model(config, rows["forget"])
    if config["evaluation.protocol"] != "official":
        load_sentence_encoder(config["evaluation.sentence_model"], torch.device("cpu"))
    if config["evaluation.reference_model"] is not None:
        hint = "a local folder with --evaluation.reference_model FOLDER"
        name, cache = config["evaluation.reference_model"], Path(config["overall.cache_dir"])
        read_tokenizer(name, cache, what="reference model", hint=hint)


def evaluate_tofu_task(context: EvaluationContext) -> dict[Metric, float]:
    """TOFU: ``tofu.json``, and from it what the protocol defines.

    ``official``: ``tofu_official …``. The others: the paper's UE and UT numbers, memorisation,
    membership inference, and the official scores' formulas on this protocol's losses, under its
    name: they are not comparable with official ones.
    """
    protocol = context.config["evaluation.protocol"]
    sets = context.asked_rows()
    retain_model = _retain_model(context.config, sets["forget"])
    words = choose_words(context.config, sets)
    if protocol == "official":
        measured = _measure_as_the_field(context, sets)
    else:
        measured = _measure_as_the_paper(context, sets, words)
    result = {"sets": dict(asked_sets(context.config)), "word_tokenizer": words, **measured}
    context.save("tofu.json", result)
    scores = official_scores(parse_results(result).sets, retain_model and retain_model.sets)
    named = numbers_under(protocol, scores)
    if protocol == "official":
        return named
    return {
        **paper_numbers(result),
        EXACT_MEMORIZATION: result["forget"]["exact_memorization"],
        EXTRACTION_STRENGTH: result["forget"]["extraction_strength"],
        **{ATTACK.of(k): v for k, v in result["MIA"].items() if not k.startswith("Min_")},
        **named,
    }


def _measure_as_the_paper(
    context: EvaluationContext, sets: Mapping[str, Rows], words: str
) -> dict[str, Any]:
    config = context.config
    return evaluate_tofu(
        context.model,
        context.tokenizer,
        context.template,
        sets,
        encoder=load_sentence_encoder(config["evaluation.sentence_model"], context.model.device),
        protocol=config["evaluation.protocol"],
        batch_size=context.batch_size,
        word_tokenizer=words,
        limit=context.limit,
        attacks=config["evaluation.attacks"],
        reference_losses=lambda texts: _reference_losses(context, texts),
    )


def _measure_as_the_field(context: EvaluationContext, sets: Mapping[str, Rows]) -> dict[str, Any]:
    return evaluate_official(
        context.model,
        context.tokenizer,
        context.template,
        sets,
        batch_size=context.batch_size,
        limit=context.limit,
    )


def _retain_model(config: Config, forget_rows: Rows) -> TofuResults | None:
    """The results of the retain-only model, if they are given and of the same questions."""
    path = config["evaluation.retain_results"]
    if path is None:
        return None
    retain_model = load_results(Path(path))
    asked = tuple(row["question"] for row in list(forget_rows)[: config["evaluation.limit"]])
    own = TofuResults({}, config["evaluation.protocol"], asked_sets(config)["forget"], asked)
    check_comparable(retain_model, own, Path(path))
    return retain_model


def _reference_losses(context: EvaluationContext, texts: Sequence[str]) -> list[float]:
    model, tokenizer = load_model(
        context.config["evaluation.reference_model"],
        dtype=context.model.dtype,
        device=context.model.device,
        cache_dir=context.cache_dir,
    )
    return text_losses(
        model, tokenizer, texts, max_length=MAX_TEXT_LENGTH, batch_size=context.batch_size
    )
