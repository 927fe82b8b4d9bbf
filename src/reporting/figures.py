"""Figures of results for papers, tables and the report, from plain numbers.

Each function returns a matplotlib Figure; :func:`write_figure` saves one as PNG and PDF. What
colours and shapes mean is in :mod:`wagle.reporting.style`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from wagle.loggers.files import write_figure
from wagle.metrics.benchmark import Headline, Metric
from wagle.reporting.spread import Spread
from wagle.reporting.style import (
    DOUBLE_COLUMN,
    INK,
    QUIET,
    SINGLE_COLUMN,
    colour_of,
    label_of,
    marker_of,
    shape_of,
    styled,
)

__all__ = ["Point", "draw_ratio_sweep", "draw_tradeoff", "write_figure"]

Results = Mapping[str, float]


class Point(NamedTuple):
    """Runs that are equal in everything but the seed.

    Attributes:
        method, mask: as in tables; the mask of the model before unlearning is empty.
        detail: what else sets it apart from points of the same method and mask, like ``ρ 0.4``.
        results: of each run, flat.
    """

    method: str
    mask: str
    detail: str
    results: Sequence[Results]

    def spread(self, metric: Metric) -> Spread | None:
        """Of a number over the runs; ``None`` where none has it, or its mean is not finite."""
        found = Spread.of([r[metric.key] for r in self.results if metric.key in r])
        return found if found and math.isfinite(found.mean) else None


def _bars(spreads: Sequence[Spread]) -> list[float]:
    return [float("nan") if s.deviation is None else s.deviation for s in spreads]


def _explain_bars(counts: Iterable[int]) -> str | None:
    """What error bars mean, where there are any."""
    several = sorted({count for count in counts if count > 1})
    if not several:
        return None
    seeds = "–".join(map(str, dict.fromkeys((several[0], several[-1]))))
    return f"mean; bars: ± standard deviation over {seeds} seeds"


# ---------------------------------------------------------------------------- results of runs


@styled
def draw_ratio_sweep(
    runs: Iterable[tuple[str, str, float, Results]],
    metrics: Sequence[Metric],
    *,
    across: str = "ρ, share of the weights updated",
    width: float = DOUBLE_COLUMN,
) -> Figure:
    """Metrics against the ratio ρ of selected weights, a line for each method and mask.

    Runs of the same method, mask and ratio, which differ by seed alone, become one point: their
    mean, with their sample standard deviation as error bar. Infinite means are not drawn. Of equal
    lines each is wider than the next one, and so remains to be seen.

    Args:
        runs: (method, mask, ratio in (0, 1], flat results) of each run; another number in place of
            the ratio where ``across`` says which.
        metrics: of the results, a panel for each; side by side where the width allows.
        width: in inches.
    """
    lines: dict[tuple[str, str], dict[float, list[Results]]] = {}
    for method, mask, ratio, results in runs:
        lines.setdefault((method, mask), {}).setdefault(ratio, []).append(results)
    several = len({method for method, _ in lines}) > 1
    whole = all(float(number).is_integer() for by_ratio in lines.values() for number in by_ratio)
    beside = width > 1.5 * SINGLE_COLUMN
    rows, columns = (1, len(metrics)) if beside else (len(metrics), 1)
    figure = Figure(figsize=(width, 2.3 * rows))
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for axes, metric in zip(panels, metrics, strict=True):
        curves = [_curve(metric, *line, by_ratio) for line, by_ratio in lines.items()]
        for number, ((method, mask), spreads) in enumerate(zip(lines, curves, strict=True)):
            hidden = curves[number + 1 :].count(spreads)
            marker, line = shape_of(method)
            axes.errorbar(
                list(spreads),
                [spread.mean for spread in spreads.values()],
                _bars(list(spreads.values())),
                color=colour_of(mask),
                marker=marker,
                linestyle=line,
                linewidth=1.2 + 1.2 * hidden,
                markersize=4.5 + 2.5 * hidden,
                label=label_of(f"{method} {mask}" if several else mask),
            )
        axes.set_ylabel(_label(metric))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel(across)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(len(lines), 4 if beside else 3),
        title=_explain_bars(len(r) for by_ratio in lines.values() for r in by_ratio.values()),
    )
    return figure


def _label(metric: Metric, *, what: str = "", between: str = "\n") -> str:
    """Of an axis: the name, below or beside it which way is better."""
    direction = f"{between}({metric.direction})" if metric.direction else ""
    return f"{what}{metric.key}{direction}"


def _curve(
    metric: Metric, method: str, mask: str, by_ratio: Mapping[float, Sequence[Results]]
) -> dict[float, Spread]:
    """A metric's spread by ratio, in ascending order, where it is finite."""
    points = {ratio: Point(method, mask, "", r) for ratio, r in sorted(by_ratio.items())}
    spreads = {ratio: point.spread(metric) for ratio, point in points.items()}
    return {ratio: spread for ratio, spread in spreads.items() if spread}


@styled
def draw_tradeoff(
    points: Sequence[Point],
    headline: Headline,
    *,
    front: Sequence[Point] = (),
    width: float = SINGLE_COLUMN,
) -> Figure:
    """Forgetting (upwards) against utility (to the right).

    A point is the means over its runs, with their sample standard deviations as error bars. Points
    that would cover each other stand side by side, each joined to its place by a line. A point
    without a finite number is not drawn, and named instead.

    Args:
        points: the runs, grouped.
        headline: the two numbers.
        front: those of the points that a line joins.
        width: in inches.
    """
    y, x = headline
    found = ((point, point.spread(x), point.spread(y)) for point in points)
    placed = [(point, across, up) for point, across, up in found if across and up]
    drawn = [point for point, *_ in placed]
    methods = list(dict.fromkeys(point.method for point in drawn if point.mask))
    masks = list(dict.fromkeys(point.mask for point in drawn if point.mask))
    original = list(dict.fromkeys(point.method for point in drawn if not point.mask))
    figure = Figure(figsize=(width, 2.7 + 0.13 * (len(methods) + len(masks)) / 2))
    axes = figure.subplots()
    for point, across, up in placed:
        axes.errorbar(
            across.mean,
            up.mean,
            xerr=_bars([across]),
            yerr=_bars([up]),
            fmt="none",
            color=colour_of(point.mask),
            elinewidth=0.8,
        )
        axes.update_datalim([(across.mean, up.mean)])
    joined = sorted((across.mean, up.mean) for point, across, up in placed if point in front)
    if joined:
        axes.plot([x for x, _ in joined], [y for _, y in joined], color=QUIET, zorder=1)
    axes.margins(0.15)
    axes.set_xlabel(_label(x, what="utility, ", between=" "))
    axes.set_ylabel(_label(y, what="forgetting, "))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    left_out = [label_of(_name(point)) for point in points if point not in drawn]
    if left_out:
        axes.set_title("not drawn, as not finite:\n" + "\n".join(left_out))
    counts = [len(point.results) for point in drawn]
    said = [_explain_bars(counts), "line: no other point is better" if joined else None]
    title = "; ".join(filter(None, said)) or None
    _shape_and_colour_legend(figure, original, methods, masks, title)
    axes.autoscale_view()
    figure.draw_without_rendering()  # only now it is known which points meet
    _draw_markers(axes, drawn, [(across.mean, up.mean) for _, across, up in placed])
    return figure


def _name(point: Point) -> str:
    mask = f"+{point.mask}" if point.mask else ""
    return f"{point.method}{mask} {point.detail}".strip()


_APART = 8.0  # points (1/72 inch) between the centres of two markers


def _draw_markers(
    axes: Axes, points: Sequence[Point], places: Sequence[tuple[float, float]]
) -> None:
    """Markers beside one another where they would meet, and the points' details in words."""
    if not points:
        return
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    figure = axes.figure
    true = axes.transData.transform(places) * 72 / figure.dpi
    shown = _spread_out(true)
    written: list[tuple[float, float, float, float]] = []
    for point, place, offset, centre in zip(points, places, shown - true, shown, strict=True):
        if np.hypot(*offset) > 0.5:
            axes.annotate(
                "",
                xy=place,
                xytext=tuple(offset),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.5, "shrinkA": 0, "shrinkB": 0},
            )
        axes.plot(
            *([place[0]], [place[1]]),
            **marker_of(point.method, point.mask),
            markersize=6 if point.mask else 9,
            transform=axes.transData
            + ScaledTranslation(offset[0] / 72, offset[1] / 72, figure.dpi_scale_trans),
            label=label_of(_name(point)),
            zorder=3,
        )
        if point.detail:
            corner = _free_corner(centre, len(point.detail), shown, written)
            axes.annotate(
                label_of(point.detail),
                xy=place,
                xytext=tuple(np.array(corner) - centre + offset),
                textcoords="offset points",
                fontsize=7,
                annotation_clip=False,
            )


def _spread_out(places: np.ndarray) -> np.ndarray:
    """Move points apart that are closer than a marker, each as little as that takes.

    Args:
        places: in points (1/72 inch), ``(N, 2)``.
    """
    shown = places.copy()
    for _ in range(200):
        moved = False
        for first, second in itertools.combinations(range(len(shown)), 2):
            gap = shown[second] - shown[first]
            distance = np.hypot(*gap)
            if distance >= _APART - 1e-6:
                continue
            angle = 2.4 * second  # of points at one place: a different way for each
            way = gap / distance if distance > 1e-6 else np.array([np.cos(angle), np.sin(angle)])
            push = way * (_APART - distance) / 2 * 1.02
            shown[first] -= push
            shown[second] += push
            moved = True
        if not moved:
            break
    return shown


def _free_corner(
    centre: np.ndarray,
    letters: int,
    markers: np.ndarray,
    written: list[tuple[float, float, float, float]],
) -> tuple[float, float]:
    """Where beside a marker a text covers the least; it is added to what is ``written``.

    Returns:
        The lower left corner, in points.
    """
    wide, high = 4.2 * letters, 7.0
    x, y = centre
    beside = [(x + 5, y + 3), (x + 5, y - 9), (x - 5 - wide, y + 3), (x - 5 - wide, y - 9)]
    corners = [*beside, (x - wide / 2, y + 6), (x - wide / 2, y - 13)]

    def covered(corner: tuple[float, float]) -> int:
        left, low = corner
        texts = sum(
            left < r and left + wide > other_left and low < t and low + high > b
            for other_left, b, r, t in written
        )
        inside = (markers > np.array([left - 4, low - 4])) & (
            markers < np.array([left + wide + 4, low + high + 4])
        )
        return texts + int(inside.all(axis=1).sum())

    left, low = min(corners, key=covered)
    written.append((left, low, left + wide, low + high))
    return left, low


def _shape_and_colour_legend(
    figure: Figure,
    original: Sequence[str],
    methods: Sequence[str],
    masks: Sequence[str],
    title: str | None,
) -> None:
    """Methods by shape and masks by colour, side by side below the axes."""

    def handle(colour: str, method: str | None) -> Line2D:
        marker = shape_of(method)[0] if method else "s"
        return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5)

    nothing = Line2D([], [], linestyle="none")
    shapes = [handle(INK, name) for name in original] + [handle(QUIET, name) for name in methods]
    names = [*original, *methods]
    colours = [Line2D([], [], color=colour_of(mask), lw=4) for mask in masks]
    columns: list[tuple[list[Line2D], list[str]]] = []
    for handles, texts in ((shapes, names), (colours, list(masks))):
        half = -(-len(texts) // 2)
        columns += [(handles[:half], texts[:half]), (handles[half:], texts[half:])]
    columns = [column for column in columns if column[1]]
    height = max((len(texts) for _, texts in columns), default=0)
    handles = [h for column, _ in columns for h in column + [nothing] * (height - len(column))]
    labels = [n for _, texts in columns for n in texts + [""] * (height - len(texts))]
    if handles:
        figure.legend(
            handles,
            list(map(label_of, labels)),
            loc="outside lower center",
            ncols=len(columns),
            title=title,
            columnspacing=1,
            handlelength=1.2,
            handletextpad=0.4,
        )
