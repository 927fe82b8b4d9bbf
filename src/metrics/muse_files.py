"""MUSE's results in files: those of a run, and open-unlearning's ``MUSE_EVAL.json``.

The latter has the form of :mod:`wagle.metrics.evaluation_log`, and is written as it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wagle.errors import WagleError
from wagle.loggers.run_folder import CONFIG, RESULTS, read_result_file
from wagle.metrics.averages import mean
from wagle.metrics.benchmark import Metric
from wagle.metrics.evaluation_log import (
    Log,
    aggregate,
    answer_row,
    attack_aucs,
    attack_metrics,
    attacked_rows,
    column,
    column_if_there,
    logged,
    score_rows,
)
from wagle.metrics.muse import (
    ATTACKED_ROWS,
    KNOWLEDGE,
    KNOWLEDGE_ROWS,
    STRENGTH,
    VERBATIM,
    VERBATIM_ROWS,
)
from wagle.metrics.privacy import (
    MIDDLE,
    PRIVLEAK,
    PRIVLEAK_OF_HALF,
    privacy_numbers,
    privleak,
)
from wagle.metrics.tofu_files import shared_questions

_Rows = Sequence[Mapping[str, Any]]
_ROUGE = {
    "verbmem": ("forget_verbmem_ROUGE", VERBATIM),
    **{f"knowmem_{r}": (f"{r}_knowmem_ROUGE", metric) for r, metric in KNOWLEDGE.items()},
}
"""Sets in a run's documents: open-unlearning's name of their metric, and ours."""
_F1, _STRENGTH = "rougeL_score", "extraction_strength"
_ASKED = "forget_knowmem_ROUGE", "input"
_WRONG_FORM = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class MuseResults:
    """What was measured of a model.

    Attributes:
        rows: by set, as in a run's documents.
        attacked: AUCs of attacks by column (``AUC``), and by ``forget`` and ``holdout`` rows with
            their scores, where they are known: as in ``privleak.json``.
        privleak: relative to a retrained model, as it was found; ``None``: to nothing but 0.5.
        stems: whether ROUGE compares stems, as open-unlearning does.
    """

    rows: Mapping[str, _Rows]
    attacked: Mapping[str, Any]
    privleak: float | None
    stems: bool = True

    @property
    def questions(self) -> list[str]:
        """About the text to forget, each perhaps within a prompt."""
        return [row["question"] for row in self.rows["knowmem_forget"]]

    def numbers(self, retained: Mapping[str, float] | None = None) -> dict[Metric, float]:
        """Those of ``results.json``.

        Args:
            retained: AUCs of a retrained model, by column; not given: ``privleak`` as found.
        """
        numbers = {m: 100 * _mean(self.rows[name], _F1) for name, (_, m) in _ROUGE.items()}
        if _STRENGTH in self.rows["verbmem"][0]:
            numbers[STRENGTH] = _mean(self.rows["verbmem"], _STRENGTH)
        numbers |= privacy_numbers(self.attacked["AUC"], retained)
        if self.privleak is not None and not retained:
            numbers.pop(PRIVLEAK_OF_HALF, None)
            numbers[PRIVLEAK] = self.privleak
        return numbers


def _mean(rows: _Rows, key: str) -> float:
    return mean(row[key] for row in rows)


def load_results(path: Path) -> MuseResults:
    """Read the folder of a run, or a ``MUSE_EVAL.json``.

    Raises:
        WagleError: it is missing, or neither of them.
    """
    try:
        return _of_run(path) if path.is_dir() else _of_log(read_result_file(path))
    except _WRONG_FORM as error:
        raise WagleError(
            f"{path} is no folder of a run of unlearn.task_name muse and no MUSE_EVAL.json of "
            f"open-unlearning, or lacks a part ({type(error).__name__}: {error})"
        ) from error


def _of_run(folder: Path) -> MuseResults:
    names = (VERBATIM_ROWS, KNOWLEDGE_ROWS, ATTACKED_ROWS, RESULTS, CONFIG)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise WagleError(
            f"{folder} has no {', '.join(missing)}: it is no folder of a finished run of "
            "unlearn.task_name muse, nor of tofu"
        )
    verbatim, knowledge, attacked, numbers, config = (read_result_file(folder / n) for n in names)
    return MuseResults(
        {name: (verbatim | knowledge)[name]["rows"] for name in _ROUGE},
        attacked,
        numbers.get(PRIVLEAK.key),
        config["evaluation"]["rouge_stems"],
    )


def _of_log(log: Mapping[str, Any]) -> MuseResults:
    rows = {}
    for name, (title, _) in _ROUGE.items():
        columns = [column(log, title, key) for key in ("input", "ground_truth", "generation")]
        rows[name] = [
            {"question": asked, "answer": answer, "generated": text, _F1: score}
            for asked, answer, text, score in zip(
                *columns, column(log, title, "rougeL_f1"), strict=True
            )
        ]
    if (strengths := column_if_there(log, _STRENGTH, "score")) is not None:
        rows["verbmem"] = [
            {**row, _STRENGTH: strength}
            for row, strength in zip(rows["verbmem"], strengths, strict=True)
        ]
    aucs, found = attack_aucs(log), aggregate(log, PRIVLEAK.key)
    if found is not None and MIDDLE in aucs:
        found = None if math.isclose(found, privleak(aucs[MIDDLE], 0.5), abs_tol=1e-9) else found
    return MuseResults(rows, {"AUC": aucs, **attacked_rows(log)}, found)


def evaluation_log(results: MuseResults, retained: Mapping[str, float] | None = None) -> Log:
    """What ``MUSE_EVAL.json`` holds, as far as the results have it.

    ``input`` of an answer to a question is the question without the examples before it.

    Args:
        results: with ROUGE of stems.
        retained: as for :meth:`MuseResults.numbers`.
    """
    numbers, log = results.numbers(retained), {}
    for name, (title, _) in _ROUGE.items():
        rows = [
            answer_row(row["question"], row["answer"], row["generated"], rougeL_f1=row[_F1])
            for row in results.rows[name]
        ]
        log[title] = logged(_mean(results.rows[name], _F1), rows)
    if STRENGTH in numbers:
        scores = score_rows([row[_STRENGTH] for row in results.rows["verbmem"]])
        log[_STRENGTH] = logged(numbers[STRENGTH], scores)
    log |= attack_metrics(results.attacked["AUC"], results.attacked)
    log[PRIVLEAK.key] = logged(numbers.get(PRIVLEAK, numbers.get(PRIVLEAK_OF_HALF)))
    return dict(sorted(log.items()))


def retained_aucs(path: Path, asked: Sequence[str]) -> dict[str, float]:
    """AUCs of attacks on a retrained model, by column.

    Args:
        path: the folder of a run of it, that run's ``privleak.json``, or a ``MUSE_EVAL.json``.
        asked: what is asked here about the text to forget.

    Raises:
        WagleError: it is none of these, or of other questions.
    """
    path = path / ATTACKED_ROWS if path.is_dir() else path
    document, beside = read_result_file(path), path.with_name(KNOWLEDGE_ROWS)
    prompts = None
    try:
        if "AUC" not in document:
            aucs, prompts = attack_aucs(document), column(document, *_ASKED)
        else:
            aucs = {name: float(auc) for name, auc in document["AUC"].items()}
            if beside.is_file():
                rows = read_result_file(beside)["knowmem_forget"]["rows"]
                prompts = [row["question"] for row in rows]
        aucs[MIDDLE]
    except _WRONG_FORM as error:
        raise WagleError(
            f"{path} is no privleak.json of a run of unlearn.task_name muse and no MUSE_EVAL.json "
            "of open-unlearning; evaluate the retain-only model so"
        ) from error
    if prompts is not None:
        shared = shared_questions(prompts, asked)
        if not shared == len(asked) == len(prompts):
            raise WagleError(
                f"{path} has {len(prompts)} questions about the text to forget, this evaluation "
                f"{len(asked)}, and {shared} are the same; give results of a model retrained "
                "without the text that is forgotten here, with the same evaluation.limit"
            )
    return aucs
