"""The evaluation of TOFU: by the protocol, the paper's numbers or those of the field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from wagle.config import UnlearnConfig
from wagle.metrics.benchmark import Metric, Rows
from wagle.metrics.membership import MIN_K_PERCENT, min_k_name
from wagle.metrics.sentence import load_sentence_encoder
from wagle.metrics.tofu import MAX_TEXT_LENGTH, check_rows, evaluate_tofu
from wagle.metrics.tofu_benchmark import (
    ATTACK,
    EXACT_MEMORIZATION,
    EXTRACTION_STRENGTH,
    asked_sets,
    paper_numbers,
    under,
)
from wagle.metrics.tofu_field import evaluate_official
from wagle.metrics.tofu_files import check_comparable, load_results
from wagle.metrics.tofu_official import official_scores
from wagle.metrics.tofu_results import (
    TofuResults,
    TofuRow,
    TofuSet,
    rows_document,
    rows_from,
    to_document,
)
from wagle.model.evaluation_context import EvaluationContext, choose_words
from wagle.model.reference_model import check_reference_model, reference_losses


def check_tofu(config: UnlearnConfig, rows: Mapping[str, Rows]) -> None:
    """Find out what is wrong with the evaluation of TOFU before the model has been trained for it.

    Args:
        rows: what will be asked, by set.

    Raises:
        WagleError: with what is wrong.
    """
    for name, data_set in asked_sets(config).items():
        check_rows(rows[name], data_set)
    _retain_model(config, rows["forget"])
    if config.evaluation.protocol != "official":
        load_sentence_encoder(config.evaluation.sentence_model, torch.device("cpu"))
    check_reference_model(config)


def evaluate_tofu_task(context: EvaluationContext) -> dict[Metric, float]:
    """TOFU: ``tofu.json``, and from the same rows what the protocol defines.

    ``official``: ``tofu_official …``. The others: the paper's UE and UT numbers, memorisation,
    membership inference, and the official scores' formulas on this protocol's losses, under its
    name: they are not comparable with official ones.
    """
    protocol, asked = context.config.evaluation.protocol, context.asked_rows()
    retain_model = _retain_model(context.config, asked["forget"])
    results = _measure(context, asked)
    context.save("tofu.json", to_document(results))
    scores = official_scores(results, retain_model)
    named = {under(protocol, metric): value for metric, value in scores.items()}
    if protocol == "official":
        return named
    forget = results.sets["forget"]
    of_the_paper = set(map(min_k_name, MIN_K_PERCENT))
    return {
        **paper_numbers(results),
        EXACT_MEMORIZATION: forget.mean(lambda row: row.exact_memorization),
        EXTRACTION_STRENGTH: forget.mean(lambda row: row.extraction_strength),
        **{ATTACK.of(k): v for k, v in (results.mia or {}).items() if k not in of_the_paper},
        **named,
    }


def _measure(context: EvaluationContext, asked: Mapping[str, Rows]) -> TofuResults:
    """What the protocol measures of the rows asked about; what is finished is kept, by pieces."""
    config = context.config
    words = choose_words(config, asked)
    sets = {role: list(rows)[: context.limit] for role, rows in asked.items()}

    def keep(name: str, measure: Callable[[], TofuSet]) -> TofuSet:
        return context.measured.get(f"tofu {name}", measure, write=rows_document, read=rows_from)

    model = (context.model, context.tokenizer, context.template)
    if config.evaluation.protocol == "official":
        results = evaluate_official(*model, sets, batch_size=context.batch_size, keep=keep)
    else:
        encoder = load_sentence_encoder(config.evaluation.sentence_model, context.model.device)
        results = evaluate_tofu(
            *model,
            sets,
            encoder=encoder,
            protocol=config.evaluation.protocol,
            batch_size=context.batch_size,
            word_tokenizer=words,
            attacks=config.evaluation.attacks,
            reference_losses=partial(reference_losses, context, max_length=MAX_TEXT_LENGTH),
            keep=keep,
        )
    return replace(results, data_sets=asked_sets(config), word_tokenizer=words)


def _retain_model(config: UnlearnConfig, forget_rows: Rows) -> TofuResults | None:
    """The results of the retain-only model, if they are given and of the same questions."""
    path = config.evaluation.retain_results
    if path is None:
        return None
    retain_model = load_results(Path(path))
    asked = list(forget_rows)[: config.evaluation.limit]
    forget = TofuSet(tuple(TofuRow(question=row["question"]) for row in asked))
    own = TofuResults({"forget": forget}, config.evaluation.protocol, data_sets=asked_sets(config))
    check_comparable(retain_model, own, Path(path))
    return retain_model
