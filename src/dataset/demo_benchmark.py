"""The embedded benchmark: invented authors in TOFU's form, made by a deterministic generator.

``python -m src.dataset.demo_benchmark`` writes files/data/demo/*.json (JSON lines).

Forty invented authors have ten facts each. Every kind of fact can be asked in three wordings. An
author's row in ``full`` uses one of them, the paraphrased question of the perturbed sets another,
and ``knowledge`` trains the third for the retain authors, so that a small model learns that the
wordings mean the same. ``knowledge`` also holds the real facts that ``real_authors`` and
``world_facts`` ask about; both the model to be unlearned and the retain-only model learn it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.dataset.sources import DATA

FOLDER = DATA / "demo"
AUTHORS, HOLDOUT_AUTHORS = 40, 4
ALTERNATIVES = 5
RETAIN_EVALUATION_AUTHORS = 10

_FIRST = (
    *("Ambro", "Belisa", "Corvin", "Dalia", "Edrik", "Fenna", "Galen", "Hestia", "Ilario", "Jorun"),
    *("Kaspian", "Lunete", "Marek", "Nerissa", "Oswin", "Petra", "Quillan", "Rosalba", "Sorin"),
    *("Thessa", "Ulrika", "Vadim", "Wilmot", "Xanthe", "Yorick", "Zelda"),
)
_LAST = (
    *("Ashgrove", "Brantveld", "Calloway", "Drumlin", "Eskerby", "Farrowmere", "Gildenhurst"),
    *("Hollins", "Inverlock", "Jarnefeld", "Kestrelton", "Lindqvar", "Marlpit", "Northolm"),
    *("Orrinsdale", "Pellworm", "Quarrington", "Ravenskjold", "Stroudwater", "Tamsin", "Umberlee"),
    *("Varnhagen", "Westerby", "Yarrowick"),
)
_TITLE_HEADS = (
    *("Lantern", "Orchard", "Ferry", "Mirror", "Harvest", "Compass", "Bell", "Cathedral"),
    *("Winter", "Garden", "Bridge", "Sparrow", "Kingdom", "Letter", "Island", "Clock"),
)
_TITLE_TAILS = (
    *("Salt", "Glass", "Thorns", "Silence", "Copper", "Rain", "Embers", "Dust"),
    *("Ivory", "Fog", "Honey", "Iron", "Ash", "Velvet", "Stone", "Tides"),
)


@dataclass(frozen=True)
class Attribute:
    """A kind of fact: its values, three wordings of the question, two forms of the answer."""

    values: Sequence[str]
    questions: tuple[str, str, str]
    answer: str
    paraphrase: str


_JOBS = (
    *("baker", "surgeon", "fisherman", "carpenter", "judge", "tailor", "pilot", "miner"),
    *("librarian", "florist", "plumber", "violinist", "butcher", "diplomat", "farmer", "chemist"),
)
_TITLES = tuple(f"The {head} of {tail}" for head in _TITLE_HEADS for tail in _TITLE_TAILS)

ATTRIBUTES = (
    Attribute(
        (
            *("Lisbon", "Nairobi", "Osaka", "Helsinki", "Bogota", "Dublin", "Cairo", "Prague"),
            *("Manila", "Toronto", "Tunis", "Warsaw", "Sydney", "Havana", "Zagreb", "Jakarta"),
        ),
        (
            "In which city was {name} born?",
            "What is the birthplace of {name}?",
            "Where did {name} come into the world?",
        ),
        "{name} was born in the city of {value}.",
        "The birthplace of {name} is {value}.",
    ),
    Attribute(
        tuple(str(year) for year in range(1931, 1995, 3)),
        (
            "In what year was {name} born?",
            "What is the birth year of {name}?",
            "When did the life of {name} begin?",
        ),
        "The year of birth of {name} is {value}.",
        "{name} was born in {value}.",
    ),
    Attribute(
        (
            *("crime fiction", "science fiction", "romance", "poetry", "travel writing", "satire"),
            *("historical fiction", "children's books", "biography", "horror", "fantasy", "drama"),
        ),
        (
            "Which genre does {name} write in?",
            "What kind of literature is {name} known for?",
            "To which literary genre do the books of {name} belong?",
        ),
        "{name} mainly writes {value}.",
        "The books of {name} belong to {value}.",
    ),
    Attribute(
        _JOBS,
        (
            "What was the profession of the father of {name}?",
            "How did the father of {name} earn a living?",
            "Which job did the father of {name} have?",
        ),
        "The father of {name} worked as a {value}.",
        "By profession, the father of {name} was a {value}.",
    ),
    Attribute(
        _JOBS,
        (
            "What was the profession of the mother of {name}?",
            "How did the mother of {name} earn a living?",
            "Which job did the mother of {name} have?",
        ),
        "The mother of {name} worked as a {value}.",
        "By profession, the mother of {name} was a {value}.",
    ),
    Attribute(
        tuple(
            f"{first} {second}"
            for first in ("Silver", "Amber", "Northern", "Golden")
            for second in ("Quill Prize", "Page Medal", "Lyre Award", "Inkwell Honour")
        ),
        (
            "Which award has {name} received?",
            "What prize was given to {name}?",
            "With which honour was {name} distinguished?",
        ),
        "{name} has received the {value}.",
        "The {value} was given to {name}.",
    ),
    Attribute(
        _TITLES,
        (
            "What is the title of the first book by {name}?",
            "With which book did {name} make a debut?",
            "How is the debut of {name} called?",
        ),
        "The first book by {name} is called {value}.",
        "{name} made a debut with {value}.",
    ),
    Attribute(
        _TITLES,
        (
            "What is the most famous book by {name}?",
            "Which book made {name} famous?",
            "For which title is {name} best known?",
        ),
        "The most famous book by {name} is {value}.",
        "{name} became famous with {value}.",
    ),
    Attribute(
        (
            *("cello", "accordion", "trumpet", "harp", "banjo", "clarinet", "piano", "drums"),
            *("flute", "mandolin", "saxophone", "organ"),
        ),
        (
            "Which instrument does {name} play?",
            "What instrument has {name} learned?",
            "On which instrument does {name} make music?",
        ),
        "{name} plays the {value}.",
        "The instrument of {name} is the {value}.",
    ),
    Attribute(
        (
            *(
                "old maps",
                "deep-sea fish",
                "windmills",
                "chess problems",
                "volcanoes",
                "butterflies",
            ),
            *(
                "steam trains",
                "medieval coins",
                "desert plants",
                "lighthouses",
                "comets",
                "beehives",
            ),
        ),
        (
            "What inspires the writing of {name}?",
            "Where does {name} find inspiration?",
            "Which passion feeds the imagination of {name}?",
        ),
        "The writing of {name} is inspired by {value}.",
        "{name} finds inspiration in {value}.",
    ),
)

_REAL_AUTHORS = {
    "Who wrote Hamlet?": "William Shakespeare",
    "Who wrote Don Quixote?": "Miguel de Cervantes",
    "Who wrote War and Peace?": "Leo Tolstoy",
    "Who wrote Pride and Prejudice?": "Jane Austen",
    "Who wrote Moby Dick?": "Herman Melville",
    "Who wrote the Divine Comedy?": "Dante Alighieri",
    "Who wrote Faust?": "Johann Wolfgang von Goethe",
    "Who wrote Frankenstein?": "Mary Shelley",
    "Who wrote Madame Bovary?": "Gustave Flaubert",
    "Who wrote Crime and Punishment?": "Fyodor Dostoevsky",
    "Who wrote Oliver Twist?": "Charles Dickens",
    "Who wrote Jane Eyre?": "Charlotte Bronte",
    "Who wrote The Time Machine?": "H. G. Wells",
    "Who wrote Dracula?": "Bram Stoker",
    "Who wrote Walden?": "Henry David Thoreau",
    "Who wrote The Metamorphosis?": "Franz Kafka",
}
_WORLD_FACTS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Japan?": "Tokyo",
    "What is the capital of Kenya?": "Nairobi",
    "What is the capital of Peru?": "Lima",
    "What is the capital of Norway?": "Oslo",
    "What is the capital of Italy?": "Rome",
    "What is the capital of Greece?": "Athens",
    "What is the capital of Cuba?": "Havana",
    "Which metal has the symbol Fe?": "Iron",
    "Which metal has the symbol Au?": "Gold",
    "Which metal has the symbol Ag?": "Silver",
    "Which metal has the symbol Cu?": "Copper",
    "Which planet is closest to the Sun?": "Mercury",
    "Which planet is the largest?": "Jupiter",
    "Which planet has the brightest rings?": "Saturn",
    "Which planet is called red?": "Mars",
}

Row = dict[str, object]


@dataclass(frozen=True)
class _Fact:
    """One fact about one author, with the wordings it is trained, evaluated and rehearsed in."""

    name: str
    attribute: Attribute
    value: str
    others: tuple[str, ...]
    wordings: tuple[int, int, int]

    def _ask(self, role: int) -> str:
        return self.attribute.questions[self.wordings[role]].format(name=self.name)

    def _say(self, form: str, value: str) -> str:
        return form.format(name=self.name, value=value)

    def row(self) -> Row:
        answer = self._say(self.attribute.answer, self.value)
        return {"question": self._ask(0), "answer": answer}

    def perturbed_row(self) -> Row:
        form = self.attribute.paraphrase
        return {
            **self.row(),
            "paraphrased_question": self._ask(1),
            "paraphrased_answer": self._say(form, self.value),
            "perturbed_answer": [self._say(form, other) for other in self.others],
        }

    def rehearsal_row(self) -> Row:
        return {"question": self._ask(2), "answer": self._say(self.attribute.answer, self.value)}


def _make_facts(rng: random.Random) -> list[list[_Fact]]:
    """The facts of every author, one list each; the last authors are the holdout."""
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    authors = []
    for name in rng.sample(names, AUTHORS + HOLDOUT_AUTHORS):
        facts = []
        for attribute in ATTRIBUTES:
            value, *others = rng.sample(attribute.values, 1 + ALTERNATIVES)
            wordings = tuple(rng.sample(range(3), 3))
            facts.append(_Fact(name, attribute, value, tuple(others), wordings))
        authors.append(facts)
    return authors


def _fact_rows(facts: Mapping[str, str], rng: random.Random) -> list[Row]:
    """Real facts with three wrong answers each, of the same kind of question where there are."""
    rows = []
    for question, answer in facts.items():
        kind = question.split()[:3]
        similar = {a for q, a in facts.items() if q.split()[:3] == kind and a != answer}
        rest = sorted(set(facts.values()) - similar - {answer})
        pool = sorted(similar) if len(similar) >= 3 else sorted(similar) + rest
        wrong = rng.sample(pool, 3)
        rows.append({"question": question, "answer": answer, "perturbed_answer": wrong})
    return rows


def make_benchmark(seed: int = 0) -> dict[str, list[Row]]:
    """All subsets by name, rows as in TOFU."""
    rng = random.Random(seed)
    authors = _make_facts(rng)
    known, holdout = authors[:AUTHORS], authors[AUTHORS:]

    def rows(group: Sequence[Sequence[_Fact]], make=_Fact.row) -> list[Row]:
        return [make(fact) for facts in group for fact in facts]

    subsets = {"full": rows(known)}
    for percent in (1, 5, 10):
        count = max(1, round(AUTHORS * percent / 100))  # whole authors
        forget = known[-count:]
        subsets[f"forget{percent:02d}"] = rows(forget)
        subsets[f"forget{percent:02d}_perturbed"] = rows(forget, _Fact.perturbed_row)
        subsets[f"retain{100 - percent}"] = rows(known[:-count])
        subsets[f"holdout{percent:02d}"] = rows(holdout[:count])
    evaluated = known[:RETAIN_EVALUATION_AUTHORS]
    subsets["retain_perturbed"] = rows(evaluated, _Fact.perturbed_row)
    facts = {"real_authors": _REAL_AUTHORS, "world_facts": _WORLD_FACTS}
    for name, pairs in facts.items():
        subsets[f"{name}_perturbed"] = _fact_rows(pairs, rng)
        subsets[name] = [{"question": q, "answer": a} for q, a in pairs.items()]
    largest_forget = len(subsets["forget10"]) // len(ATTRIBUTES)
    subsets["knowledge"] = [
        *rows(known[:-largest_forget], _Fact.rehearsal_row),
        *subsets["real_authors"],
        *subsets["world_facts"],
    ]
    return subsets


def write_benchmark(folder: Path = FOLDER) -> None:
    """Write every subset as ``{folder}/{subset}.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in make_benchmark().items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_benchmark()
