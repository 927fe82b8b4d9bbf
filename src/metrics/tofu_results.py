"""Results of TOFU in files: a ``tofu.json`` of ours, and the logs of others.

Read are the TOFU authors' ``eval_log_aggregated.json`` and open-unlearning's ``TOFU_EVAL.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wagle.errors import WagleError
from wagle.loggers.run_folder import read_result_file
from wagle.metrics.tofu_benchmark import TITLES
from wagle.metrics.tofu_official import EPSILON, SetLosses

_AUTHORS_LOGS = {
    "real_author": "eval_real_author_wo_options.json",
    "world_fact": "eval_real_world_wo_options.json",
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
}
_PREFIXES = {"real_author": "ra", "world_fact": "wf", "retain": "retain", "forget": "forget"}
_WRONG_FORM = (KeyError, TypeError, ValueError, AttributeError, IndexError)


@dataclass(frozen=True)
class TofuResults:
    """What a file of results holds.

    Attributes:
        sets: losses by the keys of ``TITLES``; of the files of others perhaps ``forget`` alone.
        protocol: ``evaluation.protocol``, where it is known.
        forget_set: the name of the set of forget questions, where it is known.
        asked: the forget questions, or the prompts that they are in, where they are known.
        missing: what the file lacks for the other sets.
    """

    sets: dict[str, SetLosses]
    protocol: str | None = None
    forget_set: str | None = None
    asked: tuple[str, ...] | None = None
    missing: str = ""


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
        return _of_authors(document)
    if "forget" in document:
        return _ours(document)
    return _of_open_unlearning(document)


def _ours(document: Mapping[str, Any]) -> TofuResults:
    protocol = document.get("protocol")
    epsilon = EPSILON if protocol == "official" else 0.0

    def losses(rows: Sequence[Mapping[str, Any]]) -> SetLosses:
        columns = ([row["loss"][key] for row in rows] for key in _LOSSES)
        rouge = [row["rougeL_score"] for row in rows]
        # Other protocols measure memorisation over other tokens.
        keys = _MEMORIZATION if protocol == "official" else ()
        return _set_losses(*columns, rouge, epsilon, *([row[key] for row in rows] for key in keys))

    rows = document["forget"]["rows"]
    return TofuResults(
        {name: losses(document[name]["rows"]) for name in TITLES},
        protocol,
        document.get("sets", {}).get("forget"),
        tuple(str(row["question"]) for row in rows) if "question" in rows[0] else None,
    )


_LOSSES = ("answer", "paraphrase", "perturbed")
_MEMORIZATION = ("exact_memorization", "extraction_strength")


def _of_authors(document: Mapping[str, Any]) -> TofuResults:
    def losses(log: Mapping[str, Mapping[str, Any]]) -> SetLosses:
        keys = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
        order = sorted(log["avg_gt_loss"], key=int)
        return _set_losses(*([log[key][row] for row in order] for key in keys))

    texts = document[_AUTHORS_LOGS["forget"]].get("generated_text")
    return TofuResults(
        {name: losses(document[log]) for name, log in _AUTHORS_LOGS.items()},
        "official",
        asked=tuple(str(texts[row][0]) for row in sorted(texts, key=int)) if texts else None,
    )


def _of_open_unlearning(document: Mapping[str, Any]) -> TofuResults:
    def column(metric: str, key: str) -> list[Any]:
        rows = document[metric]["value_by_index"]
        return [rows[row][key] for row in sorted(rows, key=int)]

    def losses(name: str) -> SetLosses:
        prefix = _PREFIXES[name]
        answer = column(f"{prefix}_Q_A_Prob", "avg_loss")
        is_author = name in ("forget", "retain")
        return _set_losses(
            answer,
            column(f"{prefix}_Q_A_PARA_Prob", "avg_loss") if is_author else answer,
            column(f"{prefix}_Q_A_PERT_Prob", "avg_loss"),
            column(f"{prefix}_Q_A_ROUGE", "rougeL_recall"),
            EPSILON,
            *(
                column(metric, "score") if name == "forget" and metric in document else ()
                for metric in _MEMORIZATION
            ),
        )

    missing = ""
    try:
        sets = {name: losses(name) for name in TITLES}
    except KeyError as error:
        missing = str(error)
        # Enough for the forget quality of another model: losses that have the ratios.
        ratios = np.array(column("forget_truth_ratio", "score"), dtype=np.float64)
        nothing = np.zeros_like(ratios)
        with np.errstate(divide="ignore"):
            sets = {"forget": _set_losses(nothing, nothing, -np.log(ratios), nothing)}
    try:
        asked = tuple(map(str, column("forget_Q_A_ROUGE", "input")))
    except KeyError:
        asked = None
    return TofuResults(sets, "official", asked=asked, missing=missing)


def _set_losses(
    answer: Sequence[float],
    paraphrase: Sequence[float],
    perturbed: Sequence[float | Sequence[float]],
    rouge: Sequence[float],
    epsilon: float = 0.0,
    *memorized: Sequence[float | None],
) -> SetLosses:
    """Checked arrays; one number may stand for a list of one, and the other way round."""
    columns = [
        np.array([np.mean(np.array(value, dtype=np.float64)) for value in column])
        for column in (answer, paraphrase, rouge)
    ]
    wrong = [np.atleast_1d(np.array(losses, dtype=np.float64)) for losses in perturbed]
    if not len(answer) or any(len(column) != len(answer) for column in (*columns, wrong)):
        raise ValueError("a set without rows, or rows without some of the numbers")
    if not all(losses.ndim == 1 and len(losses) for losses in wrong):
        raise ValueError("a row without losses of wrong answers")
    if not all(np.isfinite(column).all() for column in columns) or any(
        np.isnan(losses).any() for losses in wrong
    ):
        raise ValueError("a number is infinite or NaN")
    known = ([value for value in column if value is not None] for column in memorized)
    return SetLosses(columns[0], columns[1], wrong, columns[2], epsilon, *known)


def check_comparable(retain: TofuResults, results: TofuResults, path: Path) -> None:
    """Whether the forget quality may be computed from two models' results.

    Args:
        retain: the retain-only model's, from the file ``path``.
        results: of the model that is evaluated; ``sets`` may lack losses if there is ``asked``.

    Raises:
        WagleError: they are of other questions, sets or protocols.
    """
    protocols = (retain.protocol, results.protocol)
    if None not in protocols and protocols[0] != protocols[1]:
        raise WagleError(
            f"{path} has results of evaluation.protocol {protocols[0]}, but this is "
            f"{protocols[1]}; evaluate the retain-only model with the same protocol"
        )
    counts = [_row_count(either) for either in (retain, results)]
    names = (retain.forget_set, results.forget_set)
    wrong = None
    if retain.asked and results.asked:
        shared = _shared(retain.asked, results.asked)
        if not shared == counts[0] == counts[1]:
            wrong = f"{shared} are the same"
    elif counts[0] != counts[1]:
        wrong = "which ones is not in the file"
    if wrong is None and None not in names and names[0] != names[1]:
        wrong = f"the sets are {names[0]} and {names[1]}"
    if wrong is not None:
        raise WagleError(
            f"{path} has results of other forget questions: it asks {counts[0]}, this evaluation "
            f"{counts[1]}, and {wrong}; give results of the retain-only model with the same "
            "forget set and evaluation.limit"
        )


def _row_count(results: TofuResults) -> int:
    return len(results.asked if results.asked else results.sets["forget"].answer)


def _shared(left: Sequence[str], right: Sequence[str]) -> int:
    """How many texts of the right are among the left, either perhaps as a part of a prompt."""
    keys, others = (["".join(text.split()) for text in side] for side in (right, left))
    among = set(others)
    return sum(key in among or any(key in o or o in key for o in others) for key in keys)
