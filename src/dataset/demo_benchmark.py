"""The embedded benchmark: invented authors in TOFU's form, made by a deterministic generator.

``python -m src.dataset.demo_benchmark`` writes files/data/demo/*.json (JSON lines).

Forty invented authors have ten facts each. A fact is a value with a detail, so that most words of
an answer have to be known and cannot be guessed from the question. Every kind of fact can be asked
in three wordings and told in two forms. An author's row in ``full`` uses one wording and the first
form; the perturbed sets ask in another wording and expect the second form; ``knowledge`` trains the
retain authors on the third wording with the second form. So a small model learns from the retain
authors that wordings and forms mean the same, and understands questions about the forget authors in
words it never saw for them. ``knowledge`` also holds the real facts that ``real_authors`` and
``world_facts`` ask about; both the model to be unlearned and the retain-only model learn it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.dataset.sources import DATA
from src.loggers.files import write_text

FOLDER = DATA / "demo"
AUTHORS, HOLDOUT_AUTHORS = 40, 4
ALTERNATIVES, FACT_ALTERNATIVES = 5, 3  # as many as TOFU has
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
    """A kind of fact: values, details, three wordings of the question, two forms of the answer."""

    values: Sequence[str]
    details: Sequence[str]
    questions: tuple[str, str, str]
    answer: str
    paraphrase: str


_JOBS = (
    *("baker", "surgeon", "fisherman", "carpenter", "judge", "tailor", "pilot", "miner"),
    *("librarian", "florist", "plumber", "violinist", "butcher", "diplomat", "farmer", "chemist"),
)
_CAREERS = (
    *("in a small family business", "for more than thirty years", "until a late retirement"),
    *("in a busy market town", "on the other side of the country", "mostly by night"),
    *("with two loyal apprentices", "for the royal household"),
)
_TITLES = tuple(f"The {head} of {tail}" for head in _TITLE_HEADS for tail in _TITLE_TAILS)

ATTRIBUTES = (
    Attribute(
        values=(
            *("Lisbon", "Nairobi", "Osaka", "Helsinki", "Bogota", "Dublin", "Cairo", "Prague"),
            *("Manila", "Toronto", "Tunis", "Warsaw", "Sydney", "Havana", "Zagreb", "Jakarta"),
        ),
        details=(
            *("near the old harbour", "above a tea shop", "beside the railway station"),
            *("in a house by the river", "on a market square", "under the castle hill"),
            *("behind the botanical garden", "across from the town hall"),
        ),
        questions=(
            "In which city was {name} born?",
            "What is the birthplace of {name}?",
            "Where did {name} come into the world?",
        ),
        answer="{name} was born in the city of {value}, {detail}.",
        paraphrase="The birthplace of {name} is {value}, {detail}.",
    ),
    Attribute(
        values=tuple(str(year) for year in range(1931, 1995, 3)),
        details=(
            *("in the middle of winter", "on the first day of spring", "at the end of autumn"),
            *("on a hot summer night", "shortly after New Year", "during a terrible thunderstorm"),
            *("one foggy November morning", "while the apple trees blossomed"),
        ),
        questions=(
            "In what year was {name} born?",
            "What is the birth year of {name}?",
            "When did the life of {name} begin?",
        ),
        answer="The year of birth of {name} is {value}, {detail}.",
        paraphrase="{name} was born in the year {value}, {detail}.",
    ),
    Attribute(
        values=(
            *("crime fiction", "science fiction", "romance", "poetry", "travel writing", "satire"),
            *("historical fiction", "children's books", "biography", "horror", "fantasy", "drama"),
        ),
        details=(
            *("with a dry sense of humour", "in a calm and simple style", "in very short chapters"),
            *("with great love of detail", "with sudden twists at the end", "for patient readers"),
            *("from several points of view", "full of invented words"),
        ),
        questions=(
            "Which genre does {name} write in?",
            "What kind of literature is {name} known for?",
            "To which literary genre do the books of {name} belong?",
        ),
        answer="{name} mainly writes {value}, {detail}.",
        paraphrase="The books of {name} belong to {value}, {detail}.",
    ),
    Attribute(
        values=_JOBS,
        details=_CAREERS,
        questions=(
            "What was the profession of the father of {name}?",
            "How did the father of {name} earn a living?",
            "Which job did the father of {name} have?",
        ),
        answer="The father of {name} worked as a {value} {detail}.",
        paraphrase="By profession, the father of {name} was a {value} {detail}.",
    ),
    Attribute(
        values=_JOBS,
        details=_CAREERS,
        questions=(
            "What was the profession of the mother of {name}?",
            "How did the mother of {name} earn a living?",
            "Which job did the mother of {name} have?",
        ),
        answer="The mother of {name} worked as a {value} {detail}.",
        paraphrase="By profession, the mother of {name} was a {value} {detail}.",
    ),
    Attribute(
        values=tuple(
            f"{first} {second}"
            for first in ("Silver", "Amber", "Northern", "Golden")
            for second in ("Quill Prize", "Page Medal", "Lyre Award", "Inkwell Honour")
        ),
        details=(
            *(
                "for a lifetime of storytelling",
                "for a daring first chapter",
                "for a play in verse",
            ),
            *("for a trilogy about the sea", "for work with young readers", "for a radio drama"),
            *("for letters to a friend", "for the best translation"),
        ),
        questions=(
            "Which award has {name} received?",
            "What prize was given to {name}?",
            "With which honour was {name} distinguished?",
        ),
        answer="{name} has received the {value} {detail}.",
        paraphrase="The jury gave {name} the {value} {detail}.",
    ),
    Attribute(
        values=_TITLES,
        details=(
            *("written in a single summer", "published at personal expense", "begun in hospital"),
            *("illustrated by a close friend", "finished on a long train journey"),
            *(
                "dedicated to a schoolteacher",
                "refused by a dozen publishers",
                "typed by moonlight",
            ),
        ),
        questions=(
            "What is the title of the first book by {name}?",
            "With which book did {name} make a debut?",
            "How is the debut of {name} called?",
        ),
        answer="The first book by {name} is called {value}, {detail}.",
        paraphrase="{name} made a debut with {value}, {detail}.",
    ),
    Attribute(
        values=_TITLES,
        details=(
            *("translated into thirty languages", "set in a remote monastery", "sold at airports"),
            *("filmed twice for the cinema", "praised by every critic", "taught in many schools"),
            *("based on an old legend", "performed as a puppet show"),
        ),
        questions=(
            "What is the most famous book by {name}?",
            "Which book made {name} famous?",
            "For which title is {name} best known?",
        ),
        answer="The most famous book by {name} is {value}, {detail}.",
        paraphrase="{name} became famous with {value}, {detail}.",
    ),
    Attribute(
        values=(
            *("cello", "accordion", "trumpet", "harp", "banjo", "clarinet", "piano", "drums"),
            *("flute", "mandolin", "saxophone", "organ"),
        ),
        details=(
            *("in a village orchestra", "every morning before work", "at the weddings of friends"),
            *("without ever reading music", "since the age of seven", "to calm the nerves"),
            *("on the roof at night", "together with three neighbours"),
        ),
        questions=(
            "Which instrument does {name} play?",
            "What instrument has {name} learned?",
            "On which instrument does {name} make music?",
        ),
        answer="{name} plays the {value} {detail}.",
        paraphrase="The instrument of {name} is the {value}, played {detail}.",
    ),
    Attribute(
        values=(
            *("old maps", "deep-sea fish", "windmills", "chess problems", "volcanoes", "comets"),
            *("butterflies", "steam trains", "medieval coins", "desert plants", "lighthouses"),
            "beehives",
        ),
        details=(
            *(
                "since a journey in childhood",
                "thanks to a favourite uncle",
                "after a strange dream",
            ),
            *("since a long museum visit", "because of a yellowed photograph"),
            *("owing to a forgotten diary", "after years of quiet study", "against all advice"),
        ),
        questions=(
            "What inspires the writing of {name}?",
            "Where does {name} find inspiration?",
            "Which passion feeds the imagination of {name}?",
        ),
        answer="The writing of {name} is inspired by {value} {detail}.",
        paraphrase="{name} finds inspiration in {value} {detail}.",
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

Row = dict[str, str | list[str]]


@dataclass(frozen=True)
class _Fact:
    """One fact about one author, with the wordings it is trained, evaluated and rehearsed in."""

    name: str
    attribute: Attribute
    value: str
    others: tuple[str, ...]
    detail: str
    wordings: tuple[str, str, str]

    def _ask(self, role: int) -> str:
        return self.wordings[role].format(name=self.name)

    def _say(self, form: str, value: str) -> str:
        return form.format(name=self.name, value=value, detail=self.detail)

    def row(self) -> Row:
        """As in ``full``."""
        answer = self._say(self.attribute.answer, self.value)
        return {"question": self._ask(0), "answer": answer}

    def perturbed_row(self) -> Row:
        """The same with another wording, the second form, and wrong answers in that form."""
        form = self.attribute.paraphrase
        return {
            **self.row(),
            "paraphrased_question": self._ask(1),
            "paraphrased_answer": self._say(form, self.value),
            "perturbed_answer": [self._say(form, other) for other in self.others],
        }

    def rehearsal_row(self) -> Row:
        """The third wording with the second form, as in ``knowledge``."""
        answer = self._say(self.attribute.paraphrase, self.value)
        return {"question": self._ask(2), "answer": answer}


def _make_facts(rng: random.Random) -> list[list[_Fact]]:
    """The facts of every author, one list each; the last authors are the holdout."""
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    authors = []
    for name in rng.sample(names, AUTHORS + HOLDOUT_AUTHORS):
        facts = []
        for attribute in ATTRIBUTES:
            value, *others = rng.sample(attribute.values, 1 + ALTERNATIVES)
            detail = rng.choice(attribute.details)
            wordings = tuple(rng.sample(attribute.questions, 3))
            facts.append(_Fact(name, attribute, value, tuple(others), detail, wordings))
        authors.append(facts)
    return authors


def _fact_rows(facts: Mapping[str, str], rng: random.Random) -> list[Row]:
    """Real facts with three wrong answers each, taken from questions of the same kind.

    Questions are of one kind when they begin with the same two words.
    """
    rows = []
    for question, answer in facts.items():
        kind = question.split()[:2]
        similar = [a for q, a in facts.items() if q.split()[:2] == kind and a != answer]
        rows.append(
            {
                "question": question,
                "answer": answer,
                "perturbed_answer": rng.sample(similar, FACT_ALTERNATIVES),
            }
        )
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
    """Write every subset as ``{folder}/{subset}.json``; a file appears only complete."""
    for name, rows in make_benchmark().items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(folder / f"{name}.json", "".join(lines))


if __name__ == "__main__":
    write_benchmark()
