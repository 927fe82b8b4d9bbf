"""The benchmark own: any rows to forget and to retain, by what the rows allow.

A row is a question with its answer, or running text. Of either the model's likelihood is measured
(probability, loss, memorisation, membership), of answers also what the model says instead. Example
of rows, and what they get::

    {"question": "Who keeps the key?", "answer": "Ada does."}   everything
    {"text": "Ada keeps the key."}                              everything but ROUGE
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wagle.dataset.names import is_own
from wagle.errors import ConfigError
from wagle.metrics.averages import Number, mean
from wagle.metrics.benchmark import (
    ROUGE_OF_ANSWER,
    Answers,
    Benchmark,
    Headline,
    Loader,
    Measure,
    Metric,
    Numbers,
    Rows,
    Settings,
)
from wagle.metrics.privacy import (
    AGAINST_RETAINED,
    MIN_K_PERCENT,
    PRIVACY,
    STANDING_OUT,
    min_k_name,
)
from wagle.metrics.views import MEASURES, TITLES, VIEWED, VIEWS, view_numbers, viewed_rows, views_of

if TYPE_CHECKING:
    import numpy as np

    from wagle.config import UnlearnConfig
    from wagle.metrics.resampling import Documents, Draws, Recount
    from wagle.model.evaluation_context import EvaluationContext

MOST_RETAINED = 400
"""Rows of the retain set that are asked about, spread evenly over it, unless a limit says how many
of the first."""
LEAST_TOTAL_LENGTH = 200
"""Tokens of prompt and greedy answer together, at least."""

_TEXTS = {
    "forget": "what it should have forgotten",
    "retain": "what it should still know",
    "holdout": "what it never saw",
}

FORGOTTEN = {
    key: Metric(
        f"UE 1-{title}", f"1 minus {meaning.format(_TEXTS['forget'])}.", group="UE", largest=1
    )
    for key, (title, meaning) in MEASURES.items()
}
KEPT = {
    key: Metric(
        f"UT {title}",
        f"Of what is retained: {meaning.format(_TEXTS['retain'])}.",
        group="UT",
        largest=1,
    )
    for key, (title, meaning) in MEASURES.items()
}
UNSEEN = {
    key: Metric(
        f"holdout {title}",
        f"Of held-out rows: {meaning.format(_TEXTS['holdout'])}. Forgetting should lead there.",
        0,
        group="holdout",
        largest=1,
    )
    for key, (title, meaning) in MEASURES.items()
}
"""By the row's measure in ``own.json``."""

UNLIKE_RETAINED = Metric(
    "UE MIA",
    "Membership attack (Min-50 %): how much less the rows to forget look like training data than "
    "the rows to retain do. 0.5 is no difference, 1 a clear one.",
    group="UE",
    largest=1,
    usual=AGAINST_RETAINED,
)
UNLIKE_UNSEEN = Metric(
    "MIA holdout",
    "Membership attack (Min-50 %): how much less the rows to forget look like training data than "
    "rows that it never saw do. 0 is known by heart, 0.5 as if never seen, 1 stands out.",
    0,
    largest=1,
    usual=STANDING_OUT,
)
ATTACK = Metric(
    "MIA {}",
    "How well a membership attack tells the rows to forget from those to retain (area under the "
    "curve): 0.5 is not at all.",
    0,
    largest=1,
)
FORGETTING = Metric(
    "UE Avg", "Forgetting: the mean of the UE numbers that these rows have.", group="UE", largest=1
)
UTILITY = Metric(
    "UT Avg", "Utility: the mean of the UT numbers that these rows have.", group="UT", largest=1
)
LOSS = {
    "forget": Metric("loss forget", "Mean loss per token of what it should have forgotten."),
    "retain": Metric("loss retain", "Mean loss per token of what it should still know.", -1),
    "holdout": Metric("loss holdout", "Mean loss per token of what it never saw.", 0),
}


def _sets(config: UnlearnConfig) -> dict[str, str]:
    names = {
        "forget": config.dataset.forget_dataset_name,
        "retain": config.dataset.retain_dataset_name,
        "holdout": config.evaluation.holdout_dataset_name,
    }
    if config.dataset.self_retain:
        names["retain"] = names["forget"]
    names |= dict.fromkeys(views_of(config), names["forget"])
    return {role: name for role, name in names.items() if name is not None}


def drawn_rows(config: UnlearnConfig, load_rows: Loader) -> dict[str, Rows]:
    """Rows drawn to be forgotten, rows to retain, those held out, and the first asked otherwise.

    Raises:
        ConfigError: what is to be asked otherwise is running text, or no file of one's own.
        WagleError: there is no column of paraphrased questions.
    """
    from wagle.dataset.pairing import divide_forget_rows

    names = _sets(config)
    forget = load_rows(names["forget"])
    drawn, left = divide_forget_rows(len(forget), config.dataset)
    if config.dataset.self_retain:
        retain: Rows = [forget[row] for row in left]
    else:
        retain = load_rows(names["retain"], "retain")
    if config.evaluation.limit is None and len(retain) > MOST_RETAINED:
        retain = [retain[i * len(retain) // MOST_RETAINED] for i in range(MOST_RETAINED)]
    asked: dict[str, Rows] = {"forget": [forget[row] for row in sorted(drawn)], "retain": retain}
    if "holdout" in names:
        asked["holdout"] = load_rows(names["holdout"])

    def in_other_words(column: str) -> Rows:
        if not is_own(names["forget"]):
            raise ConfigError(
                f"evaluation.paraphrase_column {column} is about a file of one's own, and "
                f"{names['forget']} is none"
            )
        others = load_rows(names["forget"], question=column)
        return [others[row] for row in sorted(drawn)]

    return asked | viewed_rows(config, asked["forget"], in_other_words)


def _check(config: UnlearnConfig, rows: Mapping[str, Rows]) -> None:
    from wagle.model.own_evaluation import check_own

    check_own(config, rows)


def _measure(context: EvaluationContext) -> Numbers:
    from wagle.model.own_evaluation import evaluate_own

    return evaluate_own(context)


def own_numbers(
    sets: Mapping[str, Mapping[str, Number]], aucs: Mapping[str, Mapping[str, Number]]
) -> dict[Metric, Number]:
    """The flat numbers: averages are plain means of those that the rows have.

    Args:
        sets: by role, the means of what its rows have.
        aucs: of telling the rows to forget from those of another role, by attack.
    """
    forget, retain = sets["forget"], sets["retain"]
    middle = min_k_name(50)
    gone: dict[Metric, Number] = {
        metric: 1 - forget[key] for key, metric in FORGOTTEN.items() if key in forget
    }
    kept: dict[Metric, Number] = {
        metric: retain[key] for key, metric in KEPT.items() if key in retain
    }
    others: dict[Metric, Number] = {LOSS[r]: sets[r]["loss"] for r in LOSS if r in sets}
    if "retain" in aucs:
        gone[UNLIKE_RETAINED] = aucs["retain"][middle]
        min_k = set(map(min_k_name, MIN_K_PERCENT))
        others |= {ATTACK.of(k): v for k, v in aucs["retain"].items() if k not in min_k}
    unseen = sets.get("holdout", {})
    others |= {metric: unseen[key] for key, metric in UNSEEN.items() if key in unseen}
    others |= view_numbers(sets)
    if "holdout" in aucs:
        others[UNLIKE_UNSEEN] = aucs["holdout"][middle]
    return {
        **gone,
        FORGETTING: mean(gone.values()),
        **kept,
        UTILITY: mean(kept.values()),
        **others,
    }


def _recount(load: Documents, config: Settings) -> Recount:
    """Of ``own.json``; attacks against held-out rows that it has no scores of are not in it."""
    from wagle.metrics.resampling import Recount, asked_in, column_of

    document = load("own.json")
    rows = {role: document[role]["rows"] for role in (*_TEXTS, *VIEWS) if role in document}
    keys = {
        role: [key for key in (*FORGOTTEN, "loss") if key in part[0]] for role, part in rows.items()
    }

    def numbers(draws: Draws) -> dict[Metric, np.ndarray]:
        sets = {
            role: {key: draws.mean((role, column_of(part, key))) for key in keys[role]}
            for role, part in rows.items()
        }
        attacks = {role: [row["MIA"] for row in part] for role, part in rows.items()}
        aucs = {
            role: {
                name: draws.auc(
                    ("forget", column_of(attacks["forget"], name)),
                    (role, column_of(attacks[role], name)),
                )
                for name in found
            }
            for role, found in document["MIA"].items()
        }
        return own_numbers(sets, aucs)

    return Recount({role: asked_in(part) for role, part in rows.items()}, numbers)


OWN = Benchmark(
    "own",
    "One's own data: forgetting (UE) and utility (UT)",
    metrics=(
        *(*FORGOTTEN.values(), UNLIKE_RETAINED, FORGETTING, *KEPT.values(), UTILITY),
        *(*LOSS.values(), *UNSEEN.values(), UNLIKE_UNSEEN, *PRIVACY, ATTACK),
        *(metric for view in VIEWED.values() for metric in view.values()),
    ),
    parts={"own": _measure},
    columns=(*FORGOTTEN.values(), UNLIKE_RETAINED, FORGETTING, *KEPT.values(), UTILITY),
    headline=Headline(FORGETTING, UTILITY),
    sets=_sets,
    rows=drawn_rows,
    check=_check,
    continued=lambda text: max(LEAST_TOTAL_LENGTH, text),
    is_default=lambda values: is_own(values["dataset.forget_dataset_name"] or ""),
    answers=Answers.within(
        "own.json",
        {
            **{"forget": "Forget", "retain": "Retain", "holdout": "Never seen"},
            **TITLES,
        },
        ROUGE_OF_ANSWER,
        Measure("probability", "probability", "Probability", "that of the true answer"),
    ),
    recount=_recount,
)
