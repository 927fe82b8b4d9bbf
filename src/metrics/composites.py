"""TOFU in four numbers, as open-unlearning sums a model up: memorisation, privacy, utility, all.

Dorna et al. 2025 (arXiv 2506.12618). Each is a harmonic mean HM, which the worst of its parts
decides: HM(0.9, 0.9, 0.1) = 0.25. With EM and ES exact memorisation and extraction strength, and
sMIA the similarity of an attack's AUC to that of the retain-only model::

    Mem  = HM(1 − ES, 1 − EM, 1 − paraphrase probability, 1 − TR′)
    Priv = HM(sMIA of loss, zlib, Min-40 %, Min-40 %++)
    Util = HM(Model Utility, fluency) / the same of the model before unlearning, at most 1
    Agg  = HM(Mem, Priv, Util)
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import numpy as np

from wagle.metrics.averages import Number, harmonic_mean, within
from wagle.metrics.benchmark import Metric
from wagle.metrics.privacy import SIMILARITIES, privacy_numbers
from wagle.metrics.tofu_benchmark import (
    AGGREGATE,
    EXACT_MEMORIZATION,
    EXTRACTION_STRENGTH,
    FLUENCY,
    MEMORIZATION,
    MODEL_UTILITY,
    PARAPHRASE_PROBABILITY,
    PARAPHRASE_ROUGE,
    PRIVATE,
    RELATIVE_UTILITY,
    TRUTH_SHARE,
)
from wagle.metrics.tofu_official import official_scores
from wagle.metrics.tofu_results import TofuResults

_MEMORY = (EXTRACTION_STRENGTH, EXACT_MEMORIZATION, PARAPHRASE_PROBABILITY, TRUTH_SHARE)


def official_numbers(
    results: TofuResults,
    retain_model: TofuResults | None = None,
    original: TofuResults | None = None,
) -> dict[Metric, float]:
    """The official scores, privacy against held-out rows, and what sums them up.

    What cannot be computed is absent: ``Priv`` without the retain-only model's attacks, ``Util``
    without the original model, ``Agg`` without one of its three.

    Args:
        results: of this model.
        retain_model: of the model that never saw the forget set, at least ``forget``.
        original: of the model before unlearning, all sets.
    """
    numbers = _scores(results, retain_model)
    if results.holdout:
        retained = retain_model.holdout if retain_model else None
        numbers |= privacy_numbers(results.holdout, retained)
    return {**numbers, **composites(numbers, _scores(original) if original else {})}


def _scores(results: TofuResults, retain_model: TofuResults | None = None) -> dict[Metric, float]:
    scores, forget = official_scores(results, retain_model), results.sets["forget"]
    losses = forget.all(lambda row: row.loss)
    scores[PARAPHRASE_PROBABILITY] = float(np.exp([-loss.paraphrase for loss in losses]).mean())
    if rouge := forget.known(lambda row: row.paraphrase_rouge):
        scores[PARAPHRASE_ROUGE] = statistics.fmean(rouge)
    if results.fluency is not None:
        scores[FLUENCY] = results.fluency
    return scores


def composites(
    scores: Mapping[Metric, Number], original: Mapping[Metric, float]
) -> dict[Metric, Number]:
    """The four, as far as their parts are there.

    Fluency counts in ``Util`` where both models have it.

    Args:
        scores: of this model.
        original: of the model before unlearning; empty where it is not known.
    """
    found: dict[Metric, Number] = {}
    if all(metric in scores for metric in _MEMORY):
        found[MEMORIZATION] = harmonic_mean([1 - scores[metric] for metric in _MEMORY])
    if all(metric in scores for metric in SIMILARITIES.values()):
        found[PRIVATE] = harmonic_mean([scores[metric] for metric in SIMILARITIES.values()])
    parts = [MODEL_UTILITY]
    if FLUENCY in scores and FLUENCY in original:
        parts.append(FLUENCY)
    if whole := original and harmonic_mean([original[metric] for metric in parts]):
        found[RELATIVE_UTILITY] = within(
            harmonic_mean([scores[metric] for metric in parts]) / whole, 0.0, 1.0
        )
    if len(found) == 3:
        found[AGGREGATE] = harmonic_mean(list(found.values()))
    return found
