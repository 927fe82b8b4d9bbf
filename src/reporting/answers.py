"""What the models were asked and what they said, for the report."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from wagle.errors import WagleError
from wagle.metrics.benchmark import Answers, Measure
from wagle.reporting.runs import Run


class QuestionKey(NamedTuple):
    """Which answer: a set's name, and the question in it."""

    set: str
    question: str


class Verdict(NamedTuple):
    """Whether an answer counts as correct, and what decided it.

    Attributes:
        paraphrase, answer: the question in other words and the model's answer to it, where that is
            what was judged; ``None`` where it was the answer to the question itself.
    """

    correct: bool
    paraphrase: str | None
    answer: str | None


class Answer(NamedTuple):
    """What a model said.

    Attributes:
        parts: its words, each with whether the true answer, if there is one, lacks it.
        values: (value, change since the original, where there is one) of each measure.
        verdict: where answers are judged.
    """

    parts: list[tuple[str, bool]]
    values: list[tuple[float, float | None]]
    verdict: Verdict | None


class Question(NamedTuple):
    """A question with the true answer, where there is one, and those of the models."""

    set: str
    question: str
    answer: str | None
    original: Answer | None
    answers: list[Answer | None]


def rows_of(run: Run | None, asked: Answers) -> dict[QuestionKey, Mapping[str, Any]]:
    """The rows that a run was asked, in the order of its documents; none of another task's run."""
    rows = asked_rows(run, asked) if run else ()
    return {QuestionKey(name, row["question"]): row for name, row in rows}


def asked_rows(run: Run, asked: Answers) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """As :func:`rows_of`, one by one, with the set of each; a question may come several times."""
    for name, file in asked.documents.items():
        document = run.document(file)
        part = document if document is None or "rows" in document else document.get(name)
        for row in part["rows"] if part else ():
            if "question" in row:  # running text has none, and no answer
                yield name, row


def questions_of(runs: Sequence[Run], original: Run | None, asked: Answers) -> list[Question]:
    """Every question that was asked of a run (of the original, where it is alone)."""
    before = rows_of(original, asked)
    tables = [rows_of(run, asked) for run in runs]
    keys = dict.fromkeys(key for table in (tables if runs else [before]) for key in table)
    if original and before and keys and not before.keys() & keys.keys():
        raise WagleError(
            f"the original's run in {original.folder} was asked none of the questions that the "
            "other runs were asked; evaluate it on the same data sets"
        )
    questions = []
    for key in keys:
        old = before.get(key)
        rows = [table.get(key) for table in tables]
        true = next(row.get("answer") for row in (*rows, old) if row)
        answers = [_answer(row, old, asked.measures) if row else None for row in rows]
        first = _answer(old, None, asked.measures) if old else None
        questions.append(Question(*key, true, first, answers))
    return questions


def _answer(
    row: Mapping[str, Any], old: Mapping[str, Any] | None, measures: Sequence[Measure]
) -> Answer:
    said, true = row["generated"], row.get("answer")
    parts = _mark_wrong(said, true) if true is not None else [(said, False)] if said.strip() else []
    keys = [measure.key for measure in measures]
    values = [(row[key], row[key] - old[key] if old else None) for key in keys]
    return Answer(parts, values, _verdict(row))


def _verdict(row: Mapping[str, Any]) -> Verdict | None:
    if "acc" not in row:
        return None
    judged = row.get("generated_paraphrase")
    return Verdict(bool(row["acc"]), row.get("paraphrased_question"), judged)


def _mark_wrong(text: str, true: str) -> list[tuple[str, bool]]:
    """Split a text into stretches of words, each with whether the true answer lacks it there."""
    words = text.split()
    matcher = difflib.SequenceMatcher(
        None, [_plain(word) for word in words], [_plain(word) for word in true.split()], False
    )
    wrong = [True] * len(words)
    for block in matcher.get_matching_blocks():
        wrong[block.a : block.a + block.size] = [False] * block.size
    stretches = itertools.groupby(zip(words, wrong, strict=True), key=lambda pair: pair[1])
    return [(" ".join(word for word, _ in pairs), is_wrong) for is_wrong, pairs in stretches]


def _plain(word: str) -> str:
    return re.sub(r"\W", "", word.lower()) or word.strip()
