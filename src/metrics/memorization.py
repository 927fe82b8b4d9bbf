"""How much of an answer a model knows word for word, from one teacher-forced pass."""

from __future__ import annotations

import numpy as np


def exact_memorization(is_greedy: np.ndarray) -> float:
    """Share of the answer's tokens that are the most likely ones after the true beginning: 0 to 1.

    Exact memorisation of Tirumala et al. 2022 (arXiv 2205.10770), as open-unlearning uses it.

    Args:
        is_greedy: bool ``(tokens,)``, from :class:`wagle.metrics.likelihood.TokenScores`.
    """
    return float(is_greedy.mean())


def extraction_strength(is_greedy: np.ndarray) -> float:
    """1 − the shortest share of the answer from which greedy decoding writes the rest: 0 to 1.

    Extraction strength of Carlini et al. 2021 (arXiv 2012.07805), as open-unlearning uses it. Where
    every token after a beginning is the most likely one, greedy decoding from there writes just
    these, so that no text has to be generated. If even the last token is not, the whole answer is
    needed, and the strength is 0.

    Args:
        is_greedy: bool ``(tokens,)``, from :class:`wagle.metrics.likelihood.TokenScores`.
    """
    wrong = np.flatnonzero(~is_greedy)
    needed = wrong[-1] + 1 if len(wrong) else 0
    return float(1 - needed / len(is_greedy))
