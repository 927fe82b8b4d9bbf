"""TOFU's results as open-unlearning keeps them: ``TOFU_EVAL.json`` and ``TOFU_SUMMARY.json``.

Their form is that of :mod:`wagle.metrics.evaluation_log`, and
:func:`wagle.metrics.tofu_files.load_results` reads the former again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wagle.metrics.composites import official_numbers
from wagle.metrics.evaluation_log import Log, answer_row, attack_metrics, logged, score_rows
from wagle.metrics.privacy import PRIVLEAK, PRIVLEAK_OF_HALF
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
) -> Log:
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
        "model_utility": logged(numbers[MODEL_UTILITY]),
        "forget_quality": logged(numbers.get(FORGET_QUALITY)),
    }
    for name, prefix in PREFIXES.items():
        rows, asked = results.sets[name], f"{prefix}_Q_A"
        losses = rows.all(lambda row: row.loss)
        log[f"{asked}_Prob"] = _likelihoods([loss.answer for loss in losses])
        if name in AUTHOR_SETS:
            log[f"{asked}_PARA_Prob"] = _likelihoods([loss.paraphrase for loss in losses])
        else:
            among = [{"prob": share} for share in shares(rows, EPSILON).tolist()]
            log[f"{asked}_Prob_normalised"] = logged(numbers[PROBABILITY[name]], among)
        log[f"{asked}_PERT_Prob"] = _likelihoods([list(loss.perturbed) for loss in losses])
        log[f"{asked}_ROUGE"] = logged(numbers[ROUGE[name]], [_answered(r) for r in rows.rows])
        ratios = np.exp(truth_log_ratios(rows, EPSILON)).tolist()
        title = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        log[title] = logged(numbers[TRUTH_RATIO[name]], score_rows(ratios))
    if PARAPHRASE_ROUGE in numbers:
        recalls = [{"rougeL_recall": row.paraphrase_rouge} for row in forget.rows]
        log["forget_Q_A_PARA_ROUGE"] = logged(numbers[PARAPHRASE_ROUGE], recalls)
    for key, metric in _MEMORY.items():
        if metric in numbers:
            scores = score_rows([getattr(row, key) for row in forget.rows])
            log[key] = logged(numbers[metric], scores)
    log |= attack_metrics(results.holdout or {}, attacked or {})
    for metric in (PRIVLEAK, PRIVLEAK_OF_HALF):
        if metric in numbers:
            log[PRIVLEAK.key] = logged(numbers[metric])
    if results.fluency is not None:
        log["forget_Q_A_gibberish"] = logged(results.fluency)
    return dict(sorted(log.items()))


def _likelihoods(losses: Sequence[float | list[float]]) -> dict[str, Any]:
    """Of one answer to each question, or of as many as each list has."""
    probabilities = [np.exp(-np.array(loss)) for loss in losses]
    rows = [
        {"prob": probability.tolist(), "avg_loss": loss}
        for probability, loss in zip(probabilities, losses, strict=True)
    ]
    return logged(statistics.fmean(float(p.mean()) for p in probabilities), rows)


def _answered(row: TofuRow) -> dict[str, Any]:
    reference = row.reference or row.answer
    return answer_row(row.question, reference, row.generated, rougeL_recall=row.rouge)
