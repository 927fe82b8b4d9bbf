"""TOFU's numbers over any draw of its rows, by the formulas that made them of all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wagle.metrics.benchmark import Metric, Settings
from wagle.metrics.composites import composites, official_numbers
from wagle.metrics.privacy import MIN_K_PERCENT, min_k_name, privacy_numbers
from wagle.metrics.resampling import Column, Documents, Draws, Recount, column_of
from wagle.metrics.tofu_benchmark import (
    ATTACK,
    DISTANCE,
    EXACT_MEMORIZATION,
    EXTRACTION_STRENGTH,
    FORGET_QUALITY,
    MODEL_UTILITY,
    PARAPHRASE_PROBABILITY,
    PARAPHRASE_ROUGE,
    TRUTH_SHARE,
    summed_up,
    under,
)
from wagle.metrics.tofu_files import load_results
from wagle.metrics.tofu_official import (
    model_utility,
    score_columns,
    truth_log_ratios,
    truth_shares,
)
from wagle.metrics.tofu_results import (
    AUTHOR_SETS,
    OF_VIEWS,
    TofuResults,
    TofuRow,
    TofuSet,
    from_document,
)
from wagle.metrics.views import view_numbers

Read = Callable[[TofuRow], float | None]


def recount_tofu(load: Documents, config: Settings) -> Recount:
    """Of ``tofu.json``, by its protocol.

    Numbers that compare with the retain-only or the original model are there as long as the files
    are that gave these models' results. Fluency has no rows, and what contains it is left out.

    Args:
        load: the run's documents.
        config: of the run.
    """
    results = from_document(load("tofu.json"))
    given = {
        name: load_results(Path(path))
        for name in ("retain_results", "original_results")
        if (path := config.get(f"evaluation.{name}")) and Path(path).is_file()
    }
    asked = {
        role: [str(question) for question in rows.all(lambda row: row.question)]
        for role, rows in results.sets.items()
    }
    retain_model, original = given.get("retain_results"), given.get("original_results")
    if results.protocol == "official":
        found = _official(asked, results, load("privacy.json"), retain_model, original)
    else:
        found = _paper(asked, results, retain_model)
    return _with_views(found, results)


def _with_views(recount: Recount, results: TofuResults) -> Recount:
    """With the numbers of the forget questions that were asked otherwise."""
    columns = {
        view: {key: (view, _column(rows, read)) for key, read in OF_VIEWS.items()}
        for view, rows in results.views.items()
    }
    asked = {
        view: [str(question) for question in rows.all(lambda row: row.question)]
        for view, rows in results.views.items()
    }

    def numbers(draws: Draws) -> Mapping[Metric, np.ndarray]:
        views = {
            view: {key: draws.mean(c) for key, c in found.items() if not np.isnan(c[1]).all()}
            for view, found in columns.items()
        }
        return {**recount.numbers(draws), **view_numbers(views)}

    return Recount({**recount.asked, **asked}, numbers)


def _paper(
    asked: dict[str, list[str]], results: TofuResults, retain_model: TofuResults | None
) -> Recount:
    acc, rouge = (
        {role: (role, _column(rows, read)) for role, rows in results.sets.items()}
        for read in (_acc, _rouge)
    )
    ratios = [(role, _column(results.sets[role], _truth_ratio)) for role in AUTHOR_SETS]
    memorized = _memorized(results)
    attacks = {role: results.sets[role].all(lambda row: row.attacks) for role in AUTHOR_SETS}
    middle, of_the_paper = min_k_name(50), set(map(min_k_name, MIN_K_PERCENT))
    others = [name for name in results.mia or {} if name not in of_the_paper]
    attacked = {
        name: [(role, column_of(rows, name)) for role, rows in attacks.items()]
        for name in (middle, *others)
    }
    scores = _scores(results, retain_model)

    def numbers(draws: Draws) -> dict[Metric, np.ndarray]:
        aucs = {name: draws.auc(*columns) for name, columns in attacked.items()}
        return {
            **summed_up(
                draws.smirnov(*ratios)[0],
                aucs[middle],
                {role: draws.mean(column) for role, column in acc.items()},
                {role: draws.mean(column) for role, column in rouge.items()},
            ),
            **{metric: draws.mean(column) for metric, column in memorized.items()},
            **{ATTACK.of(name): aucs[name] for name in others},
            **{under(str(results.protocol), m): values for m, values in scores(draws).items()},
        }

    return Recount(asked, numbers)


def _official(
    asked: dict[str, list[str]],
    results: TofuResults,
    privacy: Mapping[str, Any] | None,
    retain_model: TofuResults | None,
    original: TofuResults | None,
) -> Recount:
    scores = _scores(results, retain_model)
    forget = results.sets["forget"]
    further: dict[Metric, Column] = {
        **_memorized(results),
        PARAPHRASE_PROBABILITY: (
            "forget",
            np.exp([-loss.paraphrase for loss in forget.all(lambda row: row.loss)]),
        ),
        PARAPHRASE_ROUGE: ("forget", _column(forget, lambda row: row.paraphrase_rouge)),
    }
    attacked: dict[str, tuple[Column, ...]] = {}
    if privacy:
        held = {role: privacy[role]["rows"] for role in ("holdout", "forget")}
        asked = {**asked, "holdout": [str(row["question"]) for row in held["holdout"]]}
        attacked = {
            name: tuple((role, column_of(rows, name)) for role, rows in held.items())
            for name in privacy["AUC"]
        }
    before: Mapping[Metric, float] = {}
    # Where both models have a fluency, Util has it in it, and there are no rows of that.
    if original is not None and None in (results.fluency, original.fluency):
        before = official_numbers(original)

    def numbers(draws: Draws) -> dict[Metric, np.ndarray]:
        found = scores(draws) | {m: draws.mean(column) for m, column in further.items()}
        aucs = {name: draws.auc(*columns) for name, columns in attacked.items()}
        retained = retain_model.holdout if retain_model else None
        found |= privacy_numbers(aucs, retained)
        found |= composites(found, before)
        return {under("official", metric): values for metric, values in found.items()}

    return Recount(asked, numbers)


def _scores(
    results: TofuResults, retain_model: TofuResults | None
) -> Callable[[Draws], dict[Metric, np.ndarray]]:
    """The official scores, but for memorisation."""
    columns, forget = score_columns(results), results.sets["forget"]
    shares: Column = "forget", truth_shares(forget, results.epsilon)
    compared = [
        ("forget", truth_log_ratios(model.sets["forget"], model.epsilon))
        for model in (results, retain_model)
        if model is not None
    ]

    def scores(draws: Draws) -> dict[Metric, np.ndarray]:
        found = {metric: draws.mean(column) for metric, column in columns.items()}
        found |= {MODEL_UTILITY: model_utility(found), TRUTH_SHARE: draws.mean(shares)}
        if retain_model is not None:
            found[FORGET_QUALITY], found[DISTANCE] = draws.smirnov(*compared)
        return found

    return scores


def _memorized(results: TofuResults) -> dict[Metric, Column]:
    forget = results.sets["forget"]
    columns = {
        EXACT_MEMORIZATION: _column(forget, lambda row: row.exact_memorization),
        EXTRACTION_STRENGTH: _column(forget, lambda row: row.extraction_strength),
    }
    return {m: ("forget", values) for m, values in columns.items() if not np.isnan(values).all()}


def _column(rows: TofuSet, read: Read) -> np.ndarray:
    values: Sequence[float | None] = [read(row) for row in rows.rows]
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _acc(row: TofuRow) -> float | None:
    return row.acc


def _rouge(row: TofuRow) -> float | None:
    return row.rouge


def _truth_ratio(row: TofuRow) -> float | None:
    return row.truth_ratio
