"""TOFU's official scores (Maini et al. 2024, arXiv 2401.06121), from per-row losses alone.

They are what the TOFU leaderboard and open-unlearning report, and differ from the scores of the
WAGLE paper in :mod:`wagle.metrics.tofu` although the names are alike. All of them are computed from
logarithms, so that losses of any size have scores.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp

from wagle.metrics.tofu_benchmark import (
    DISTANCE,
    EXACT_MEMORIZATION,
    EXTRACTION_STRENGTH,
    FORGET_QUALITY,
    MODEL_UTILITY,
    PROBABILITY,
    ROUGE,
    TITLES,
    TRUTH_RATIO,
    TRUTH_SHARE,
)

EPSILON = 1e-10  # what open-unlearning adds to every denominator


@dataclass(frozen=True)
class SetLosses:
    """Per-row results of one set.

    Attributes:
        answer, paraphrase: float64 ``(rows,)``, token-mean negative log-likelihoods in nats; of
            facts, both are the answer's.
        perturbed: the same for the wrong answers of each row, of which there may be any number.
        rouge: ROUGE-L recall of the greedy answer, ``(rows,)``.
        epsilon: is added to denominators: ``EPSILON``, or 0 as in the TOFU authors' own code.
        exact_memorization, extraction_strength: of each answer, where they were measured.
    """

    answer: np.ndarray
    paraphrase: np.ndarray
    perturbed: Sequence[np.ndarray]
    rouge: np.ndarray
    epsilon: float = 0.0
    exact_memorization: Sequence[float] = ()
    extraction_strength: Sequence[float] = ()

    @property
    def wrong(self) -> np.ndarray:
        """Mean loss of each row's wrong answers, float64 ``(rows,)``."""
        return np.array([np.mean(losses) for losses in self.perturbed])

    @property
    def _floor(self) -> float:
        with np.errstate(divide="ignore"):
            return float(np.log(self.epsilon))

    @property
    def truth_log_ratios(self) -> np.ndarray:
        """Log of R = w / (c + ε): w of the wrong answers' mean loss, c of the paraphrase's."""
        return -self.wrong - np.logaddexp(-self.paraphrase, self._floor)

    def probabilities(self) -> np.ndarray:
        """p = exp(−loss) of the true answers."""
        return np.exp(-self.answer)

    def shares(self) -> np.ndarray:
        """p / (p + Σ p of the wrong answers + ε)."""
        rows = zip(self.answer, self.perturbed, strict=True)
        totals = [np.logaddexp.reduce([-true, self._floor, *-wrong]) for true, wrong in rows]
        return np.exp(-self.answer - totals)

    def closeness_to_one(self) -> np.ndarray:
        """min(R, 1 / (R + ε)), the forget set's truth ratio."""
        log_ratios = self.truth_log_ratios
        return np.exp(np.minimum(log_ratios, -np.logaddexp(log_ratios, self._floor)))

    def truthfulness(self) -> np.ndarray:
        """max(0, 1 − R), the other sets' truth ratio."""
        return np.maximum(0.0, -np.expm1(np.minimum(self.truth_log_ratios, 0.0)))

    def truth_shares(self) -> np.ndarray:
        """c / (c + w + ε), open-unlearning's ``prob_mean``."""
        wrong = -self.wrong
        total = np.logaddexp(np.logaddexp(-self.paraphrase, wrong), self._floor)
        return np.exp(-self.paraphrase - total)


def official_scores(
    losses: Mapping[str, SetLosses], retain_model: Mapping[str, SetLosses] | None = None
) -> dict[str, float]:
    """ROUGE, probability and truth ratio of each set, Model Utility and Forget Quality.

    Every score but the forget set's is better when larger. Model Utility is the harmonic mean of
    the nine that are not the forget set's, 0 where one of them is. Forget Quality is the p-value of
    the two-sample Kolmogorov-Smirnov test between R of this model and of the retain-only model on
    the forget set; KS is the test's statistic.

    Args:
        losses: of this model, by the keys of ``TITLES``.
        retain_model: of the model that never saw the forget set, at least ``forget``; without it
            there is no forget quality.
    """
    scores: dict[str, float] = {}
    for name in TITLES:
        rows = losses[name]
        is_fact = name in ("real_author", "world_fact")
        probabilities = rows.shares() if is_fact else rows.probabilities()
        truth_ratios = rows.closeness_to_one() if name == "forget" else rows.truthfulness()
        scores[ROUGE[name].key] = float(rows.rouge.mean())
        scores[PROBABILITY[name].key] = float(probabilities.mean())
        scores[TRUTH_RATIO[name].key] = float(truth_ratios.mean())
    nine = [value for key, value in scores.items() if not key.endswith(TITLES["forget"])]
    scores[MODEL_UTILITY.key] = float(statistics.harmonic_mean(nine))
    forget = losses["forget"]
    scores[TRUTH_SHARE.key] = float(forget.truth_shares().mean())
    memorized = {
        EXACT_MEMORIZATION: forget.exact_memorization,
        EXTRACTION_STRENGTH: forget.extraction_strength,
    }
    scores |= {m.key: statistics.fmean(column) for m, column in memorized.items() if len(column)}
    if retain_model is not None:
        # The test looks at ranks alone, so the logarithms serve as well, and never overflow.
        test = ks_2samp(*(m["forget"].truth_log_ratios for m in (losses, retain_model)))
        scores[FORGET_QUALITY.key] = float(test.pvalue)
        scores[DISTANCE.key] = float(test.statistic)
    return scores
