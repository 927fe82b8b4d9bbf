"""TOFU's results as open-unlearning keeps them: ``TOFU_EVAL.json`` and ``TOFU_SUMMARY.json``.

By the metric's name its value and, row by row, what that comes from (Dorna et al. 2025,
arXiv 2506.12618, and the logs published with it); a summary has the values alone::

    {"forget_Q_A_Prob": {"agg_value": 0.61,
                         "value_by_index": {"0": {"prob": 0.61, "avg_loss": 0.5}}}}
    {"forget_Q_A_Prob": 0.61}

:func:`wagle.metrics.tofu_files.load_results` reads the former again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wagle.metrics.composites import official_numbers
from wagle.metrics.privacy import AUCS, PRIVLEAK, PRIVLEAK_OF_HALF
from wagle.metrics.text import rouge_1_recall, rouge_l_f1
from wagle.metrics.tofu_benchmark import (
    EXACT_MEMORIZATION,
    EXTRACTION_STRENGTH,
    FORGET_QUALITY,
    MODEL_UTILITY,
    PARAPHRASE_ROUGE,
    PROBABILITY,
    ROUGE,
    TRUTH_RATIO,
)
from wagle.metrics.tofu_files import PREFIXES
from wagle.metrics.tofu_official import shares, truth_log_ratios
from wagle.metrics.tofu_results import AUTHOR_SETS, EPSILON, TofuResults, TofuRow

_MEMORY = {
    "exact_memorization": EXACT_MEMORIZATION,
    "extraction_strength": EXTRACTION_STRENGTH,
}


def evaluation_log(
    results: TofuResults,
    retain_model: TofuResults | None = None,
    attacked: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """What ``TOFU_EVAL.json`` holds, as far as the results have it.

    ``input`` of an answer is the question without the prompt around it. ``privleak`` is, as there,
    against an AUC of 0.5 where that of the retain-only model is not known.

    Args:
        results: of the official protocol, all sets.
        retain_model: of the model that never saw the forget set; without it ``forget_quality`` is
            null.
        attacked: the content of ``privacy.json``: scores of the attacks row by row.
    """
    results = replace(results, epsilon=EPSILON)
    numbers, forget = official_numbers(results, retain_model), results.sets["forget"]
    log = {
        "model_utility": _metric(numbers[MODEL_UTILITY]),
        "forget_quality": _metric(numbers.get(FORGET_QUALITY)),
    }
    for name, prefix in PREFIXES.items():
        rows, asked = results.sets[name], f"{prefix}_Q_A"
        losses = rows.all(lambda row: row.loss)
        log[f"{asked}_Prob"] = _likelihoods([loss.answer for loss in losses])
        if name in AUTHOR_SETS:
            log[f"{asked}_PARA_Prob"] = _likelihoods([loss.paraphrase for loss in losses])
        else:
            among = [{"prob": share} for share in shares(rows, EPSILON).tolist()]
            log[f"{asked}_Prob_normalised"] = _metric(numbers[PROBABILITY[name]], among)
        log[f"{asked}_PERT_Prob"] = _likelihoods([list(loss.perturbed) for loss in losses])
        log[f"{asked}_ROUGE"] = _metric(numbers[ROUGE[name]], [_answered(r) for r in rows.rows])
        ratios = np.exp(truth_log_ratios(rows, EPSILON)).tolist()
        title = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        log[title] = _metric(numbers[TRUTH_RATIO[name]], _scores(ratios))
    if PARAPHRASE_ROUGE in numbers:
        recalls = [{"rougeL_recall": row.paraphrase_rouge} for row in forget.rows]
        log["forget_Q_A_PARA_ROUGE"] = _metric(numbers[PARAPHRASE_ROUGE], recalls)
    for key, metric in _MEMORY.items():
        if metric in numbers:
            scores = _scores([getattr(row, key) for row in forget.rows])
            log[key] = _metric(numbers[metric], scores)
    for column, metric in AUCS.items():
        if metric in numbers:
            log[metric.key] = _attack(numbers[metric], column, attacked or {})
    for metric in (PRIVLEAK, PRIVLEAK_OF_HALF):
        if metric in numbers:
            log[PRIVLEAK.key] = _metric(numbers[metric])
    if results.fluency is not None:
        log["forget_Q_A_gibberish"] = _metric(results.fluency)
    return dict(sorted(log.items()))


def summary(log: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What ``TOFU_SUMMARY.json`` holds: the metrics of a log that have a value."""
    values = {name: metric["agg_value"] for name, metric in log.items()}
    return {name: value for name, value in values.items() if value is not None}


def _metric(value: float | None, rows: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    metric: dict[str, Any] = {"agg_value": value}
    if rows is not None:
        metric["value_by_index"] = {str(index): dict(row) for index, row in enumerate(rows)}
    return metric


def _likelihoods(losses: Sequence[float | list[float]]) -> dict[str, Any]:
    """Of one answer to each question, or of as many as each list has."""
    probabilities = [np.exp(-np.array(loss)) for loss in losses]
    rows = [
        {"prob": probability.tolist(), "avg_loss": loss}
        for probability, loss in zip(probabilities, losses, strict=True)
    ]
    return _metric(statistics.fmean(float(p.mean()) for p in probabilities), rows)


def _scores(values: Sequence[float | None]) -> list[dict[str, Any]]:
    return [{"score": value} for value in values]


def _answered(row: TofuRow) -> dict[str, Any]:
    """A greedy answer, with as much of it as the results have."""
    texts = {
        "input": row.question,
        "ground_truth": row.reference or row.answer,
        "generation": row.generated,
    }
    found = {key: text for key, text in texts.items() if text is not None}
    rouge: dict[str, Any] = {"rougeL_recall": row.rouge}
    if len(found) == len(texts):
        pair = found["ground_truth"], found["generation"]
        rouge |= {"rouge1_recall": rouge_1_recall(*pair), "rougeL_f1": rouge_l_f1(*pair)}
    return {**rouge, **found}


def _attack(auc: float, column: str, attacked: Mapping[str, Any]) -> dict[str, Any]:
    parts = {}
    for role in ("forget", "holdout"):
        if role in attacked:
            values = [row[column] for row in attacked[role]["rows"]]
            parts[role] = _metric(statistics.fmean(values), _scores(values))
    return {**parts, "auc": auc, "agg_value": auc}
