"""What a benchmark is: its numbers and what they mean, its data sets, and what measures them.

A benchmark is one object in one file; docs/extending.md shows a small one, whole. The file is read
wherever its numbers are shown, so what it takes to measure them is imported within its functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from wagle.config import UnlearnConfig
    from wagle.metrics.resampling import Documents, Recount
    from wagle.model.evaluation_context import EvaluationContext


class Range(NamedTuple):
    """Between which values a number is read as it is, and what it means to lie outside.

    Attributes:
        below, above: what it means, as the end of a sentence.
    """

    lowest: float
    highest: float
    below: str
    above: str


@dataclass(frozen=True)
class Metric:
    """A number of a run.

    Attributes:
        key: its name in ``results.json``. With ``{}`` it stands for a family, such as ``lm_eval {}
            acc`` with a member for each task; the meaning may name the member with ``{0}``.
        meaning: what it says, in one sentence.
        better: 1 where more is better, -1 where less is, 0 where neither is.
        group: heading above several columns of a table; empty where there is none.
        title: heading of its column; not given: what the key has after the group.
        digits: after the decimal point, in tables.
        largest: what it cannot exceed, where there is such a number.
        usual: outside of which a value is remarked upon.
    """

    key: str
    meaning: str
    better: int = 1
    group: str = ""
    title: str = ""
    digits: int = 3
    largest: float | None = None
    usual: Range | None = None

    @property
    def heading(self) -> str:
        """Of its column, below the group."""
        return self.title or self.key.removeprefix(self.group).strip()

    @property
    def name(self) -> str:
        """Group and heading, for formats with one line of headings."""
        return f"{self.group} {self.heading}".strip()

    @property
    def direction(self) -> str:
        """In words, for axes; empty where neither more nor less is better."""
        return {1: "larger is better", -1: "smaller is better", 0: ""}[self.better]

    def remark(self, value: float) -> str:
        """What has to be known of this value, in a sentence; empty where nothing has."""
        if self.usual is None or self.usual.lowest <= value <= self.usual.highest:
            return ""
        meaning = self.usual.below if value < self.usual.lowest else self.usual.above
        return f"{self.key} is {value:.3f}: {meaning}"

    def of(self, *names: str) -> Metric:
        """The member of a family."""
        return replace(self, key=self.key.format(*names), meaning=self.meaning.format(*names))

    def called(self, key: str) -> Metric | None:
        """This metric where that is its key, and of a family the member that has it."""
        if "{}" not in self.key:
            return self if key == self.key else None
        pattern = re.escape(self.key).replace(r"\{\}", r"(\S+)")
        match = re.fullmatch(re.sub(r"\(\\S\+\)$", "(.+)", pattern), key)
        return self.of(*match.groups()) if match else None


class Headline(NamedTuple):
    """The two numbers that sum an unlearned model up."""

    forgetting: Metric
    utility: Metric


class Measure(NamedTuple):
    """A number that each answer has.

    Attributes:
        key: of the row in the run's document.
        id: for the page's script.
        meaning: what it is, as the end of a sentence.
    """

    key: str
    id: str
    title: str
    meaning: str


ROUGE_OF_ANSWER = Measure(
    "rougeL_score",
    "rouge",
    "ROUGE-L",
    "how much of the true answer’s wording an answer contains, from 0 to 1",
)


@dataclass(frozen=True)
class Answers:
    """Where a run's documents have what the models were asked and what they said.

    Each row has ``question`` and ``generated``; ``answer`` where there is a true one, and ``acc``
    where the answer is judged right (1) or wrong (0).

    Attributes:
        sets: the sets of questions by their name in the documents, with their titles.
        measures: of each answer.
        documents: by set, the file of the run folder that it is in; whole, or under its name.
    """

    sets: Mapping[str, str] = field(default_factory=dict)
    measures: Sequence[Measure] = ()
    documents: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def within(cls, document: str, sets: Mapping[str, str], *measures: Measure) -> Answers:
        """All sets in one document."""
        return cls(sets, measures, dict.fromkeys(sets, document))


Settings = Mapping[str, Any]
"""A configuration: values by ``section.key``."""
Rows = Sequence[Mapping[str, Any]]
Loader = Callable[..., Rows]
"""Gives the rows of a data set by its name; some need a second argument, ``retain``, for those of
their rows that are to be retained."""
Numbers = Mapping[Metric, float | str]
"""What was measured; ``"inf"`` stands for a number that JSON cannot express."""
Part = Callable[["EvaluationContext"], Numbers]
"""Saves its documents through the context and returns its numbers."""


@dataclass(frozen=True, eq=False)
class Benchmark:
    """What a value of ``unlearn.task_name`` stands for.

    Attributes:
        name: of the task and of its table.
        caption: of its table.
        metrics: every number that it can have, beside those of ``evaluation.tasks``.
        parts: what measures them, by name, in the order of the results. Each is kept at once; one
            that fails does not touch the others.
        columns: the numbers of its table, from left to right, which the report shows first; not
            given: all.
        headline: forgetting and utility, for the report's summary and the figures.
        summary: the numbers of tables that vary the ratio or μ; not given: the headline, or else
            the columns.
        sets: the data sets that it asks about, by their names in its documents.
        rows: the rows of these sets that are asked, by the same names; not given: all.
        check: raises what is wrong with the settings or those rows, before anything is trained.
        needs_questions: whether it asks the forget set's own questions, so that running text is
            refused.
        longest: tokens of a text that the model may have to read or write for it; 0: they follow
            from the model.
        continued: tokens of a prompt with its greedy answer at most, from those of the longest text
            that is learned; not given: as many.
        lm_eval_roles: the keys of ``evaluation.task_names`` that it uses.
        is_default: whether it fits values that name no evaluation.
        answers: where its documents have the models' answers, for the report.
        variant: the benchmark as certain settings change it; not given: they never do.
        recount: how its numbers follow from the rows in a run's documents, for intervals; not
            given: they have none.
    """

    name: str
    caption: str
    metrics: tuple[Metric, ...]
    parts: Mapping[str, Part]
    columns: tuple[Metric, ...] = ()
    headline: Headline | None = None
    summary: tuple[Metric, ...] = ()
    sets: Callable[[UnlearnConfig], Mapping[str, str]] = lambda config: {}
    rows: Callable[[UnlearnConfig, Loader], dict[str, Rows]] | None = None
    check: Callable[[UnlearnConfig, Mapping[str, Rows]], None] = lambda config, rows: None
    needs_questions: bool = False
    longest: int = 0
    continued: Callable[[int], int] = lambda text: text
    lm_eval_roles: tuple[str, ...] = ()
    is_default: Callable[[Settings], bool] = lambda values: False
    answers: Answers = Answers()
    variant: Callable[[Settings], Benchmark] | None = None
    recount: Callable[[Documents, Settings], Recount] | None = None

    def __post_init__(self) -> None:
        columns = self.columns or self.metrics
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "summary", self.summary or tuple(self.headline or columns))


def forgets(values: Settings, sets: str, file: str | None = None) -> bool:
    """Whether the forget set is one of these, and the evaluation's file is where data is read from.

    Args:
        sets: regular expression of their names.
        file: below ``dataset.data_dir``, where that is set; ``None``: nothing more is needed.
    """
    if not re.fullmatch(sets, values["dataset.forget_dataset_name"] or ""):
        return False
    folder = values["dataset.data_dir"]
    return not (folder and file) or Path(folder, file).is_file()


NO_BENCHMARK = Benchmark("none", "No evaluation", (), {})
