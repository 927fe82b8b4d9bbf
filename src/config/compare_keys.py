"""The keys of comparing finished runs, as ``wagle.config.keys`` has those of the runs."""

from __future__ import annotations

from dataclasses import dataclass

from wagle.config.declare import key
from wagle.config.values import Int, Text

_RUN = Text("run folder")


@dataclass(frozen=True, kw_only=True)
class CompareSection:
    """What is compared, and how surely."""

    output: str = key(
        "files/results/compare", "where compare.json and the figures go", Text("folder")
    )
    original: str | None = key(
        None, "the evaluation of the model before unlearning, shown beside the runs", _RUN
    )
    retain: str | None = key(
        None, "the evaluation of the model that never saw the forget set, shown as well", _RUN
    )
    forgetting: str | None = key(
        None,
        "number that says how well a run forgot; not set: that of the benchmark's headline",
        Text("number"),
    )
    utility: str | None = key(
        None,
        "number that says what it kept; not set: that of the benchmark's headline",
        Text("number"),
    )
    equal_utility: float | None = key(
        None,
        "share of the original's utility, such as 0.95, down to which the unlearned models are "
        "mixed with it, so that forgetting is compared at equal utility; not set: it is not",
        above=0,
        at_most=1,
    )
    evaluations: int = key(6, "mixtures that are evaluated for each run", at_least=1, at_most=30)
    null_masks: int = key(
        0,
        "random masks, of the density of the run's own in each tensor, with which each run is "
        "repeated",
        at_least=0,
        at_most=10_000,
    )
    resamples: int = key(10_000, "draws of the questions", at_least=100, at_most=1_000_000)
    seed: int = key(0, "of the draws", Int(at_least=0, at_most=2**32 - 1))
