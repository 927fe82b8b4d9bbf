"""The evaluation of TOFU: by the protocol, the paper's numbers or those of the field."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wagle.config import UnlearnConfig
from wagle.dataset.encoding import IGNORED, encode_conversation
from wagle.errors import WagleError
from wagle.loggers.run_folder import REFERENCES
from wagle.metrics.benchmark import Metric, Rows
from wagle.metrics.classifiers import label_scores, load_classifier
from wagle.metrics.composites import official_numbers
from wagle.metrics.privacy import MIN_K_PERCENT, min_k_name
from wagle.metrics.sentence import load_sentence_encoder
from wagle.metrics.tofu import MAX_TEXT_LENGTH, check_rows, evaluate_tofu
from wagle.metrics.tofu_asked import tofu_subsets
from wagle.metrics.tofu_benchmark import (
    ATTACK,
    EXACT_MEMORIZATION,
    EXTRACTION_STRENGTH,
    RELATIVE_UTILITY,
    paper_numbers,
    under,
)
from wagle.metrics.tofu_field import evaluate_official
from wagle.metrics.tofu_files import check_comparable, load_results
from wagle.metrics.tofu_official import official_scores
from wagle.metrics.tofu_results import (
    OF_VIEWS,
    TofuResults,
    TofuRow,
    TofuSet,
    rows_document,
    rows_from,
    to_document,
)
from wagle.metrics.views import VIEWS, view_numbers
from wagle.model.evaluation_context import EvaluationContext, choose_words
from wagle.model.privacy_evaluation import Attacked, attack_holdout, check_holdout
from wagle.model.reference_model import check_reference_model, reference_losses
from wagle.terminal import say

if TYPE_CHECKING:
    from transformers import TextClassificationPipeline

_GIVEN = {"retain_results": "retain-only", "original_results": "original"}
"""Keys of other models' results, and what these models are called."""
FLUENT = "clean"
FLUENCY_TOKENS = 32  # of an answer that the classifier reads, as in open-unlearning


def check_tofu(config: UnlearnConfig, rows: Mapping[str, Rows]) -> None:
    """Find out what is wrong with the evaluation of TOFU before the model has been trained for it.

    Args:
        rows: what will be asked, by set.

    Raises:
        WagleError: with what is wrong.
    """
    for name, data_set in tofu_subsets(config.dataset.forget_dataset_name).items():
        check_rows(rows[name], data_set)
    for name in _GIVEN:
        _given_results(config, name, rows["forget"])
    check_holdout(config, rows)
    _load_fluency(config, torch.device("cpu"))
    if config.evaluation.protocol != "official":
        load_sentence_encoder(config.evaluation.sentence_model, torch.device("cpu"))
    check_reference_model(config)


def evaluate_tofu_task(context: EvaluationContext) -> dict[Metric, float]:
    """TOFU: ``tofu.json``, and from the same rows what the protocol defines.

    ``official``: ``tofu_official …``, and in ``references.json`` the same of the models whose
    results are given. The others: the paper's UE and UT numbers, memorisation,
    membership inference, and the official scores' formulas on this protocol's losses, under its
    name: they are not comparable with official ones. Of all protocols, the forget questions asked
    otherwise, as far as views are asked for.
    """
    config, asked = context.config, context.asked_rows()
    protocol = config.evaluation.protocol
    retain_model, original = (_given_results(config, name, asked["forget"]) for name in _GIVEN)
    results = _measure(context, asked)
    context.save("tofu.json", to_document(results))
    viewed = view_numbers(
        {
            view: {
                key: statistics.fmean(values)
                for key, read in OF_VIEWS.items()
                if (values := rows.known(read))
            }
            for view, rows in results.views.items()
        }
    )
    if protocol == "official":
        return {**_official(context, results, retain_model, original), **viewed}
    scores = official_scores(results, retain_model)
    named = {under(protocol, metric): value for metric, value in scores.items()}
    forget = results.sets["forget"]
    of_the_paper = set(map(min_k_name, MIN_K_PERCENT))
    return {
        **paper_numbers(results),
        EXACT_MEMORIZATION: forget.mean(lambda row: row.exact_memorization),
        EXTRACTION_STRENGTH: forget.mean(lambda row: row.extraction_strength),
        **{ATTACK.of(k): v for k, v in (results.mia or {}).items() if k not in of_the_paper},
        **named,
        **viewed,
    }


def _measure(context: EvaluationContext, asked: Mapping[str, Rows]) -> TofuResults:
    """What the protocol measures of the rows asked about; what is finished is kept, by pieces."""
    config = context.config
    words = choose_words(config, asked)
    rows = {role: list(rows)[: context.limit] for role, rows in asked.items()}
    sets = {role: part for role, part in rows.items() if role != "holdout"}

    def keep(name: str, measure: Callable[[], TofuSet]) -> TofuSet:
        return context.measured.get(f"tofu {name}", measure, write=rows_document, read=rows_from)

    model = (context.model, context.tokenizer, context.template)
    if config.evaluation.protocol == "official":
        results = evaluate_official(*model, sets, batch_size=context.batch_size, keep=keep)
        results = replace(
            results, holdout=_attack(context, rows), fluency=_fluency(context, results)
        )
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
    return replace(
        results,
        sets={role: part for role, part in results.sets.items() if role not in VIEWS},
        views={view: part for view, part in results.sets.items() if view in VIEWS},
        data_sets=tofu_subsets(config.dataset.forget_dataset_name),
        word_tokenizer=words,
    )


def _official(
    context: EvaluationContext,
    results: TofuResults,
    retain_model: TofuResults | None,
    original: TofuResults | None,
) -> dict[Metric, float]:
    """The numbers of this model; those of the given ones are kept as references."""
    references = {
        title: official_numbers(model, retain_model, original)
        for title, model in {"Original": original, "Retain-only": retain_model}.items()
        if model is not None and not model.missing
    }
    named = {
        title: {under("official", metric).key: value for metric, value in numbers.items()}
        for title, numbers in references.items()
    }
    if named:
        context.save(REFERENCES, named)
    numbers = official_numbers(results, retain_model, original)
    fluent = original is not None and None not in (results.fluency, original.fluency)
    if RELATIVE_UTILITY in numbers and not fluent:
        say("Util is the share of Model Utility alone: fluency is not known of both models")
    return {under("official", metric): value for metric, value in numbers.items()}


def _attack(
    context: EvaluationContext, sets: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, float] | None:
    """AUCs against held-out rows, where there are any: ``privacy.json`` has the scores of all."""
    if "holdout" not in sets:
        return None

    def measure() -> dict[str, Any]:
        rows = {role: sets[role] for role in ("forget", "holdout")}
        attacked = {role: [_attacked(context, row) for row in part] for role, part in rows.items()}
        aucs, scores = attack_holdout(context, attacked["forget"], attacked["holdout"])
        found = iter(scores)
        documents = {
            role: {"rows": [{"question": row["question"], **next(found)} for row in part]}
            for role, part in rows.items()
        }
        return {"AUC": aucs, **documents}

    document = context.measured.get("tofu privacy", measure)
    context.save("privacy.json", document)
    return dict(document["AUC"])


def _attacked(context: EvaluationContext, row: Mapping[str, Any]) -> Attacked:
    """A question's answer with EOS, which counts in the loss alone."""
    _, sequence = encode_conversation(
        context.tokenizer,
        context.template,
        row["question"],
        row["answer"],
        max_length=MAX_TEXT_LENGTH,
    )
    labels = [label for label in sequence.labels if label != IGNORED]
    text = str(context.tokenizer.decode(labels, skip_special_tokens=True))
    return Attacked(text, sequence, ends=1)


def _fluency(context: EvaluationContext, results: TofuResults) -> float | None:
    """Mean over the answers to the forget questions, where a classifier is given."""
    classifier = _load_fluency(context.config, context.model.device)
    if classifier is None:
        return None
    texts = results.sets["forget"].all(lambda row: row.generated)
    scores = label_scores(
        classifier,
        texts,
        FLUENT,
        function="softmax",
        batch_size=context.batch_size,
        max_length=FLUENCY_TOKENS,
    )
    return statistics.fmean(scores)


def _load_fluency(config: UnlearnConfig, device: torch.device) -> TextClassificationPipeline | None:
    name = config.evaluation.fluency_model
    if name is None or config.evaluation.protocol != "official":
        return None
    return load_classifier(
        name,
        FLUENT,
        what="fluency classifier",
        key="evaluation.fluency_model",
        device=device,
        cache_dir=Path(config.overall.cache_dir),
    )


def _given_results(config: UnlearnConfig, name: str, forget_rows: Rows) -> TofuResults | None:
    """The results of another model, if they are given and of the same questions.

    Raises:
        WagleError: they are of others, or of the original model but not of all sets.
    """
    path = getattr(config.evaluation, name)
    if path is None:
        return None
    given = load_results(Path(path))
    asked = list(forget_rows)[: config.evaluation.limit]
    forget = TofuSet(tuple(TofuRow(question=row["question"]) for row in asked))
    names = tofu_subsets(config.dataset.forget_dataset_name)
    own = TofuResults({"forget": forget}, config.evaluation.protocol, data_sets=names)
    check_comparable(given, own, Path(path), _GIVEN[name])
    if given.missing and name == "original_results":
        raise WagleError(f"evaluation.original_results: {path} lacks {given.missing}")
    return given
