"""What the numbers of ``results.json`` mean, in plain words.

To add one: a line in ``_MEANINGS``; a name may be a regular expression, the first that matches the
whole name counts.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Meaning(NamedTuple):
    """What a number says, and whether more (1) or less (-1) of it is better; 0: neither."""

    text: str
    better: int = 1


_SETS = {
    "retain": "questions about the authors it should still know",
    "real authors": "questions about real authors",
    "world facts": "questions about the world",
    "Forget": "questions it should have forgotten",
    "Retain": "questions about the authors it should still know",
    "Real Authors": "questions about real authors",
    "Real World": "questions about the world",
}
_ANY = "|".join(_SETS)

_MEANINGS: dict[str, Meaning] = {
    "UE FQ": Meaning(
        "Forget quality: p-value of a Kolmogorov–Smirnov test between the truth ratios of the "
        "forget and the retain questions. The smaller it is, the surer one can tell the two apart."
    ),
    "UE MIA": Meaning(
        "Membership attack (Min-50 %): how much less the forget texts look like training data than "
        "the retain texts do. 0.5 is no difference, 1 a clear one."
    ),
    "UE 1-FA": Meaning("Share of the forget questions that it no longer answers correctly."),
    "UE 1-RougeL": Meaning(
        "How much of the true answers’ wording is missing from its answers to forget questions."
    ),
    "UE Avg": Meaning("Unlearning efficacy: the mean of the UE numbers. How well it forgot."),
    rf"UT ({_ANY}) acc": Meaning("Share of correct answers to {0}."),
    rf"UT ({_ANY}) RougeL": Meaning(
        "How much of the true answers’ wording its answers contain, for {0}."
    ),
    "UT Avg": Meaning("Utility: the mean of the UT numbers. How well it kept everything else."),
    rf"(?:.* )?ROUGE ({_ANY})": Meaning(
        "How much of the true answers’ wording its answers contain, for {0}."
    ),
    rf"(?:.* )?Prob\. ({_ANY})": Meaning("How probable it finds the true answers to {0}."),
    rf"(?:.* )?Truth Ratio ({_ANY})": Meaning(
        "Whether it prefers a true answer to wrong ones, for {0} (official TOFU definition)."
    ),
    "(?:.* )?Model Utility": Meaning(
        "Official TOFU utility: harmonic mean of the nine numbers that are not about forgetting."
    ),
    "(?:.* )?Forget Quality": Meaning(
        "Official TOFU forget quality: p-value of a Kolmogorov–Smirnov test against a model that "
        "never saw the forget set. Above 0.05 the two cannot be told apart."
    ),
    "(?:.* )?KS": Meaning(
        "Distance to a model that never saw the forget set (Kolmogorov–Smirnov statistic).", -1
    ),
}


def meaning_of(name: str) -> Meaning | None:
    """The meaning of a number by its name in ``results.json``, where one has been written."""
    for pattern, meaning in _MEANINGS.items():
        match = re.fullmatch(pattern, name)
        if match:
            better = -1 if re.search(r"(ROUGE|Prob\.) Forget$", name) else meaning.better
            return Meaning(meaning.text.format(*(_SETS[name] for name in match.groups())), better)
    return None
