"""Figures of masks and of the scores that they are selected by.

In a notebook started in this folder::

    from wagle.reporting.mask_figures import draw_density, write_figure
    from wagle.unlearn.mask.file import load_mask
    from wagle.unlearn.mask.statistics import density, density_table

    mask = load_mask(Path("mask/tofu_0.8.pt"))
    figure = draw_density(density_table(mask), density(mask))
    write_figure(Path("density"), figure)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from wagle.loggers.files import write_figure
from wagle.reporting.style import DASHES, HEAT_MAP, INK, QUIET, SINGLE_COLUMN, label_of, styled

if TYPE_CHECKING:
    from wagle.unlearn.mask.statistics import ScoreHistogram

__all__ = [
    "draw_density",
    "draw_score_histogram",
    "draw_similarity",
    "draw_similarity_matrix",
    "write_figure",
]


@styled
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


@styled
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


@styled
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


@styled
def draw_interference(
    values: Mapping[str, Mapping[str, float]], *, width: float = SINGLE_COLUMN
) -> Figure:
    """Heat map of how likely the answers of each forget set are after each request.

    Args:
        values: by set, by request, as ``wagle.model.interference.interference`` gives.
        width: in inches.
    """
    columns = list(next(iter(values.values())))
    figure = Figure(figsize=(width, 1.6 + 1.5 * _ROW_HEIGHT * len(values)))
    _heat_map_cells(figure, values, columns, "probability of the answers (%)")
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
        cmap=HEAT_MAP,
        vmin=low,
        vmax=high,
        edgecolor="face",
        linewidth=0.1,  # closes the hairlines that PDF viewers show between cells
    )
    axes.invert_yaxis()
    axes.set_xticks(
        range(len(columns)),
        [label_of(column) for column in columns],
        rotation=45,
        ha="left",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(rows)), [label_of(row) for row in rows])
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


@styled
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
    axes.stairs(shares, histogram.edges, fill=True, color=QUIET)
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
            color=INK,
            linestyle=DASHES[index % len(DASHES)],
            label=f"ρ = {ratio:g} ({percentile})",
        )
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.set_xlabel(f"{label_of(label)} (logarithmic)")
    axes.set_ylabel("weights per bin (%)")
    left_out = histogram.zeros + histogram.counts[histogram.edges[1:] <= lowest].sum()
    axes.set_title(f"not drawn: {left_out / histogram.total:.1%} ({zeros:.1%} are 0)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
