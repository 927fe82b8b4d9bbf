"""TOFU's results in files: a ``tofu.json`` of ours, and the logs of others.

Read are the TOFU authors' ``eval_log_aggregated.json`` and open-unlearning's ``TOFU_EVAL.json``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wagle.errors import WagleError
from wagle.loggers.run_folder import read_result_file
from wagle.metrics.evaluation_log import aggregate, attack_aucs, column, column_if_there
from wagle.metrics.tofu_results import (
    AUTHOR_SETS,
    EPSILON,
    PerAnswer,
    TofuResults,
    TofuRow,
    TofuSet,
    from_document,
)

_AUTHORS_LOGS = {
    "real_author": "eval_real_author_wo_options.json",
    "world_fact": "eval_real_world_wo_options.json",
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
}
PREFIXES = {"real_author": "ra", "world_fact": "wf", "retain": "retain", "forget": "forget"}
"""Of the names of open-unlearning's metrics, by set."""
_Numbers = float | Sequence[float]
_WRONG_FORM = (KeyError, TypeError, ValueError, AttributeError, IndexError)


def load_results(path: Path) -> TofuResults:
    """Read a ``tofu.json``, ``eval_log_aggregated.json`` or ``TOFU_EVAL.json``.

    Raises:
        WagleError: the file is missing or has none of these forms.
    """
    document = read_result_file(path)
    try:
        return parse_results(document)
    except _WRONG_FORM as error:
        raise WagleError(
            f"{path} is no tofu.json of a run, no eval_log_aggregated.json of the TOFU authors and "
            f"no TOFU_EVAL.json of open-unlearning, or is damaged ({type(error).__name__}: {error})"
        ) from error


def parse_results(document: Mapping[str, Any]) -> TofuResults:
    """As :func:`load_results`, from the file's content.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: it has none of the forms.
    """
    if _AUTHORS_LOGS["forget"] in document:
        results = _of_authors(document)
    elif "forget" in document:
        results = from_document(document)
        if results.protocol == "official":
            results.sets["forget"].all(lambda row: row.extraction_strength)
    else:
        results = _of_open_unlearning(document)
    for rows in results.sets.values():
        _check(rows)
    return results


def _check(rows: TofuSet) -> None:
    """Whether official scores can be computed from the rows.

    Raises:
        ValueError: no.
    """
    losses, rouge = rows.all(lambda row: row.loss), rows.all(lambda row: row.rouge)
    if not losses:
        raise ValueError("a set without rows")
    if not all(loss.perturbed for loss in losses):
        raise ValueError("a row without losses of wrong answers")
    finite = [*rouge, *(value for loss in losses for value in (loss.answer, loss.paraphrase))]
    if not all(map(math.isfinite, finite)) or any(
        math.isnan(value) for loss in losses for value in loss.perturbed
    ):
        raise ValueError("a number is infinite or NaN")


def _of_authors(document: Mapping[str, Any]) -> TofuResults:
    def rows(name: str) -> TofuSet:
        log = document[_AUTHORS_LOGS[name]]
        keys = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
        order = sorted(log["avg_gt_loss"], key=int)
        columns = ([log[key][row] for row in order] for key in keys)
        texts = log.get("generated_text")
        return _rows(*columns, asked=[texts[row][0] for row in order] if texts else None)

    return TofuResults({name: rows(name) for name in _AUTHORS_LOGS}, "official")


def _of_open_unlearning(document: Mapping[str, Any]) -> TofuResults:
    def rows(name: str) -> TofuSet:
        asked = f"{PREFIXES[name]}_Q_A"
        answer = column(document, f"{asked}_Prob", "avg_loss")
        return _rows(
            answer,
            column(document, f"{asked}_PARA_Prob", "avg_loss") if name in AUTHOR_SETS else answer,
            column(document, f"{asked}_PERT_Prob", "avg_loss"),
            column(document, f"{asked}_ROUGE", "rougeL_recall"),
            asked=column_if_there(document, f"{asked}_ROUGE", "input"),
            **(of_forgotten if name == "forget" else {}),
        )

    of_forgotten = {
        "paraphrase_rouge": column_if_there(document, "forget_Q_A_PARA_ROUGE", "rougeL_recall"),
        "exact_memorization": column_if_there(document, "exact_memorization", "score"),
        "extraction_strength": column_if_there(document, "extraction_strength", "score"),
    }
    missing = ""
    try:
        sets = {name: rows(name) for name in PREFIXES}
    except KeyError as error:
        missing = str(error)
        # Enough for the forget quality of another model: losses that have the ratios.
        ratios = np.array(column(document, "forget_truth_ratio", "score"), dtype=np.float64)
        nothing = [0.0] * len(ratios)
        with np.errstate(divide="ignore"):
            wrong = (-np.log(ratios)).tolist()
        asked = column_if_there(document, "forget_Q_A_ROUGE", "input")
        sets = {"forget": _rows(nothing, nothing, wrong, nothing, asked=asked)}
    aucs, fluency = attack_aucs(document), aggregate(document, "forget_Q_A_gibberish")
    return TofuResults(
        sets, "official", EPSILON, holdout=aucs or None, fluency=fluency, missing=missing
    )


def _rows(
    answer: Sequence[_Numbers],
    paraphrase: Sequence[_Numbers],
    perturbed: Sequence[_Numbers],
    rouge: Sequence[_Numbers],
    *,
    asked: Sequence[str] | None = None,
    paraphrase_rouge: Sequence[_Numbers] | None = None,
    exact_memorization: Sequence[float | None] | None = None,
    extraction_strength: Sequence[float | None] | None = None,
) -> TofuSet:
    """Rows from their columns; one number may stand for a list of one, and the other way round."""
    unknown = [None] * len(answer)
    columns = (
        *(answer, paraphrase, perturbed, rouge),
        *(column or unknown for column in (asked, paraphrase_rouge)),
        *(column or unknown for column in (exact_memorization, extraction_strength)),
    )
    return TofuSet(
        tuple(
            TofuRow(
                question=None if question is None else str(question),
                rouge=_mean(rouge),
                paraphrase_rouge=None if recall is None else _mean(recall),
                exact_memorization=exact,
                extraction_strength=strength,
                loss=PerAnswer(
                    _mean(true), _mean(other), tuple(np.atleast_1d(_floats(wrong)).tolist())
                ),
            )
            for true, other, wrong, rouge, question, recall, exact, strength in zip(
                *columns, strict=True
            )
        )
    )


def _floats(numbers: _Numbers) -> np.ndarray:
    return np.array(numbers, dtype=np.float64)


def _mean(numbers: _Numbers) -> float:
    return float(_floats(numbers).mean())


def check_comparable(
    retain: TofuResults, results: TofuResults, path: Path, model: str = "retain-only"
) -> None:
    """Whether the forget quality may be computed from two models' results.

    Args:
        retain: the retain-only model's, from the file ``path``, or another ``model``'s.
        results: of the model that is evaluated; of the forget rows the ``question`` is enough.

    Raises:
        WagleError: they are of other questions, sets or protocols.
    """
    protocols = (retain.protocol, results.protocol)
    if None not in protocols and protocols[0] != protocols[1]:
        raise WagleError(
            f"{path} has results of evaluation.protocol {protocols[0]}, but this is "
            f"{protocols[1]}; evaluate the {model} model with the same protocol"
        )
    asked = [[row.question for row in of.sets["forget"].rows] for of in (retain, results)]
    counts = [len(questions) for questions in asked]
    names = [of.data_sets.get("forget") for of in (retain, results)]
    wrong = None
    if None not in asked[0] and None not in asked[1]:
        shared = shared_questions(*asked)
        if not shared == counts[0] == counts[1]:
            wrong = f"{shared} are the same"
    elif counts[0] != counts[1]:
        wrong = "which ones is not in the file"
    if wrong is None and None not in names and names[0] != names[1]:
        wrong = f"the sets are {names[0]} and {names[1]}"
    if wrong is not None:
        raise WagleError(
            f"{path} has results of other forget questions: it asks {counts[0]}, this evaluation "
            f"{counts[1]}, and {wrong}; give results of the {model} model with the same forget "
            "set and evaluation.limit"
        )


def shared_questions(left: Iterable[str | None], right: Iterable[str | None]) -> int:
    """How many texts of the right are among the left, either perhaps as a part of a prompt."""
    keys, others = (["".join(str(text).split()) for text in side] for side in (right, left))
    among = set(others)
    return sum(key in among or any(key in o or o in key for o in others) for key in keys)
