"""Generated text against a reference, word by word: recall of ROUGE-L, and BLEU."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

MOST_LOST = 0.1
"""Above this share of lost letters, ``auto`` no longer leaves words to ``rouge_score``."""

# Scripts that put no spaces between words: Thai, Lao; Myanmar; Khmer; kana; Han.
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)


def rouge_l_recall(reference: str, text: str, tokenizer: str = "rouge_score") -> float:
    """ROUGE-L recall (Lin 2004), on Porter stems: 0 to 1.

    Args:
        tokenizer: ``rouge_score``: that package's own words, of a to z and 0 to 9 alone;
            ``unicode``: those of :class:`ScriptTokenizer`.
    """
    return _scorer("rougeL", tokenizer).score(reference, text)["rougeL"].recall


def rouge_l_f1(reference: str, text: str, *, stems: bool = True) -> float:
    """ROUGE-L F1 (Lin 2004), on Porter stems or on whole words, of a to z and 0 to 9: 0 to 1."""
    return _scorer("rougeL", stems=stems).score(reference, text)["rougeL"].fmeasure


def rouge_1_recall(reference: str, text: str) -> float:
    """ROUGE-1 recall (Lin 2004), on Porter stems of a to z and 0 to 9: 0 to 1."""
    return _scorer("rouge1").score(reference, text)["rouge1"].recall


def bleu(reference: str, text: str, tokenizer: str = "rouge_score") -> float:
    """BLEU (Papineni et al. 2002) of a corpus of one pair, as sacrebleu defines it: 0 to 100.

    Args:
        tokenizer: ``unicode``: characters of scripts without spaces are words of their own.
    """
    import sacrebleu

    if tokenizer == "unicode":
        reference, text = _spaced(reference), _spaced(text)
    return sacrebleu.corpus_bleu([text], [[reference]]).score


def lost_share(texts: Iterable[str]) -> float:
    """Share of the letters and digits that the package rouge_score drops, 0 to 1."""
    letters = [c for text in texts for c in text.lower() if c.isalnum()]
    return sum(not c.isascii() for c in letters) / max(len(letters), 1)


class ScriptTokenizer:
    """Words of every script, for ROUGE.

    A word is letters, digits and their marks; where a script has no spaces between words, each
    character is one. Of texts in a to z and 0 to 9 the words are those of rouge_score with Porter's
    stemmer.
    """

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._latin = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in order."""
        folded = unicodedata.normalize("NFKC", text).lower()
        spaced = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in _spaced(folded))
        words = (self._latin.tokenize(w) if w.isascii() else [w] for w in spaced.split())
        return [word for some in words for word in some]


def _spaced(text: str) -> str:
    """The text with spaces around characters of scripts that put none between words."""
    spaced, alone = "", False
    for character in text:
        if unicodedata.category(character)[0] != "M":  # a mark belongs to what it stands on
            before, alone = alone, any(low <= ord(character) <= high for low, high in _UNSPACED)
            spaced += " " * (before or alone)
        spaced += character
    return spaced


@cache
def _scorer(kind: str, tokenizer: str = "rouge_score", stems: bool = True) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    words = ScriptTokenizer() if tokenizer == "unicode" else None
    return RougeScorer([kind], use_stemmer=stems, tokenizer=words)
