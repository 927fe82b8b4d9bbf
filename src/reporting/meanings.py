"""What the numbers of ``results.json`` mean, in plain words.

To add one: a line in ``_MEANINGS``; a name may be a regular expression, the first that matches the
whole name counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
_FIELDS = {"bio": "biology", "chem": "chemistry", "cyber": "cyber security"}
_PROMPTS = {
    "forget": "prompts that it was to unlearn harmful answers to",
    "SafePku_test": "harmful prompts that it was not trained on (SafePku)",
    "RealToxicityPrompts": "beginnings of texts from the web (RealToxicityPrompts)",
}
_TEXTS = {"seen": "the text that it was to forget", "unseen": "a text that it never saw"}
_NAMES = {**_SETS, **_FIELDS, **_PROMPTS, **_TEXTS}


def _one_of(names: Mapping[str, str]) -> str:
    return f"({'|'.join(names)})"


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
    rf"UT {_one_of(_SETS)} acc": Meaning("Share of correct answers to {0}."),
    rf"UT {_one_of(_SETS)} RougeL": Meaning(
        "How much of the true answers’ wording its answers contain, for {0}."
    ),
    "UT Avg": Meaning("Utility: the mean of the UT numbers. How well it kept everything else."),
    rf"(?:.* )?ROUGE {_one_of(_SETS)}": Meaning(
        "How much of the true answers’ wording its answers contain, for {0}."
    ),
    rf"(?:.* )?Prob\. {_one_of(_SETS)}": Meaning("How probable it finds the true answers to {0}."),
    rf"(?:.* )?Truth Ratio {_one_of(_SETS)}": Meaning(
        "Whether it prefers a true answer to wrong ones, for {0} (truth ratio of TOFU)."
    ),
    "(?:.* )?Model Utility": Meaning(
        "TOFU utility: harmonic mean of the nine numbers that are not about forgetting."
    ),
    "(?:.* )?Forget Quality": Meaning(
        "TOFU forget quality: p-value of a Kolmogorov–Smirnov test against a model that "
        "never saw the forget set. Above 0.05 the two cannot be told apart."
    ),
    "(?:.* )?KS": Meaning(
        "Distance to a model that never saw the forget set (Kolmogorov–Smirnov statistic).", -1
    ),
    rf"(?:.* )?prob_mean {_one_of(_SETS)}": Meaning(
        "Whether it prefers a true answer to wrong ones, as a share: 0.5 is neither, for {0}.", -1
    ),
    "(?:.* )?Exact Memorization": Meaning(
        "Share of the tokens of the true forget answers that it predicts, given those before.", -1
    ),
    "(?:.* )?Extraction Strength": Meaning(
        "Share of a true forget answer that it completes word for word from the part before.", -1
    ),
    "MIA .*": Meaning(
        "How well a membership attack tells the forget texts from the retain texts (area under the "
        "curve): 0.5 is not at all.",
        0,
    ),
    rf"(?:UE )?1-FA {_one_of(_FIELDS)}": Meaning(
        "Share of the multiple-choice questions on hazardous {0} (WMDP) that it answers wrongly; "
        "guessing among four gives 0.75."
    ),
    "UT MMLU": Meaning("Share of correct answers to general multiple-choice questions (MMLU)."),
    "PPL": Meaning("Perplexity per word of ordinary text: how much running text surprises it.", -1),
    rf"{_one_of(_TEXTS)} BLEU": Meaning(
        "How exactly its continuations repeat {0}: word sequences in common.", -1
    ),
    rf"{_one_of(_TEXTS)} RougeL": Meaning("How much of {0} its continuations contain.", -1),
    "UT zero-shot acc": Meaning(
        "Mean share of correct answers in general tasks, no examples given."
    ),
    "UT TruthfulQA": Meaning("Share of truthful answers to questions that invite falsehoods."),
    rf"toxicity {_one_of(_PROMPTS)} rate": Meaning(
        "Share of its answers that a classifier calls toxic, to {0}.", -1
    ),
    rf"toxicity {_one_of(_PROMPTS)} score": Meaning(
        "How sure a classifier is, on average, that its answers are toxic, to {0}.", -1
    ),
    r"lm_eval (\S+) acc(?:_norm)?": Meaning("Share of correct answers in the lm-eval task {0}.", 0),
    r"lm_eval (\S+) \w*perplexity": Meaning("Perplexity in the lm-eval task {0}.", 0),
    r"lm_eval (\S+) \S+": Meaning("From the lm-eval task {0}.", 0),
}


def meaning_of(name: str) -> Meaning | None:
    """The meaning of a number by its name in ``results.json``, where one has been written."""
    for pattern, meaning in _MEANINGS.items():
        match = re.fullmatch(pattern, name)
        if match:
            better = -1 if re.search(r"(ROUGE|Prob\.) Forget$", name) else meaning.better
            words = [_NAMES.get(group, group) for group in match.groups()]
            return Meaning(meaning.text.format(*words), better)
    return None
