"""Membership inference: do the forget rows still look like training data?

An attack gives each text a score, the larger the less the text looks like training data; its AUC
tells how well the scores set forget rows apart from retain rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

MIN_K_PERCENT = (10, 20, 30, 40, 50, 60)


def min_k_score(log_probs: np.ndarray, percent: int) -> float:
    """Min-k% (Shi et al. 2024, arXiv 2310.16789): −mean of the lowest k % token log-probabilities.

    ``int(k · T)`` of T tokens count, and at least one: in shorter texts the published code divides
    by zero.
    """
    count = max(1, percent * len(log_probs) // 100)
    return -float(np.sort(log_probs)[:count].mean(dtype=np.float64))


def min_k_scores(log_probs: np.ndarray) -> dict[str, float]:
    """Min-k% at each k of ``MIN_K_PERCENT``.

    Args:
        log_probs: of all tokens of a text but the first.
    """
    return {f"Min_{k:.1f}% Prob": min_k_score(log_probs, k) for k in MIN_K_PERCENT}


def attack_aucs(
    forget: Sequence[Mapping[str, float]], retain: Sequence[Mapping[str, float]]
) -> dict[str, float]:
    """AUC of telling forget rows (1) from retain rows (0), for each attack.

    Args:
        forget, retain: per row, its scores by the names of the attacks.
    """
    labels = [1] * len(forget) + [0] * len(retain)
    return {
        name: float(roc_auc_score(labels, [row[name] for row in (*forget, *retain)]))
        for name in forget[0]
    }
