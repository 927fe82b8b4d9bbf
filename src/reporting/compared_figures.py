"""Figures of compared runs: differences with their intervals, and forgetting against utility."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wagle.loggers.files import write_figure
from wagle.metrics.benchmark import Headline, Metric
from wagle.reporting.bootstrap import Interval, Resampled
from wagle.reporting.compared import Compared
from wagle.reporting.style import (
    INK,
    QUIET,
    SINGLE_COLUMN,
    label_of,
    marker_of,
    styled,
)


def draw_compared(compared: Compared, headline: Headline | None, folder: Path) -> list[Path]:
    """Write what there is to be drawn; returns the files."""
    figures = {}
    if len(compared.runs) > 1:
        figures["differences"] = draw_differences(compared)
    if headline is not None:
        figures["front"] = draw_front(compared, headline)
    return [path for n, figure in figures.items() for path in write_figure(folder / n, figure)]


@styled
def draw_differences(compared: Compared, *, width: float = SINGLE_COLUMN) -> Figure:
    """How much larger the numbers of the other runs are than the first's, with 95 % intervals.

    Args:
        compared: the runs; a line for each number of the benchmark's table that follows from rows.
        width: in inches.
    """
    found = compared.differences()
    metrics = [m for m in compared.benchmark.columns if all(m.key in d for d in found.values())]
    figure = Figure(figsize=(width, 1.1 + 0.13 * len(metrics) * (1 + len(found))))
    axes = figure.subplots()
    for number, other in enumerate(compared.runs[1:]):
        intervals = [found[other.run.title][metric.key] for metric in metrics]
        shift = (number + 1) / (len(found) + 1) - 0.5
        places = np.arange(len(metrics)) + shift
        _bars(axes, [i.value for i in intervals], places, other, across=intervals)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.set_yticks(range(len(metrics)), [label_of(metric.key) for metric in metrics])
    axes.set_ylim(len(metrics) - 0.5, -0.5)
    axes.set_xlabel(label_of(f"difference from {compared.runs[0].run.title}"))
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        title="bars: 95 % over questions, drawn together",
    )
    return figure


@styled
def draw_front(compared: Compared, headline: Headline, *, width: float = SINGLE_COLUMN) -> Figure:
    """Forgetting (upwards) against utility (to the right), with 95 % intervals over questions.

    A line joins the runs that no other run is better than in one and as good as in both. The
    references, which do not compete, are there in the colour of the text.

    Args:
        headline: the two numbers.
        width: in inches.
    """
    y, x = headline
    figure = Figure(figsize=(width, 3.0 + 0.13 * len(compared.everything)))
    axes = figure.subplots()
    for part in compared.everything.values():
        across, up = part.interval(x.key), part.interval(y.key)
        _bars(axes, [across.value], [up.value], part, across=[across], up=[up])
    best = [point for _, point in sorted(_front(compared, headline))]
    axes.plot(*zip(*best, strict=True), color=QUIET, linewidth=1, zorder=1)
    axes.margins(0.1)
    axes.set_xlabel(_label("utility", x))
    axes.set_ylabel(_label("forgetting", y))
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        title="bars: 95 % over questions; line: no run is better",
    )
    return figure


def _front(compared: Compared, headline: Headline) -> list[tuple[float, tuple[float, float]]]:
    """Of the runs that none other is better than: utility to sort by, and the point."""
    y, x = headline
    points = [(part.values[x.key], part.values[y.key]) for part in compared.runs]
    signed = np.array(points) * [x.better, y.better]
    beaten = [
        bool(((signed >= point).all(axis=1) & (signed > point).any(axis=1)).any())
        for point in signed
    ]
    return [(p[0], p) for p, is_beaten in zip(points, beaten, strict=True) if not is_beaten]


def _bars(
    axes: Axes,
    xs: list[float],
    ys: list[float] | np.ndarray,
    part: Resampled,
    *,
    across: list[Interval],
    up: list[Interval] | None = None,
) -> None:
    run = part.run
    title = run.title if run.is_original else run.method
    axes.errorbar(
        xs,
        ys,
        xerr=_reach(across),
        yerr=_reach(up) if up else None,
        linestyle="none",
        **marker_of(title, run.mask),
        elinewidth=0.8,
        label=label_of(run.title),
    )


def _reach(intervals: list[Interval]) -> np.ndarray:
    """How far bars reach to either side: ``(2, intervals)``.

    A number that is no mean of rows may lie outside its interval; its bar begins at the number.
    """
    sides = [(i.value - i.low, i.high - i.value) for i in intervals]
    return np.maximum(np.array(sides).T, 0.0)


def _label(what: str, metric: Metric) -> str:
    return f"{what}, {metric.key}\n({metric.direction})"
