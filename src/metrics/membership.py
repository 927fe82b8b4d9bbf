"""Membership inference: do the forget rows still look like training data?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

MIN_K_PERCENT = (10, 20, 30, 40, 50, 60)


def min_k_score(log_probs: np.ndarray, percent: int) -> float:
    """Min-k% (Shi et al. 2024, arXiv 2310.16789): −mean of the lowest k % token log-probabilities.

    ``int(k · T)`` tokens count, at least one. The larger, the less the text looks like training
    data.
    """
    count = max(1, int(percent / 100 * len(log_probs)))
    return -float(np.sort(log_probs)[:count].mean())


def min_k_aucs(forget: Sequence[np.ndarray], retain: Sequence[np.ndarray]) -> dict[str, float]:
    """AUC of telling forget rows (1) from retain rows (0) by their Min-k% scores, for each k.

    Args:
        forget, retain: per row, the log-probabilities of all its tokens but the first.
    """
    labels = [1] * len(forget) + [0] * len(retain)
    rows = [*forget, *retain]
    return {
        f"Min_{percent:.1f}% Prob": float(
            roc_auc_score(labels, [min_k_score(row, percent) for row in rows])
        )
        for percent in MIN_K_PERCENT
    }
