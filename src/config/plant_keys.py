"""The keys of planted ground truth, as ``wagle.config.keys`` has those of the runs."""

# ruff: noqa: RUF009 - key() declares, and is called once

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wagle.catalogue import SCORE_ALIASES, SCORES
from wagle.config.declare import REQUIRED, key
from wagle.config.values import Float, Int, ListOf, Named, Text


@dataclass(frozen=True, kw_only=True)
class PlantSection:
    """Planting the forget set, and judging scores."""

    output_dir: str = key(REQUIRED, "where plant.json, planted sets and figures go", Text("folder"))
    kinds: list[Literal["random", "layer", "feed_forward", "neurons", "copies"]] = key(
        ["random", "layer", "feed_forward", "neurons", "copies"],
        "sets of weights that the facts are planted in, one after the other",
    )
    density: float = key(
        0.05,
        "share of the weights in a set of random weights, neurons or copies",
        above=0,
        at_most=1,
    )
    seeds: list[int] = key(
        [0, 1, 2],
        "which weights are drawn, the order of rows in training, retain partners, random scores",
        ListOf(Int(at_least=0, at_most=2**32 - 1)),
    )
    scores: list[str] = key(
        [name for name, score in SCORES.items() if score.ranks],
        "what is judged",
        ListOf(Named(SCORES, aliases=SCORE_ALIASES)),
    )
    mus: list[float] = key(
        [10.0**power for power in range(-8, 1)],
        "values of unlearn.mu for the scores that depend on it",
        ListOf(Float(above=0)),
    )
    rehearse: bool = key(
        True,
        "learn each forget row's retain partner along, lest it be lost by the way",
    )
    num_epochs: int = key(20, "passes over these rows while they are planted", at_least=1)
    lr: float = key(1e-3, "learning rate of planting", above=0)
    batch_size: int = key(16, "rows of a step of planting", at_least=1)
    unlearn: bool = key(
        False,
        "unlearn with the mask of each score as well, by the method of unlearn.unlearn_method, "
        "and compare what is forgotten at equal utility",
    )
