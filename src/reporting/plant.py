"""What scores have found of planted facts: tables of means over seeds, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from wagle.catalogue import SCORES
from wagle.reporting.spread import Spread

Document = Mapping[str, Any]
"""The content of ``plant.json``."""

NUMBERS = {
    "lift": "lift: precision at the planted density π, divided by π; chance is 1",
    "lift_within": "the same in each tensor, mean over the tensors that are planted in part",
    "precision": "precision (and recall) at the planted density",
    "auprc": "area under precision against recall; chance is π",
    "left": "forget answers' probability after unlearning, at equal utility; less is better",
    "share": "λ, the planted model's part in that; 0: there is utility to spare",
}
"""What is judged, and what it means."""


class Found(NamedTuple):
    """What a score, at a value of μ if it depends on that, has found in a kind of set.

    Attributes:
        numbers: spreads over seeds by the names of ``NUMBERS``; those that there are.
    """

    score: str
    mu: float | None
    numbers: Mapping[str, Spread]

    @property
    def title(self) -> str:
        """As tables and figures call the score."""
        return SCORES[self.score].mask_title if self.score in SCORES else self.score


def kinds_of(document: Document) -> list[str]:
    """The kinds of planted sets, in their order."""
    return list(dict.fromkeys(cell["kind"] for cell in document["cells"].values()))


def found_in(document: Document, kind: str) -> list[Found]:
    """What every score has found in one kind of set."""
    cells = [cell["judged"] for cell in document["cells"].values() if cell["kind"] == kind]
    found = []
    for name, first in {name: each for cell in cells for name, each in cell.items()}.items():
        numbers = {}
        for number in NUMBERS:
            values = [_number(cell[name], number) for cell in cells if name in cell]
            spread = Spread.of([value for value in values if value is not None])
            if spread is not None:
                numbers[number] = spread
        found.append(Found(first["score"], first["mu"], numbers))
    return found


def _number(judged: Mapping[str, Any], number: str) -> float | None:
    if number not in ("left", "share"):
        value: float | None = judged[number]
        return value
    unlearned = judged.get("unlearned")
    if unlearned is None or number == "share":
        return unlearned and unlearned["share"]
    return unlearned["at equal utility"]["forget"]


def best_mu(found: list[Found], score: str) -> Found | None:
    """Where a score's mean lift is largest over μ; ``None`` where it does not depend on μ."""
    of_score = [each for each in found if each.score == score and each.mu is not None]
    return max(of_score, key=lambda each: each.numbers["lift"].mean, default=None)


def plant_tables(document: Document) -> dict[str, dict[str, dict[str, Spread]]]:
    """By meaning of a number, score and kind of set: its spread over seeds.

    Of scores that depend on μ there are the smallest μ, the published 1e-6 and the largest, where
    they were asked for, and the best of each kind.
    """
    tables: dict[str, dict[str, dict[str, Spread]]] = {title: {} for title in NUMBERS.values()}
    for kind in kinds_of(document):
        found = found_in(document, kind)
        mus = [each.mu for each in found if each.mu is not None]
        shown = {min(mus), 1e-6, max(mus)} if mus else set()
        lines = {
            f"{each.title}, μ {each.mu:g}" if each.mu is not None else each.title: each
            for each in found
            if each.mu is None or each.mu in shown
        }
        for score in dict.fromkeys(each.score for each in found if each.mu is not None):
            if best := best_mu(found, score):
                lines[f"{best.title}, best μ"] = best
        for line, each in lines.items():
            for number, title in NUMBERS.items():
                if number in each.numbers:
                    tables[title].setdefault(line, {})[kind] = each.numbers[number]
    return {title: lines for title, lines in tables.items() if lines}


def shown(spread: Spread) -> str:
    """A mean and, of several seeds, half its 95 % interval."""
    if spread.interval is None:
        return f"{spread.mean:.3g}"
    return f"{spread.mean:.3g} ± {(spread.interval[1] - spread.mean):.2g}"
