"""Figures for papers, the report and run folders, from plain numbers.

Each function returns a matplotlib Figure; :func:`write_figure` saves one as PNG and PDF. They are
drawn at the size at which a two-column paper prints them, with 8-point text, in the colours of
Okabe and Ito (2008), which people with any colour vision tell apart; markers and line styles differ
as well, for print without colour.

In a notebook started in this folder::

    from src.reporting.figures import draw_density, write_figure
    from src.unlearn.mask.file import load_mask
    from src.unlearn.mask.statistics import density, density_table

    mask = load_mask(Path("mask/tofu_0.8.pt"))
    figure = draw_density(density_table(mask), density(mask))
    write_figure(Path("density"), figure)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from src.loggers.files import write_figure

if TYPE_CHECKING:
    from src.unlearn.mask.statistics import ScoreHistogram

__all__ = [
    "DOUBLE_COLUMN",
    "SINGLE_COLUMN",
    "draw_density",
    "draw_ratio_sweep",
    "draw_score_histogram",
    "draw_similarity",
    "draw_similarity_matrix",
    "draw_tradeoff",
    "draw_training",
    "write_figure",
]

SINGLE_COLUMN, DOUBLE_COLUMN = 3.3, 6.9
"""Widths in inches of one column and of both, in a two-column paper."""

INK = "#262626"
"""Colour of all text, axes and ticks. The report turns it light on a dark page."""

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
_HEAT_MAP = "cividis"  # even steps of lightness for every colour vision
_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures are alike everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "grid.color": "#8c8c8c",
    "errorbar.capsize": 2,
    "figure.constrained_layout.use": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The function, run under this module's style without changing the caller's."""

    @wraps(draw)
    def styled(*arguments: Any, **options: Any) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # a notebook's own style would change sizes and colours
            matplotlib.rcParams.update(_STYLE)
            return draw(*arguments, **options)

    return styled


class _Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; no deviation from one seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> _Spread:
        spread = len(values) > 1 and all(map(math.isfinite, values))
        deviation = statistics.stdev(values) if spread else None
        return cls(statistics.fmean(values), deviation)


def _bars(spreads: Sequence[_Spread]) -> list[float]:
    return [float("nan") if s.deviation is None else s.deviation for s in spreads]


def _seeds(counts: Iterable[int]) -> str | None:
    """What error bars mean, where there are any."""
    few, many = min(counts := list(counts)), max(counts)
    if many < 2:
        return None
    return f"mean ± standard deviation, {few if few == many else f'{few}–{many}'} seeds"


# ---------------------------------------------------------------------------- results of runs


@_styled
def draw_ratio_sweep(
    runs: Iterable[tuple[str, float, Mapping[str, float]]],
    *,
    metrics: Sequence[str] = ("UE Avg", "UT Avg"),
    width: float = DOUBLE_COLUMN,
) -> Figure:
    """Metrics against the ratio ρ of selected weights, a line for each score type.

    Runs of the same score type and ratio, which differ by seed, become one point: their mean, with
    their sample standard deviation as error bar.

    Args:
        runs: (score type, ratio in (0, 1], flat results) of each run.
        metrics: keys of the results, a panel for each; side by side where the width allows.
        width: in inches.
    """
    groups: dict[str, dict[float, list[Mapping[str, float]]]] = {}
    for score_type, ratio, results in runs:
        groups.setdefault(score_type, {}).setdefault(ratio, []).append(results)
    beside = width > 1.5 * SINGLE_COLUMN
    rows, columns = (1, len(metrics)) if beside else (len(metrics), 1)
    figure = Figure(figsize=(width, 2.3 * rows))
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for axes, metric in zip(panels, metrics, strict=True):
        for index, (score_type, by_ratio) in enumerate(groups.items()):
            ratios = sorted(by_ratio)
            spreads = [_Spread.of([r[metric] for r in by_ratio[ratio]]) for ratio in ratios]
            axes.errorbar(
                ratios,
                [spread.mean for spread in spreads],
                _bars(spreads),
                color=_COLOURS[index % len(_COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                linestyle=_LINES[index % len(_LINES)],
                label=score_type,
            )
        axes.set_ylabel(f"{metric} (larger is better)")
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel("ρ, share of the weights updated")
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=min(len(groups), 4 if beside else 3),
        title=_seeds(len(r) for by_ratio in groups.values() for r in by_ratio.values()),
    )
    return figure


@_styled
def draw_tradeoff(
    runs: Iterable[tuple[str, str, Mapping[str, float]]],
    *,
    x: str = "UT Avg",
    y: str = "UE Avg",
    width: float = SINGLE_COLUMN,
) -> Figure:
    """Forgetting against utility: up and to the right is better.

    Runs of the same method and mask, which differ by seed, become one point: their means, with
    their sample standard deviations as error bars. Colours are methods, markers are masks. Of
    points that are equal, each is larger than the next one, and so remains to be seen.

    Args:
        runs: (method, mask, flat results) of each run, like ("GradDiff", "WAGLE", …); the mask of
            the model before unlearning is empty, and its marker a star.
        x, y: keys of the results, for example ``UE FQ`` (forget quality).
        width: in inches.
    """
    groups: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for method, mask, results in runs:
        groups.setdefault((method, mask), []).append(results)
    methods = list(dict.fromkeys(method for method, _ in groups))
    masks = list(dict.fromkeys(mask for _, mask in groups if mask))
    figure = Figure(figsize=(width, 2.6 + 0.13 * (len(methods) + len(masks)) / 2))
    axes = figure.subplots()
    spreads = [[_Spread.of([r[key] for r in group]) for key in (x, y)] for group in groups.values()]
    points = [(round(across.mean, 3), round(up.mean, 3)) for across, up in spreads]
    for number, ((method, mask), (across, up)) in enumerate(zip(groups, spreads, strict=True)):
        colour = _COLOURS[methods.index(method) % len(_COLOURS)]
        marker = _MARKERS[masks.index(mask) % len(_MARKERS)] if mask else "*"
        size = (36 if mask else 80) + 50 * points[number + 1 :].count(points[number])
        bars = {"xerr": _bars([across]), "yerr": _bars([up])}
        axes.errorbar(across.mean, up.mean, **bars, fmt="none", color=colour, elinewidth=0.8)
        axes.scatter(
            *(across.mean, up.mean), s=size, color=colour, marker=marker, edgecolor="white", lw=0.4
        )
    axes.margins(0.12)
    axes.set_xlabel(f"utility, {x} (larger is better)")
    axes.set_ylabel(f"forgetting, {y} (larger is better)")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    _method_and_mask_legend(figure, methods, masks, _seeds(map(len, groups.values())))
    return figure


def _method_and_mask_legend(
    figure: Figure, methods: Sequence[str], masks: Sequence[str], title: str | None
) -> None:
    """Methods by colour and masks by marker, side by side below the axes."""
    from matplotlib.lines import Line2D

    def handle(colour: str, marker: str) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5)

    nothing = Line2D([], [], linestyle="none")
    colours = [handle(_COLOURS[i % len(_COLOURS)], "o") for i in range(len(methods))]
    markers = [handle("#8c8c8c", _MARKERS[i % len(_MARKERS)]) for i in range(len(masks))]
    columns: list[tuple[list[Line2D], list[str]]] = []
    for handles, names in ((colours, list(methods)), (markers, list(masks))):
        half = -(-len(names) // 2)
        columns += [(handles[:half], names[:half]), (handles[half:], names[half:])]
    columns = [column for column in columns if column[1]]
    height = max(len(names) for _, names in columns)
    handles = [h for column, _ in columns for h in column + [nothing] * (height - len(column))]
    labels = [n for _, names in columns for n in names + [""] * (height - len(names))]
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(columns),
        title=title,
        columnspacing=1,
        handletextpad=0.3,
    )


_CURVES = {  # key of the training log -> (label, scale)
    "loss": ("loss (nats)", "linear"),
    "grad_norm": ("gradient norm", "log"),
    "learning_rate": ("learning rate", "linear"),
}


@_styled
def draw_training(
    logs: Mapping[str, Sequence[Mapping[str, float]]], *, width: float = SINGLE_COLUMN
) -> Figure:
    """Loss, gradient norm and learning rate against the optimizer step.

    Args:
        logs: by the name of the run, the content of its ``log.json``; a line for each.
        width: in inches.
    """
    logged = {key for log in logs.values() for entry in log for key in entry}
    curves = [key for key in _CURVES if key in logged]
    figure = Figure(figsize=(width, 0.5 + 1.25 * len(curves)))
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False).flat
    for axes, key in zip(panels, curves, strict=True):
        for index, (name, log) in enumerate(logs.items()):
            steps, values = zip(*((e["step"], e[key]) for e in log if key in e), strict=True)
            axes.plot(
                steps,
                values,
                color=_COLOURS[index % len(_COLOURS)],
                linestyle=_LINES[index % len(_LINES)],
                label=name,
            )
        label, scale = _CURVES[key]
        axes.set_ylabel(label)
        axes.set_yscale(scale)
        if scale == "linear":
            axes.ticklabel_format(axis="y", scilimits=(-2, 3))
    figure.align_ylabels()
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(logs) > 1:
        columns = 2 if width < DOUBLE_COLUMN else 4
        handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=columns)
    return figure


# ---------------------------------------------------------------------------- masks and scores


@_styled
def draw_density(
    shares: Mapping[str, Mapping[str, float]], overall: float, *, width: float = SINGLE_COLUMN
) -> Figure:
    """Heat map of the share of selected weights, per layer and kind of parameter.

    Args:
        shares: by layer, by kind, as ``density_table(mask)`` gives.
        overall: share of all weights.
        width: in inches.
    """
    figure = Figure()
    _heat_map(figure, shares, "selected weights (%)", width)
    figure.axes[0].set_title(f"{overall:.1%} of all weights selected")
    return figure


@_styled
def draw_similarity(
    values: Mapping[str, Mapping[str, float]],
    overall: float,
    chance: float,
    *,
    width: float = SINGLE_COLUMN,
) -> Figure:
    """Heat map of the Jaccard similarity of two masks, per layer and kind of parameter.

    Args:
        values: by layer, by kind, as ``jaccard_table(first, second)`` gives.
        overall: of the whole masks.
        chance: what independent masks would have, as ``chance_jaccard(first, second)`` gives.
        width: in inches.
    """
    figure = Figure()
    _heat_map(figure, values, "Jaccard similarity (%)", width)
    figure.axes[0].set_title(f"overall {overall:.1%}; by chance {chance:.1%}")
    return figure


@_styled
def draw_similarity_matrix(
    names: Sequence[str], values: Sequence[Sequence[float]], *, width: float = SINGLE_COLUMN
) -> Figure:
    """Heat map of the Jaccard similarities among several masks.

    Args:
        names: of the masks.
        values: similarity of each mask with each, ``(masks, masks)``.
        width: in inches.
    """
    figure = Figure(figsize=(width, width * 0.95))
    rows = dict(zip(names, (dict(zip(names, row, strict=True)) for row in values), strict=True))
    _heat_map_cells(figure, rows, names, "Jaccard similarity (%)")
    return figure


_ROW_HEIGHT = 0.16  # inches: 7-point text, with some air


def _heat_map(
    figure: Figure, table: Mapping[str, Mapping[str, float]], label: str, width: float
) -> None:
    """Layers downwards, kinds across in the order in which a layer uses them."""
    layers = sorted(
        table, key=lambda layer: (not layer.isdigit(), int(layer) if layer.isdigit() else 0)
    )
    rows = {layer: table[layer] for layer in layers}
    # Kinds are ordered within each layer; those outside the layers come last.
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    figure.set_size_inches(width, 1.3 + _ROW_HEIGHT * len(rows))
    _heat_map_cells(figure, rows, kinds, label)
    figure.axes[0].set_ylabel("layer")


def _heat_map_cells(
    figure: Figure,
    rows: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
    label: str,
) -> None:
    """Cells with their percentages in them; a cell without a value stays empty."""
    values = np.array([[row.get(c, np.nan) for c in columns] for row in rows.values()]) * 100
    axes = figure.subplots()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    low, high = _colour_range(values)
    image = axes.pcolormesh(
        np.arange(len(columns) + 1) - 0.5,
        np.arange(len(rows) + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap=_HEAT_MAP,
        vmin=low,
        vmax=high,
        edgecolor="face",
        linewidth=0.1,  # closes the hairlines that PDF viewers show between cells
    )
    axes.invert_yaxis()
    slanted = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(columns)), columns, **slanted)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            light = value > (low + high) / 2
            axes.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="black" if light else "white",
            )
    bar = figure.colorbar(
        image, ax=axes, label=label, location="bottom", aspect=40, fraction=0.05, pad=0.03
    )
    bar.outline.set_visible(False)
    bar.ax.grid(False)


def _colour_range(percentages: np.ndarray) -> tuple[float, float]:
    """The values' own range, but ten points wide at least: noise should not look like a pattern."""
    low, high = np.nanmin(percentages), np.nanmax(percentages)
    missing = max(0.0, 10 - (high - low)) / 2
    low, high = low - missing, high + missing
    shift = max(0.0, -low) - max(0.0, high - 100)  # keep within 0 to 100
    return low + shift, high + shift


_DRAWN = 0.999  # share of the scores that the histogram's axis takes in, where they are not zeros


@_styled
def draw_score_histogram(
    histogram: ScoreHistogram,
    *,
    ratios: Sequence[float] = (0.1, 0.5, 0.8, 0.95),
    label: str = "score",
    width: float = SINGLE_COLUMN,
) -> Figure:
    """How scores are spread, with a line at the score that each ratio's selection reaches.

    The axis leaves out the lowest thousandth of the positive scores; the title counts them.

    Args:
        histogram: as ``score_histogram`` gives, with a positive score at least.
        ratios: shares of the weights to select; 0.8 is percentile 20.
        label: of the axis of scores.
        width: in inches.
    """
    figure = Figure(figsize=(width, 2.3))
    axes = figure.subplots()
    shares = histogram.counts / histogram.total * 100
    zeros = histogram.zeros / histogram.total
    axes.stairs(shares, histogram.edges, fill=True, color=_COLOURS[5])
    axes.set_xscale("log")
    # The lowest scores lie decades below all others, and would squeeze them.
    lowest = min(histogram.threshold(_DRAWN * (1 - zeros)), histogram.edges[-1] / 10)
    axes.set_xlim(lowest, histogram.edges[-1])
    for index, ratio in enumerate(sorted(ratios, reverse=True)):
        threshold = histogram.threshold(ratio)
        percentile = f"percentile {round((1 - ratio) * 100, 6):g}"
        if threshold < lowest:
            percentile += ", further left" if threshold else ", 0"
        axes.axvline(
            threshold if threshold >= lowest else np.nan,
            color=_COLOURS[index % 2],
            linestyle=_LINES[index % len(_LINES)],
            label=f"ρ = {ratio:g} ({percentile})",
        )
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.set_xlabel(f"{label} (logarithmic)")
    axes.set_ylabel("weights per bin (%)")
    left_out = histogram.zeros + histogram.counts[histogram.edges[1:] <= lowest].sum()
    axes.set_title(f"not drawn: {left_out / histogram.total:.1%} ({zeros:.1%} are 0)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
