"""What an evaluation of TOFU finds, typed: one row, one set, one evaluation; and tofu.json.

A question goes through an evaluation as one :class:`TofuRow` that is filled in stage by stage, and
all numbers are computed from these rows. ``None`` is what a protocol does not measure, or has not
measured yet, and does not stand in documents::

    TofuRow(question="Who?", exact_memorization=0.25, loss=PerAnswer(0.5, 0.75, (2.0, 3.0)))
    {"question": "Who?", "truth_prob": 0.607, "exact_memorization": 0.25,
     "loss": {"answer": 0.5, "paraphrase": 0.75, "perturbed": [2.0, 3.0]}}
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any, Generic, TypeVar

import numpy as np

from wagle.metrics.views import VIEWS

AUTHOR_SETS = ("forget", "retain")
FACT_SETS = ("real_author", "world_fact")
EPSILON = 1e-10
"""What open-unlearning, and with it the official protocol, adds to every denominator."""

Value = TypeVar("Value")
Other = TypeVar("Other")
Sources = Mapping[str, Sequence[Mapping[str, Any]]]
"""By set, rows of data: ``question``, ``answer``, ``perturbed_answer`` and so on."""


@dataclass(frozen=True)
class PerAnswer(Generic[Value]):
    """One value for each of the answers that a question is scored with.

    Attributes:
        answer: of the true one.
        paraphrase: of the true one in other words; of facts, which have none, as ``answer``.
        perturbed: of the wrong ones.
    """

    answer: Value
    paraphrase: Value
    perturbed: tuple[Value, ...]

    def map(self, function: Callable[[Value], Other]) -> PerAnswer[Other]:
        """What a function makes of each, in the order of the attributes."""
        answer, paraphrase = function(self.answer), function(self.paraphrase)
        return PerAnswer(answer, paraphrase, tuple(map(function, self.perturbed)))


@dataclass(frozen=True)
class TofuRow:
    """What a model was asked and what came of it.

    Attributes:
        question, answer: as the data has them; of the logs of others, the question may be a prompt.
        reference: what ROUGE compares with, where that is not the answer itself.
        generated: the greedy answer.
        truth_ratio: the paper's (:func:`wagle.metrics.tofu.truth_ratio`).
        rouge: ROUGE-L recall of the greedy answer, 0 to 1.
        paraphrase_rouge: the same, compared with the true answer in other words.
        acc: whether the greedy answer is right, 0 or 1.
        exact_memorization, extraction_strength: of the true answer, 0 to 1; the former is ``None``
            as well where nothing is left to be memorised.
        loss: token-mean negative log-likelihoods, in nats.
        tokens: how many tokens each is the mean of.
        paraphrased_question, generated_paraphrase: the question in other words, and the greedy
            answer to it.
        attacks: scores of membership inference by the names of the attacks.
    """

    question: str | None = None
    answer: str | None = None
    reference: str | None = None
    generated: str | None = None
    truth_ratio: float | None = None
    rouge: float | None = None
    paraphrase_rouge: float | None = None
    acc: float | None = None
    exact_memorization: float | None = None
    extraction_strength: float | None = None
    loss: PerAnswer[float] | None = None
    tokens: PerAnswer[int] | None = None
    paraphrased_question: str | None = None
    generated_paraphrase: str | None = None
    attacks: Mapping[str, float] | None = None

    @property
    def probability(self) -> float | None:
        """p = exp(−loss) of the true answer."""
        return None if self.loss is None else float(np.exp(-self.loss.answer))


@dataclass(frozen=True)
class TofuSet:
    """The rows of one set of questions, or of all while they are read together."""

    rows: tuple[TofuRow, ...]

    def known(self, read: Callable[[TofuRow], Value | None]) -> list[Value]:
        """What the rows have that have it."""
        return [value for value in map(read, self.rows) if value is not None]

    def all(self, read: Callable[[TofuRow], Value | None]) -> list[Value]:
        """What each row must have.

        Raises:
            ValueError: one has not.
        """
        values = self.known(read)
        if len(values) < len(self.rows):
            raise ValueError("rows without some of the numbers")
        return values

    def mean(self, read: Callable[[TofuRow], float | None]) -> float:
        """Plain mean of a number that every row has."""
        return statistics.fmean(self.all(read))


Sets = dict[str, TofuSet]
Keep = Callable[[str, Callable[[], TofuSet]], TofuSet]
"""Measures what has this name, or gives what an earlier attempt at it has kept."""


@dataclass(frozen=True)
class TofuResults:
    """An evaluation.

    Attributes:
        sets: by role, ``AUTHOR_SETS`` and ``FACT_SETS``; of the files of others perhaps ``forget``
            alone.
        protocol: ``evaluation.protocol``, where it is known.
        epsilon: what official scores add to denominators: ``EPSILON``, or 0 as in the TOFU authors'
            own code.
        data_sets: names of the data sets by role, where they are known.
        word_tokenizer: of ROUGE.
        forget_quality, mia: the paper's forget quality, and AUCs by the names of the attacks.
        holdout: AUCs against held-out rows (:mod:`wagle.metrics.privacy`).
        fluency: of the answers to the forget questions, 0 to 1.
        missing: what the file that they come from lacks for the other sets.
        views: the forget rows asked otherwise, by view (:mod:`wagle.metrics.views`).
    """

    sets: Sets
    protocol: str | None = None
    epsilon: float = 0.0
    data_sets: Mapping[str, str] = field(default_factory=dict)
    word_tokenizer: str | None = None
    forget_quality: float | None = None
    mia: Mapping[str, float] | None = None
    holdout: Mapping[str, float] | None = None
    fluency: float | None = None
    missing: str = ""
    views: Sets = field(default_factory=dict)


def answers_of(source: Mapping[str, Any], role: str) -> PerAnswer[str]:
    """The answers that the question of a row of data is scored with."""
    paraphrase = source["paraphrased_answer" if role in AUTHOR_SETS else "answer"]
    return PerAnswer(source["answer"], paraphrase, tuple(source["perturbed_answer"]))


def measure_in_stages(
    sets: Sources,
    keep: Keep,
    *,
    score: Callable[[], Iterable[TofuRow]],
    answer: Callable[[TofuSet], Iterable[TofuRow]],
    judge: Callable[[str, TofuSet], TofuSet],
) -> Sets:
    """Measure the rows of all sets: first all scores, then all answers, then set by set.

    Args:
        keep: what is finished and need not be measured again: ``scores``, ``answers``, and each
            set by its role.
        score: rows of all sets, one set after the other, with what likelihoods tell.
        answer: the same rows with greedy answers.
        judge: a set, after its role, with how its answers are judged.
    """
    scored = keep("scores", lambda: TofuSet(tuple(score())))
    answered = keep("answers", lambda: TofuSet(tuple(answer(scored))))
    rest = iter(answered.rows)
    asked = {role: TofuSet(tuple(islice(rest, len(group)))) for role, group in sets.items()}
    return {role: keep(role, partial(judge, role, rows)) for role, rows in asked.items()}


def keep_nothing(name: str, measure: Callable[[], TofuSet]) -> TofuSet:
    """The :data:`Keep` of an evaluation that begins anew every time."""
    return measure()


# --------------------------------------------------------------------------------- the documents

_NUMBERS: dict[str, Callable[[TofuRow], float | None]] = {
    "truth_ratio": attrgetter("truth_ratio"),
    "truth_prob": attrgetter("probability"),
    "rougeL_score": attrgetter("rouge"),
    "paraphrase_rougeL_score": attrgetter("paraphrase_rouge"),
    "acc": attrgetter("acc"),
    "exact_memorization": attrgetter("exact_memorization"),
    "extraction_strength": attrgetter("extraction_strength"),
}
"""Numbers of a row that a set has the mean of, by their names in documents."""


OF_VIEWS: dict[str, Callable[[TofuRow], float | None]] = {
    "probability": attrgetter("probability"),
    "rougeL_score": attrgetter("rouge"),
    "exact_memorization": attrgetter("exact_memorization"),
    "extraction_strength": attrgetter("extraction_strength"),
    "loss": lambda row: None if row.loss is None else row.loss.answer,
}
"""What a row that is asked otherwise has, by the measures of :mod:`wagle.metrics.views`."""


def to_document(results: TofuResults) -> dict[str, Any]:
    """The content of ``tofu.json``: per set its means and rows, and what is of several sets."""
    document = {
        "sets": dict(results.data_sets) or None,
        "word_tokenizer": results.word_tokenizer,
        "protocol": results.protocol,
        **{name: _set_document(rows) for name, rows in {**results.sets, **results.views}.items()},
        "Forget Quality": results.forget_quality,
        "MIA": results.mia,
        "holdout AUC": results.holdout,
        "fluency": results.fluency,
    }
    return {key: value for key, value in document.items() if value is not None}


def from_document(document: Mapping[str, Any]) -> TofuResults:
    """What :func:`to_document` has written.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: it has not.
    """
    protocol = document.get("protocol")
    return TofuResults(
        {name: rows_from(document[name]["rows"]) for name in (*AUTHOR_SETS, *FACT_SETS)},
        protocol,
        EPSILON if protocol == "official" else 0.0,
        document.get("sets", {}),
        document.get("word_tokenizer"),
        document.get("Forget Quality"),
        document.get("MIA"),
        document.get("holdout AUC"),
        document.get("fluency"),
        views={name: rows_from(document[name]["rows"]) for name in VIEWS if name in document},
    )


def rows_document(rows: TofuSet) -> list[dict[str, Any]]:
    """The rows' part of :func:`to_document`."""
    return [_row_document(row) for row in rows.rows]


def rows_from(documents: Sequence[Mapping[str, Any]]) -> TofuSet:
    """What :func:`rows_document` has written."""
    return TofuSet(tuple(map(_row_from, documents)))


def _set_document(rows: TofuSet) -> dict[str, Any]:
    documents = rows_document(rows)
    columns = {k: rows.known(read) for k, read in _NUMBERS.items() if k in documents[0]}
    means = {key: statistics.fmean(values) if values else None for key, values in columns.items()}
    return {**means, "rows": documents}


def _row_document(row: TofuRow) -> dict[str, Any]:
    document = {
        "question": row.question,
        "answer": row.answer,
        "reference": row.reference,
        "generated": row.generated,
        **{key: read(row) for key, read in _NUMBERS.items()},
        "loss": row.loss and _answers_document(row.loss),
        "tokens": row.tokens and _answers_document(row.tokens),
        "paraphrased_question": row.paraphrased_question,
        "generated_paraphrase": row.generated_paraphrase,
        "MIA": row.attacks,
    }
    # That nothing is left to be memorised is a finding, too.
    found = "exact_memorization" if row.loss else None
    return {key: value for key, value in document.items() if value is not None or key == found}


def _row_from(document: Mapping[str, Any]) -> TofuRow:
    get = document.get
    return TofuRow(
        question=get("question"),
        answer=get("answer"),
        reference=get("reference"),
        generated=get("generated"),
        truth_ratio=get("truth_ratio"),
        rouge=get("rougeL_score"),
        paraphrase_rouge=get("paraphrase_rougeL_score"),
        acc=get("acc"),
        exact_memorization=get("exact_memorization"),
        extraction_strength=get("extraction_strength"),
        loss=_answers_from(get("loss")),
        tokens=_answers_from(get("tokens")),
        paraphrased_question=get("paraphrased_question"),
        generated_paraphrase=get("generated_paraphrase"),
        attacks=get("MIA"),
    )


def _answers_document(values: PerAnswer[Any]) -> dict[str, Any]:
    perturbed = list(values.perturbed)
    return {"answer": values.answer, "paraphrase": values.paraphrase, "perturbed": perturbed}


def _answers_from(document: Mapping[str, Any] | None) -> PerAnswer[Any] | None:
    if document is None:
        return None
    return PerAnswer(document["answer"], document["paraphrase"], tuple(document["perturbed"]))
