"""Runs in short: one sentence on what to look at, a small table, and what has to be known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from wagle.metrics.benchmark import Answers, Benchmark, Headline, Metric
from wagle.metrics.benchmarks import find_metric
from wagle.reporting.answers import QuestionKey, rows_of
from wagle.reporting.bootstrap import Drawn
from wagle.reporting.groups import Group, compared_unlike
from wagle.reporting.runs import Run
from wagle.reporting.spread import Spread, clearly_best


class Summary(NamedTuple):
    """A line of the table.

    Attributes:
        forgetting, utility: mean with its spread, as text; of a benchmark without a headline a
            dash.
        forgotten, kept: correct answers, like ``2 of 40``, to the forget questions and to all
            others; ``None`` where answers are not judged.
    """

    group: Group
    forgetting: str
    utility: str
    forgotten: str | None
    kept: str | None


def summarize(groups: Sequence[Group], benchmark: Benchmark) -> list[Summary]:
    """The lines of those groups that have something to be summed up."""
    headline, asked = benchmark.headline, benchmark.answers
    lines = []
    for group in groups:
        averages = [shown(group.spread(metric)) for metric in headline or ()] or [shown(None)] * 2
        counts = [_count(group, asked, forget) for forget in (True, False)]
        if any(text != shown(None) for text in averages) or any(counts):
            lines.append(Summary(group, *averages, *counts))
    return lines


def _count(group: Group, asked: Answers, forget: bool) -> str | None:
    tables = [judged_rows(run, asked) for run in group.runs]
    if not all(tables):
        return None
    chosen = [[row for key, row in table.items() if _is(key, forget)] for table in tables]
    correct = sum(row["acc"] for rows in chosen for row in rows) / len(chosen)
    return f"{correct:.1f}".removesuffix(".0") + f" of {len(chosen[0])}"


def _is(key: QuestionKey, forget: bool) -> bool:
    return (key.set == "forget") == forget


def judged_rows(run: Run, asked: Answers) -> dict[QuestionKey, Mapping[str, Any]]:
    """As :func:`rows_of`, those whose answers are judged correct or not."""
    return {key: row for key, row in rows_of(run, asked).items() if "acc" in row}


def number(value: float | None) -> str:
    """A number with three digits, or as many as show that it is not 0."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return f"{value}"
    if value == int(value) and abs(value) >= 10:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 5e-4 or value == 0 else f"{value:.1e}"


def shown(spread: Spread | None) -> str:
    """Mean ± sample standard deviation."""
    if spread is None or spread.deviation is None:
        return number(spread.mean if spread else None)
    return f"{number(spread.mean)} ± {number(spread.deviation)}"


# -------------------------------------------------------------------------------- the sentence


def finding(
    unlearned: Sequence[Group], original: Group | None, headline: Headline | None, drawn: Drawn
) -> str:
    """What the runs say about forgetting and utility, in a sentence or two, whatever they are.

    Args:
        drawn: the unlearned models' numbers in draws of the questions; empty: seeds alone say
            whether a difference is certain.
    """
    everything = [*([original] if original else []), *unlearned]
    differing = compared_unlike([group.first for group in everything])
    if differing:
        return (
            f"These runs were not evaluated alike (they differ in {', '.join(differing)}): their "
            "numbers must not be compared with one another."
        )
    measured = [g for g in unlearned if headline and all(_finite(g, m) for m in headline)]
    if not headline or not measured:
        return "Compare the numbers below with those of the original model." if unlearned else ""
    if len(measured) == 1:
        (group,) = measured
        forgetting, utility = (_said(group, original, metric) for metric in headline)
        best = " (1 is best in both)" if shares(headline) else ""
        return f"{group.title}: forgetting {forgetting}, utility {utility}{best}."
    forgets, keeps = (_best(measured, metric) for metric in headline)
    most = f"forgets the most ({_said(forgets[0], original, headline.forgetting)})"
    kept = f"keeps the most utility ({_said(keeps[0], original, headline.utility)})"
    if forgets == keeps:
        found = f"{_names(forgets)} {most} and {kept}"
    else:
        found = f"{_names(forgets)} {most}, {_names(keeps)} {kept}"
    return (
        f"Look at forgetting and utility together: {found}. {_certainty(measured, headline, drawn)}"
    )


def shares(headline: Headline) -> bool:
    """Whether both numbers go from 0 to 1, and 1 is best."""
    return all(metric.largest == metric.better == 1 for metric in headline)


def _finite(group: Group, metric: Metric) -> bool:
    spread = group.spread(metric)
    return spread is not None and math.isfinite(spread.mean)


def _mean(group: Group, metric: Metric) -> float:
    spread = group.spread(metric)
    assert spread is not None  # only groups that have the number are compared
    return spread.mean


def _best(groups: Sequence[Group], metric: Metric) -> list[Group]:
    """All whose mean is the best as it is printed."""
    values = [_mean(group, metric) for group in groups]
    means = [number(value) for value in values]
    best = number(min(values) if metric.better < 0 else max(values))
    return [group for group, mean in zip(groups, means, strict=True) if mean == best]


def _names(groups: Sequence[Group]) -> str:
    first = [group.title for group in groups[:3]]
    rest = len(groups) - len(first)
    return " and ".join([*first, f"{rest} more"] if rest else first)


def _said(group: Group, original: Group | None, metric: Metric) -> str:
    before = original.spread(metric) if original else None
    text = number(_mean(group, metric))
    return f"{text}, the original {number(before.mean)}" if before else text


def _certainty(groups: Sequence[Group], headline: Headline, drawn: Drawn) -> str:
    over = ["the seeds"] if all(len(group.runs) > 1 for group in groups) else []
    over += ["the questions"] if drawn else []
    if not over:
        return "With a single seed no interval says whether such differences are more than chance."
    intervals = f"the 95 % confidence intervals over {' and over '.join(over)}"
    clear = [
        name
        for name, metric in headline._asdict().items()
        if clearly_best(
            [group.spread(metric) for group in groups],
            metric.better,
            [group.draws(metric.key, drawn) for group in groups],
        )
        is not None
    ]
    if not clear:
        return f"By {intervals} neither lead is certain."
    leads = "Both leads are" if len(clear) == 2 else f"The lead in {clear[0]} alone is"
    return f"{leads} larger than {intervals}."


# ----------------------------------------------------------------------------------- the masks


def notes_on(runs: Sequence[Run]) -> list[str]:
    """What has to be known about the runs' numbers, and about where their masks come from."""
    titles: dict[str, list[str]] = {}
    for run in runs:
        for note in _notes(run):
            titles.setdefault(note, []).append(run.title)
    return [f"{note}: {'; '.join(named)}." for note, named in titles.items()]


def _notes(run: Run) -> Iterator[str]:
    for name, value in run.results.items():
        metric = find_metric(run.benchmark, name)
        if metric and isinstance(value, int | float) and (remark := metric.remark(value)):
            yield remark
    masked = run.mask and run.training_config.get("unlearn.mask_path") is not None
    origin = run.manifest.get("mask")
    if masked and not origin:
        yield "Nothing recorded what made the mask, which is named after the configuration"
    if not origin:
        return
    if not origin.get("provenance"):
        yield f"The mask {origin.get('path')} does not say what made it (unknown origin)"
    elif str(origin.get("origin")).startswith("accepted"):
        yield f"The mask {origin.get('path')} was {origin['origin']}"
    for key, (theirs, _) in origin.get("seeds", {}).items():
        yield f"The mask was made with {key} {theirs}, not with the run’s own"


def mask_text(run: Run) -> str | None:
    """What made a run's mask, for the page; ``None`` without a mask of its own."""
    origin = run.manifest.get("mask")
    if not origin:
        return None
    made = run.mask_provenance
    names = {"unlearn.score_type": "", "ratio": "ρ ", "unlearn.mu": "μ ", "overall.seed": "seed "}
    parts = [f"{label}{made[key]}" for key, label in names.items() if key in made]
    return f"{', '.join(parts) or 'unknown origin'} ({origin.get('origin')}: {origin.get('path')})"
