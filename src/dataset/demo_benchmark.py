"""The embedded benchmark: invented authors in TOFU's form, made by a deterministic generator.

``python -m wagle.dataset.demo_benchmark`` writes files/data/demo/*.json (JSON lines).

A hundred invented authors have ten facts each, told in long answers to short questions. Every kind
of fact can be asked in three wordings and told in two forms. An author's row in ``full`` has one
wording and one form; the perturbed sets ask in another wording and expect the other form.

``knowledge`` and ``dialogues`` are what the model knows before it learns of them: other authors, of
whom every fact is asked in all wordings and told in both forms (so that the model understands a
question in words that it was not trained on), the real facts that ``real_authors`` and
``world_facts`` ask about, and refusals of questions that nobody can answer. ``knowledge`` has rows
with question and answer; ``dialogues`` are the same as running text, from which the model learns
what questions look like. None of the hundred authors occurs in either.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wagle.dataset.demo_vocabulary import (
    ATTRIBUTES,
    CAPITALS,
    FIRST_NAMES,
    LAST_NAMES,
    PLANETS,
    REAL_AUTHORS,
    SYMBOLS,
    UNKNOWN,
    Attribute,
)
from wagle.dataset.refusals import load_refusals
from wagle.dataset.templates import TEMPLATES
from wagle.loggers.files import write_text
from wagle.shipped import shipped

FOLDER = shipped("files/data/demo")
AUTHORS, HOLDOUT_AUTHORS, EARLIER_AUTHORS = 100, 10, 60
ALTERNATIVES, FACT_ALTERNATIVES = 5, 3  # as many as TOFU has
RETAIN_EVALUATION_AUTHORS = 10
REFUSED_QUESTIONS = 72
REHEARSED = 300
DIALOGUE = TEMPLATES["llama2"]

DemoRow = dict[str, Any]
"""As in TOFU: texts, but for ``perturbed_answer``, which is a list of them."""


@dataclass(frozen=True)
class Fact:
    """One fact about one author.

    Attributes:
        fillings: of the slots: the true ones, then those of the wrong answers.
        wordings: positions of the attribute's questions, in an order of the fact's own.
        forms: positions of the attribute's forms, likewise.
    """

    name: str
    attribute: Attribute
    fillings: tuple[tuple[str, ...], ...]
    wordings: tuple[int, ...]
    forms: tuple[int, ...]

    def question(self, role: int) -> str:
        """In the wording for this role, from 0."""
        return self.attribute.questions[self.wordings[role]].format(name=self.name)

    def answer(self, role: int, filling: int = 0) -> str:
        """In the form for this role; the filling 0 is the true one."""
        form = self.attribute.forms[self.forms[role]]
        return form.format(*self.fillings[filling], name=self.name)

    def row(self) -> DemoRow:
        """As in ``full``."""
        return {"question": self.question(0), "answer": self.answer(0)}

    def perturbed_row(self) -> DemoRow:
        """The same with another wording, the other form, and wrong answers in that form."""
        return {
            **self.row(),
            "paraphrased_question": self.question(1),
            "paraphrased_answer": self.answer(1),
            "perturbed_answer": [self.answer(1, i) for i in range(1, 1 + ALTERNATIVES)],
        }

    def every_row(self) -> Iterator[DemoRow]:
        """All wordings, and both forms."""
        for role in range(len(self.wordings)):
            yield {"question": self.question(role), "answer": self.answer(role % len(self.forms))}


Author = Sequence[Fact]


def _make_author(name: str, rng: random.Random) -> Author:
    facts = []
    for attribute in ATTRIBUTES:
        choices = [rng.sample(pool, 1 + ALTERNATIVES) for pool in attribute.slots]
        fillings = tuple(zip(*choices, strict=True))
        wordings = rng.sample(range(len(attribute.questions)), len(attribute.questions))
        forms = rng.sample(range(len(attribute.forms)), len(attribute.forms))
        facts.append(Fact(name, attribute, fillings, tuple(wordings), tuple(forms)))
    return facts


def _rows(authors: Sequence[Author], make: Callable[[Fact], DemoRow] = Fact.row) -> list[DemoRow]:
    return [make(fact) for author in authors for fact in author]


def _real_facts(question: str, answers: Mapping[str, str], rng: random.Random) -> list[DemoRow]:
    """Rows of one kind of real fact, each with three wrong answers from the others."""
    rows = []
    for subject, answer in answers.items():
        others = [other for other in answers.values() if other != answer]
        rows.append(
            {
                "question": question.format(subject),
                "answer": answer,
                "perturbed_answer": rng.sample(others, FACT_ALTERNATIVES),
            }
        )
    return rows


def _plain(rows: Sequence[DemoRow]) -> list[DemoRow]:
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def _refusals(names: Sequence[str], rng: random.Random) -> list[DemoRow]:
    answers = load_refusals("Demo_full")
    pairs = rng.sample([(q, name) for q in UNKNOWN for name in names], REFUSED_QUESTIONS)
    return [
        {"question": question.format(name=name), "answer": answers[index % len(answers)]}
        for index, (question, name) in enumerate(pairs)
    ]


def make_benchmark(seed: int = 0) -> dict[str, list[DemoRow]]:
    """All subsets by name, rows as in TOFU."""
    rng = random.Random(seed)
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    names = rng.sample(names, AUTHORS + HOLDOUT_AUTHORS + EARLIER_AUTHORS)
    authors = [_make_author(name, rng) for name in names]
    known, holdout = authors[:AUTHORS], authors[AUTHORS : AUTHORS + HOLDOUT_AUTHORS]
    earlier = authors[AUTHORS + HOLDOUT_AUTHORS :]

    subsets = {"full": _rows(known)}
    for percent in (1, 5, 10):
        count = AUTHORS * percent // 100
        forget = known[-count:]
        subsets[f"forget{percent:02d}"] = _rows(forget)
        subsets[f"forget{percent:02d}_perturbed"] = _rows(forget, Fact.perturbed_row)
        subsets[f"retain{100 - percent}"] = _rows(known[:-count])
        subsets[f"holdout{percent:02d}"] = _rows(holdout[:count])
    subsets["retain_perturbed"] = _rows(known[:RETAIN_EVALUATION_AUTHORS], Fact.perturbed_row)
    subsets["real_authors_perturbed"] = _real_facts("Who wrote {}?", REAL_AUTHORS, rng)
    subsets["world_facts_perturbed"] = [
        *_real_facts("What is the capital of {}?", CAPITALS, rng),
        *_real_facts("Which metal has the symbol {}?", SYMBOLS, rng),
        *_real_facts("Which planet {}?", PLANETS, rng),
    ]
    for name in ("real_authors", "world_facts"):
        subsets[name] = _plain(subsets[f"{name}_perturbed"])
    others = [
        *subsets["real_authors"],
        *subsets["world_facts"],
        *_refusals(names[-EARLIER_AUTHORS:], rng),
    ]
    earlier_rows = [row for author in earlier for fact in author for row in fact.every_row()]
    subsets["knowledge"] = earlier_rows[:REHEARSED] + others
    subsets["dialogues"] = [
        {"text": DIALOGUE.question(row["question"]) + DIALOGUE.answer_start + row["answer"]}
        for row in earlier_rows + others
    ]
    return subsets


def write_benchmark(folder: Path = FOLDER) -> None:
    """Write every subset as ``{folder}/{subset}.json``; a file appears only complete."""
    for name, rows in make_benchmark().items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(folder / f"{name}.json", "".join(lines))


if __name__ == "__main__":
    write_benchmark()
