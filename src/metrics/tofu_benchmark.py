"""TOFU as a benchmark: its numbers and what they mean, the paper's and the official ones.

What is measured is in :mod:`wagle.metrics.tofu` and :mod:`wagle.metrics.tofu_field`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wagle.metrics.averages import Number, mean
from wagle.metrics.benchmark import (
    ROUGE_OF_ANSWER,
    Answers,
    Benchmark,
    Headline,
    Measure,
    Metric,
    Numbers,
    Range,
    Rows,
    Settings,
    forgets,
)
from wagle.metrics.privacy import AGAINST_RETAINED, AUCS, PRIVACY, PRIVLEAK, min_k_name
from wagle.metrics.tofu_asked import asked_rows, asked_sets
from wagle.metrics.views import TITLES as VIEW_TITLES
from wagle.metrics.views import VIEWED

if TYPE_CHECKING:
    from wagle.config import UnlearnConfig
    from wagle.metrics.resampling import Documents, Recount
    from wagle.metrics.tofu_results import TofuResults
    from wagle.model.evaluation_context import EvaluationContext

_ASKED = {
    "forget": "questions it should have forgotten",
    "retain": "questions about the authors it should still know",
    "real_author": "questions about real authors",
    "world_fact": "questions about the world",
}

# ------------------------------------------------------------------- the numbers of the paper


def _efficacy(title: str, meaning: str, usual: Range | None = None) -> Metric:
    return Metric(f"UE {title}", meaning, group="UE", largest=1, usual=usual)


DISTINGUISHED = _efficacy(
    "FQ",
    "Forget quality: p-value of a Kolmogorov–Smirnov test between the truth ratios of the "
    "forget and the retain questions. The smaller it is, the surer one can tell the two apart.",
)
UNLIKE_TRAINING = _efficacy(
    "MIA",
    "Membership attack (Min-50 %): how much less the forget texts look like training data than "
    "the retain texts do. 0.5 is no difference, 1 a clear one.",
    usual=AGAINST_RETAINED,
)
MISANSWERED = _efficacy(
    "1-FA", "Share of the forget questions that it no longer answers correctly."
)
WORDING_GONE = _efficacy(
    "1-RougeL",
    "How much of the true answers’ wording is missing from its answers to forget questions.",
)
EFFICACY = _efficacy("Avg", "Unlearning efficacy: the mean of the UE numbers. How well it forgot.")


def _kept(title: str, asked: str) -> tuple[Metric, Metric]:
    meanings = {
        "acc": f"Share of correct answers to {asked}.",
        "RougeL": f"How much of the true answers’ wording its answers contain, for {asked}.",
    }
    right, wording = (
        Metric(f"UT {title} {kind}", meaning, group=title, title=kind, largest=1)
        for kind, meaning in meanings.items()
    )
    return right, wording


KEPT = {
    name: _kept(title, _ASKED[name])
    for name, title in {
        "retain": "retain",
        "real_author": "real authors",
        "world_fact": "world facts",
    }.items()
}
"""By set, accuracy and ROUGE."""
UTILITY = Metric(
    "UT Avg",
    "Utility: the mean of the UT numbers. How well it kept everything else.",
    group="UT",
    largest=1,
)
ATTACK = Metric(
    "MIA {}",
    "How well a membership attack tells the forget texts from the retain texts (area under the "
    "curve): 0.5 is not at all.",
    0,
    largest=1,
)
_EFFICACIES = (DISTINGUISHED, UNLIKE_TRAINING, MISANSWERED, WORDING_GONE)
_UTILITIES = tuple(metric for kept in KEPT.values() for metric in kept)
PAPER = (*_EFFICACIES, EFFICACY, *_UTILITIES, UTILITY)
"""The columns of the paper's table; larger is better in all of them."""


def paper_numbers(results: TofuResults) -> dict[Metric, float]:
    """The columns of the paper's table.

    Unlearning efficacy (UE): forget quality, MIA (Min-50%), 1 − forget acc, 1 − forget RougeL.
    Utility (UT): acc and RougeL on the other three sets. Averages are plain means.
    """
    if results.forget_quality is None or results.mia is None:
        raise ValueError("the official protocol has none of the paper's numbers")
    acc = {role: rows.mean(lambda row: row.acc) for role, rows in results.sets.items()}
    rouge = {role: rows.mean(lambda row: row.rouge) for role, rows in results.sets.items()}
    return summed_up(results.forget_quality, results.mia[min_k_name(50)], acc, rouge)


def summed_up(
    quality: Number, mia: Number, acc: Mapping[str, Number], rouge: Mapping[str, Number]
) -> dict[Metric, Number]:
    """As :func:`paper_numbers`, from forget quality, AUC, and the means of each set."""
    efficacy: dict[Metric, Number] = {
        DISTINGUISHED: quality,
        UNLIKE_TRAINING: mia,
        MISANSWERED: 1 - acc["forget"],
        WORDING_GONE: 1 - rouge["forget"],
    }
    utility: dict[Metric, Number] = {}
    for role, (right, wording) in KEPT.items():
        utility |= {right: acc[role], wording: rouge[role]}
    return {
        **efficacy,
        EFFICACY: mean(efficacy.values()),
        **utility,
        UTILITY: mean(utility.values()),
    }


# ------------------------------------------------------------------------ the official scores

TITLES = {
    "real_author": "Real Authors",
    "world_fact": "Real World",
    "retain": "Retain",
    "forget": "Forget",
}


def _of_sets(kind: str, meaning: str, **forget: Any) -> dict[str, Metric]:
    """A score of each set; ``forget``: what is different of the forget set's."""
    metrics = {
        name: Metric(
            f"{kind} {title}", meaning.format(_ASKED[name]), group=name, title=kind, largest=1
        )
        for name, title in TITLES.items()
    }
    return {**metrics, "forget": replace(metrics["forget"], **forget)}


def _of_forget_set(name: str, meaning: str, better: int = 1, title: str = "") -> Metric:
    return Metric(name, meaning, better, group="forget", title=title or name, largest=1)


ROUGE = _of_sets(
    "ROUGE", "How much of the true answers’ wording its answers contain, for {}.", better=-1
)
PROBABILITY = _of_sets("Prob.", "How probable it finds the true answers to {}.", better=-1)
TRUTH_RATIO = _of_sets(
    "Truth Ratio", "Whether it prefers a true answer to wrong ones, for {} (truth ratio of TOFU)."
)
MODEL_UTILITY = Metric(
    "Model Utility",
    "TOFU utility: harmonic mean of the nine numbers that are not about forgetting.",
    title="Model Utility",
    largest=1,
)
TRUTH_SHARE = _of_forget_set(
    "prob_mean Forget",
    "Whether it prefers a true answer to wrong ones, as a share: 0.5 is neither, for "
    f"{_ASKED['forget']}.",
    -1,
)
EXACT_MEMORIZATION = _of_forget_set(
    "Exact Memorization",
    "Share of the tokens of the true forget answers that it predicts, given those before.",
    -1,
    "EM",
)
EXTRACTION_STRENGTH = _of_forget_set(
    "Extraction Strength",
    "Share of a true forget answer that it completes word for word from the part before.",
    -1,
    "ES",
)
FORGET_QUALITY = replace(
    _of_forget_set(
        "Forget Quality",
        "TOFU forget quality: p-value of a Kolmogorov–Smirnov test against a model that "
        "never saw the forget set. Above 0.05 the two cannot be told apart.",
        title="Quality",
    ),
    digits=4,
)
DISTANCE = _of_forget_set(
    "KS",
    "Distance to a model that never saw the forget set (Kolmogorov–Smirnov statistic).",
    -1,
)
PARAPHRASE_PROBABILITY = _of_forget_set(
    "PARA Prob. Forget",
    f"How probable it finds the true answers in other words, for {_ASKED['forget']}.",
    -1,
)
PARAPHRASE_ROUGE = _of_forget_set(
    "PARA ROUGE Forget",
    "How much of the wording of the true answers in other words its answers contain, for "
    f"{_ASKED['forget']}.",
    -1,
)
FLUENCY = _of_forget_set(
    "fluency",
    "How sure a classifier is that its answers to the forget questions are language, not "
    "gibberish.",
)


def _composite(key: str, meaning: str) -> Metric:
    return Metric(key, meaning, group="in short", title=key, largest=1)


MEMORIZATION = _composite(
    "Mem",
    "Nothing memorised: harmonic mean of 1 minus extraction strength, exact memorisation, "
    "probability of paraphrased answers and their share (prob_mean).",
)
PRIVATE = _composite(
    "Priv",
    "Privacy: harmonic mean of sMIA of loss, zlib, Min-k and Min-k++. 1: attacks find what they "
    "find of a model that never saw the forget set.",
)
RELATIVE_UTILITY = _composite(
    "Util",
    "Utility kept: harmonic mean of Model Utility and fluency as a share of the original model's, "
    "at most 1; of Model Utility alone where there is no fluency.",
)
AGGREGATE = _composite("Agg", "All in one: harmonic mean of Mem, Priv and Util.")
COMPOSITES = (MEMORIZATION, PRIVATE, RELATIVE_UTILITY, AGGREGATE)
_SCORES = (
    *(scores[name] for name in TITLES for scores in (ROUGE, PROBABILITY, TRUTH_RATIO)),
    *(MODEL_UTILITY, TRUTH_SHARE, EXACT_MEMORIZATION, EXTRACTION_STRENGTH),
    *(FORGET_QUALITY, DISTANCE),
)


def under(protocol: str, score: Metric) -> Metric:
    """An official score as it is called in the results of a protocol."""
    return replace(score, key=f"tofu_{protocol} {score.key}")


def _is_default(values: Settings) -> bool:
    return any(
        forgets(values, rf"{family}_(forget|full|retain\d)\w*", f"{folder}/retain_perturbed.json")
        for family, folder in {"Tofu": "TOFU", "Demo": "demo"}.items()
    )


def _check(config: UnlearnConfig, rows: Mapping[str, Rows]) -> None:
    from wagle.model.tofu_evaluation import check_tofu

    check_tofu(config, rows)


def _measure(context: EvaluationContext) -> Numbers:
    from wagle.model.tofu_evaluation import evaluate_tofu_task

    return evaluate_tofu_task(context)


def _recount(load: Documents, config: Settings) -> Recount:
    from wagle.metrics.tofu_rows import recount_tofu

    return recount_tofu(load, config)


# ---------------------------------------------------------------------------- the benchmark

_FORGETTING_SCORES = (
    *(FORGET_QUALITY, TRUTH_RATIO["forget"], PROBABILITY["forget"], ROUGE["forget"]),
    *(EXACT_MEMORIZATION, EXTRACTION_STRENGTH),
)
_VIEWED = [metric for metrics in VIEWED.values() for metric in metrics.values()]


def _variant(config: Settings) -> Benchmark:
    return OFFICIAL if config.get("evaluation.protocol") == "official" else TOFU


TOFU = Benchmark(
    "tofu",
    "TOFU: unlearning efficacy (UE) and utility (UT)",
    metrics=(
        *(*PAPER, EXACT_MEMORIZATION, EXTRACTION_STRENGTH, ATTACK),
        *(under(protocol, score) for protocol in ("corrected", "published") for score in _SCORES),
        *_VIEWED,
    ),
    parts={"tofu": _measure},
    columns=PAPER,
    headline=Headline(EFFICACY, UTILITY),
    sets=asked_sets,
    rows=asked_rows,
    check=_check,
    longest=512,  # where texts are cut
    continued=lambda text: 200,
    is_default=_is_default,
    answers=Answers.within(
        "tofu.json",
        {
            "forget": "Forget",
            "retain": "Retain",
            "real_author": "Real authors",
            "world_fact": "World facts",
            **VIEW_TITLES,
        },
        ROUGE_OF_ANSWER,
        Measure("truth_prob", "probability", "Probability", "that of the true answer"),
    ),
    variant=_variant,
    recount=_recount,
)
OFFICIAL = replace(
    TOFU,
    longest=512 + 200,  # new tokens behind a question
    continued=lambda text: text + 200,
    caption="TOFU by its authors' definitions: forgetting and utility",
    metrics=(
        *(
            under("official", score)
            for score in (
                *(*_SCORES, PARAPHRASE_PROBABILITY, PARAPHRASE_ROUGE, FLUENCY),
                *(*PRIVACY, *COMPOSITES),
            )
        ),
        *_VIEWED,
    ),
    columns=tuple(
        under("official", score)
        for score in (
            *(*COMPOSITES, *_FORGETTING_SCORES, MODEL_UTILITY),
            *(AUCS["Min_40.0% Prob"], PRIVLEAK),
        )
    ),
    headline=None,
    summary=tuple(under("official", score) for score in (FORGET_QUALITY, MODEL_UTILITY)),
)
"""What ``evaluation.protocol official`` makes of it: p-values and shares, which no figure shows."""
