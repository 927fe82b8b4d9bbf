"""Generated text against a reference."""

from __future__ import annotations

from functools import cache

from rouge_score.rouge_scorer import RougeScorer


def rouge_l_recall(reference: str, text: str) -> float:
    """ROUGE-L recall (Lin 2004), on Porter stems: 0 to 1."""
    return _rouge_l().score(reference, text)["rougeL"].recall


@cache
def _rouge_l() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)
