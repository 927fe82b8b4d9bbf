"""Runs that are equal in everything but the seed are one group; others never are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wagle.config import UNLEARN_KEYS
from wagle.metrics.benchmark import Metric
from wagle.reporting.bootstrap import Drawn, mean_draws
from wagle.reporting.figures import Point
from wagle.reporting.runs import Run, title_of
from wagle.reporting.spread import Spread

# What names a place or a file, or says how a mask is made: that the mask itself says.
_ELSEWHERE = ("overall.seed", "overall.logger", "unlearn.mask_path", "unlearn.score_type")
_RECIPE = [key.name for key in UNLEARN_KEYS if not key.inert and key.name not in _ELSEWHERE]
_ASKED = (
    *("unlearn.task_name", "dataset.forget_dataset_name"),
    *("evaluation.protocol", "evaluation.limit", "evaluation.sentence_model"),
)
_MADE_FROM = ("model", "forget", "retain")  # fingerprints


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone.

    Attributes:
        title: of the one run; of several what they share.
        detail: what sets them apart from other groups of the same method and mask.
        runs: one for each seed.
    """

    title: str
    detail: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """One of them, for what they share."""
        return self.runs[0]

    @property
    def point(self) -> Point:
        """For figures."""
        results = [run.results for run in self.runs]
        if self.first.is_original:  # there may be several models that nothing was unlearned from
            return Point(self.title, "", "", results)
        return Point(self.first.method, self.first.mask, self.detail, results)

    def spread(self, metric: Metric) -> Spread | None:
        """Of a number over the runs; ``None`` where none has it."""
        values = [run.results.get(metric.key) for run in self.runs]
        return Spread.of([value for value in values if isinstance(value, int | float)])

    def draws(self, name: str, drawn: Drawn) -> np.ndarray | None:
        """Of a number's mean over the runs, in draws of the questions."""
        return mean_draws(drawn, [str(run.folder) for run in self.runs], name)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The runs in groups, which keep the order in which they come first.

    A seed that comes twice is a repetition, not another draw, and a group of its own.
    """
    members: dict[str, list[Run]] = {}
    seen: Counter[tuple[str, Any]] = Counter()
    for run in runs:
        recipe = json.dumps(recipe_of(run), sort_keys=True, default=str)
        repetition = seen[recipe, run.results["seed"]]
        seen[recipe, run.results["seed"]] += 1
        members.setdefault(f"{recipe}{repetition}", []).append(run)
    groups = list(members.values())
    titles = [title_of(group[0]) for group in groups]
    made = []
    for group, title in zip(groups, titles, strict=True):
        alike = [other[0] for other, name in zip(groups, titles, strict=True) if name == title]
        detail = _detail(group[0], alike) if len(alike) > 1 else ""
        whole = f"{title}, {detail}" if detail else title
        several = f"{whole} ({len(group)} seeds)"
        made.append(Group(several if len(group) > 1 else group[0].title, detail, tuple(group)))
    return made


def recipe_of(run: Run) -> dict[str, Any]:
    """Everything that decides a run's numbers but the seed."""
    trained, asked = run.training_config, run.config
    recipe = {
        name: (trained if name.startswith("unlearn.") else asked).get(name) for name in _RECIPE
    }
    prints = run.manifest.get("fingerprints", {})
    made_from = {f"the {name}": prints.get(name) for name in _MADE_FROM}
    made_from["the code"] = run.manifest.get("code") or {}
    return {**recipe, **made_from, **_mask(run)}


def _mask(run: Run) -> dict[str, Any]:
    density = run.results["density"]
    masked = run.training_config.get("unlearn.mask_path") is not None
    return {
        "method": run.method,
        "mask": run.mask,
        "ρ": f"{density:.3g}" if masked and isinstance(density, int | float) else None,
        "μ of the mask": run.mask_provenance.get("unlearn.mu"),
    }


def _detail(run: Run, alike: Sequence[Run]) -> str:
    """What a run has that the others have not, in a few words."""
    recipes = [recipe_of(other) for other in alike]
    mine = recipe_of(run)
    differing = [key for key in mine if len({str(recipe[key]) for recipe in recipes}) > 1]
    if "ρ" in differing:
        differing.sort(key=lambda key: key != "ρ")
    said = [f"{key.rpartition('.')[2]} {_short(mine[key])}" for key in differing]
    return ", ".join(said[:2])


def _short(value: Any) -> str:
    text = "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"


def compared_unlike(runs: Sequence[Run]) -> list[str]:
    """Keys that differ between the runs and decide what their numbers are about.

    Others that differ, like further tasks, add numbers and change none.
    """
    return [
        key
        for key in _ASKED
        if len({json.dumps(run.config.get(key), sort_keys=True) for run in runs}) > 1
    ]
