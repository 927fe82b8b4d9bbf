"""A run among runs with random masks of the same density per tensor: p-values, table, figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table as Grid

from wagle.metrics.benchmark import Headline, Metric
from wagle.metrics.benchmarks import find_metric
from wagle.reporting.bootstrap import Resampled
from wagle.reporting.compared import plain_grid
from wagle.reporting.runs import Run
from wagle.reporting.style import (
    DASHES,
    DOUBLE_COLUMN,
    INK,
    SINGLE_COLUMN,
    colour_of,
    label_of,
    shape_of,
    styled,
)
from wagle.reporting.summary import number


def p_value(ours: float, null: Sequence[float], better: int) -> float:
    """(1 + how many of the null are at least as good as ours) / (1 + how many there are).

    With 19 random masks, none of which does as well, it is 1 / 20 = 0.05, the least that it can be.

    Args:
        better: 1 where more is better, -1 where less is.
    """
    return (1 + sum(better * value >= better * ours for value in null)) / (1 + len(null))


def null_document(run: Run, null: Sequence[Run]) -> dict[str, Any]:
    """The run's numbers that have a better and a worse, those of the random masks, p-values."""
    return {
        "masks": len(null),
        "folders": [str(other.folder) for other in null],
        "numbers": {
            metric.key: {
                "value": run.results[metric.key],
                "null": [other.results[metric.key] for other in null],
                "p": p_value(
                    run.results[metric.key],
                    [other.results[metric.key] for other in null],
                    metric.better,
                ),
            }
            for metric in _compared(run, null)
        },
    }


def null_table(run: Run, null: Sequence[Run]) -> Grid:
    """The benchmark's columns of the run, and of the random masks mean, extremes and p."""
    grid = plain_grid(
        f"{run.title} among {len(null)} random masks of the same density per tensor",
        ("run", "mean", "least", "most", "p"),
    )
    numbers = null_document(run, null)["numbers"]
    for metric in run.benchmark.columns:
        if metric.key in numbers:
            found = numbers[metric.key]
            values = found["null"]
            cells = (found["value"], statistics.fmean(values), min(values), max(values))
            grid.add_row(metric.key, *map(number, cells), f"{found['p']:.3f}")
    return grid


def _compared(run: Run, null: Sequence[Run]) -> list[Metric]:
    found = []
    for key, value in run.results.items():
        metric = find_metric(run.benchmark, key) if isinstance(value, float) else None
        everywhere = all(isinstance(other.results.get(key), float) for other in null)
        if metric is not None and metric.better and everywhere:
            found.append(metric)
    return found


@styled
def draw_null(
    run: Run,
    null: Sequence[Run],
    references: Mapping[str, Run],
    headline: Headline,
    *,
    width: float = SINGLE_COLUMN,
) -> Figure:
    """Forgetting (upwards) against utility (to the right) of a run and of random masks.

    Args:
        references: the original and the retain-only model by their titles, where they are known.
        headline: the two numbers.
        width: in inches.
    """
    y, x = headline
    figure = Figure(figsize=(width, 3.2))
    axes = figure.subplots()

    def draw(runs: Sequence[Run], **style: Any) -> None:
        points = [(other.results[x.key], other.results[y.key]) for other in runs]
        axes.plot(*zip(*points, strict=True), linestyle="none", **style)

    draw(null, marker=".", color=colour_of("Random"), label=f"{len(null)} random masks")
    draw(
        [run],
        marker=shape_of(run.method)[0],
        color=colour_of(run.mask),
        label=label_of(run.title),
        markersize=7,
    )
    for title, other in references.items():
        draw([other], marker=shape_of(title)[0], color=INK, label=title, markersize=7)
    axes.margins(0.1)
    axes.set_xlabel(f"utility, {x.key}\n({x.direction})")
    axes.set_ylabel(f"forgetting, {y.key}\n({y.direction})")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled
def draw_strips(
    among: Sequence[tuple[Resampled, Sequence[Run]]],
    references: Mapping[str, Run],
    headline: Headline,
    *,
    width: float = DOUBLE_COLUMN,
) -> Figure:
    """A strip for each run: its random masks as dots, it among them, and p.

    The run's bar is its 95 % interval over questions; references are lines through all strips.

    Args:
        among: runs, each with those of its random masks.
        references: the original and the retain-only model by their titles, where they are known.
        headline: the two numbers, a panel each.
        width: in inches.
    """
    figure = Figure(figsize=(width, 1.2 + 0.42 * len(among)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, headline, strict=True):
        for place, (part, null) in enumerate(among):
            values = [other.results[metric.key] for other in null]
            places = place + np.random.default_rng(0).uniform(-0.25, 0.25, len(values))
            label = "random masks of the same density per tensor" if not place else None
            colour = colour_of("Random")
            axes.plot(values, places, ".", color=colour, alpha=0.6, markersize=3, label=label)
            found, run = part.interval(metric.key), part.run
            error = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
            axes.errorbar(
                *(found.value, place),
                xerr=error,
                linestyle="none",
                marker=shape_of(run.method)[0],
                color=colour_of(run.mask),
                label=None if place else label_of(f"{run.method}+{run.mask}"),
            )
            p = p_value(found.value, values, metric.better)
            text = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
            axes.annotate(f"p = {p:.3f}", (1.02, place), fontsize=7, **text)
        for (title, other), dash in zip(references.items(), DASHES, strict=False):
            axes.axvline(other.results[metric.key], color=INK, linestyle=dash, label=title)
        axes.set_xlabel(f"{metric.key} ({metric.direction})")
    panels[0].set_yticks(range(len(among)), [label_of(part.run.title) for part, _ in among])
    panels[0].set_ylim(len(among) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
