"""Generated text against a reference."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import sacrebleu

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


def rouge_l_recall(reference: str, text: str) -> float:
    """ROUGE-L recall (Lin 2004), on Porter stems: 0 to 1."""
    return _rouge_l().score(reference, text)["rougeL"].recall


def bleu(reference: str, text: str) -> float:
    """BLEU (Papineni et al. 2002) of a corpus of one pair, as sacrebleu defines it: 0 to 100."""
    return sacrebleu.corpus_bleu([text], [[reference]]).score


@cache
def _rouge_l() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
