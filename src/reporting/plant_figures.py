"""Figures of planted ground truth: what each score finds, at which μ, and at every threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wagle.reporting.plant import Document, Found, best_mu, found_in, kinds_of
from wagle.reporting.spread import Spread
from wagle.reporting.style import DOUBLE_COLUMN, INK, QUIET, colour_of, styled

_KINDS = {
    "random": "random weights",
    "layer": "one layer",
    "feed_forward": "feed-forward",
    "neurons": "neurons",
    "copies": "two copies",
}
_LINES = {"oracle": "-", "random alike": "--"}


def draw_plant(document: Document) -> dict[str, Figure]:
    """The figures of a document by name."""
    figures = {"lift": draw_lift(document), "curves": draw_curves(document)}
    if any(each.mu is not None for each in found_in(document, kinds_of(document)[0])):
        figures["mu"] = draw_mu(document)
    if any("left" in each.numbers for each in found_in(document, kinds_of(document)[0])):
        figures["left"] = draw_left(document)
    return figures


def _panels(document: Document, height: float, width: float) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each kind of set, side by side, with one vertical axis."""
    kinds = kinds_of(document)
    figure = Figure(figsize=(width, height))
    panels = dict(
        zip(kinds, figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], strict=True)
    )
    for kind, axes in panels.items():
        axes.set_title(_KINDS.get(kind, kind))
    return figure, panels


def _explain(figure: Figure) -> None:
    """What lines and points are, once and below all panels."""
    found = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=5)


def _point(
    axes: Axes, place: int, spread: Spread, label: str, *, hollow: bool, most: float
) -> None:
    """A mean in a line of a panel; with its interval, between 0 and ``most``, if it has one."""
    error = None
    if spread.interval is not None:
        low, high = np.clip(spread.interval, 0, most)
        error = [[spread.mean - low], [high - spread.mean]]
    face = "none" if hollow else INK
    axes.errorbar(spread.mean, place, xerr=error, fmt="o", color=INK, mfc=face, ms=3.5, label=label)


def _one_each(document: Document, kind: str) -> list[Found]:
    """Every score once: of those that depend on μ, at their best and at the published μ."""
    found = found_in(document, kind)
    chosen: list[Found] = []
    for score in dict.fromkeys(each.score for each in found):
        of_score = [each for each in found if each.score == score]
        best = best_mu(found, score)
        chosen += [each for each in of_score if each.mu in (None, 1e-6)]
        chosen += [best._replace(score=f"{best.title}, best μ")] if best else []
    return chosen


@styled
def draw_lift(document: Document, *, width: float = DOUBLE_COLUMN) -> Figure:
    """Lift of every score, over all weights (full) and within tensors (hollow), with intervals.

    Args:
        document: as ``plant.json`` has it.
        width: in inches.
    """
    names = [each.title for each in _one_each(document, kinds_of(document)[0])]
    figure, panels = _panels(document, 1.1 + 0.17 * len(names), width)
    for kind, axes in panels.items():
        for place, each in enumerate(_one_each(document, kind)):
            for number, label in {
                "lift": "over all weights",
                "lift_within": "within tensors",
            }.items():
                if (spread := each.numbers.get(number)) is not None:
                    hollow = number == "lift_within"
                    _point(axes, place, spread, label, hollow=hollow, most=np.inf)
        axes.axvline(1, color=QUIET, linestyle="--")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(0, 30)
        axes.set_xlabel("lift")
    left = next(iter(panels.values()))
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    _explain(figure)
    return figure


@styled
def draw_left(document: Document, *, width: float = DOUBLE_COLUMN) -> Figure:
    """What is left of the facts at equal utility, unlearned with each score's mask, with intervals.

    Hollow: the mask cost so little utility that there was nothing to mix. Lines: how likely the
    forget answers were before planting and after.

    Args:
        document: as ``plant.json`` has it.
        width: in inches.
    """
    kinds = kinds_of(document)
    names = [each.title for each in _one_each(document, kinds[0]) if "left" in each.numbers]
    figure, panels = _panels(document, 1.1 + 0.17 * len(names), width)
    for kind, axes in panels.items():
        found = {each.title: each for each in _one_each(document, kind) if "left" in each.numbers}
        for title, each in found.items():
            spread, hollow = each.numbers["left"], not each.numbers["share"].mean
            label = "nothing to mix" if hollow else "mixed"
            _point(axes, names.index(title), spread, label, hollow=hollow, most=1)
        cells = [cell for cell in document["cells"].values() if cell["kind"] == kind]
        for name, dash, label in (("before", ":", "never knew"), ("after", "--", "planted")):
            level = np.mean([cell[name]["forget"] for cell in cells])
            axes.axvline(level, color=QUIET, linestyle=dash, label=label)
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("forget answers")
    left = next(iter(panels.values()))
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    _explain(figure)
    return figure


@styled
def draw_mu(document: Document, *, width: float = DOUBLE_COLUMN) -> Figure:
    """Lift against μ, with that of the scores that do not depend on it as lines.

    Args:
        document: as ``plant.json`` has it.
        width: in inches.
    """
    figure, panels = _panels(document, 2.6, width)
    for kind, axes in panels.items():
        found = found_in(document, kind)
        for score in dict.fromkeys(each.score for each in found if each.mu is not None):
            line = [each for each in found if each.score == score]
            _with_intervals(axes, line, line[0].title)
        for score, dash in (("fisher_ratio", "-."), ("gradient", "--"), ("random alike", ":")):
            for each in (each for each in found if each.score == score):
                colour = colour_of(each.title) if score != "random alike" else INK
                level = each.numbers["lift"].mean
                axes.axhline(level, color=colour, linestyle=dash, label=each.title)
        axes.set_xscale("log")
        axes.set_xlabel("μ")
    left = next(iter(panels.values()))
    left.set_ylabel("lift")
    _explain(figure)
    return figure


def _with_intervals(axes: Axes, line: Sequence[Found], label: str) -> None:
    mus = [float(each.mu or 0) for each in line]
    spreads = [each.numbers["lift"] for each in line]
    bounds = np.array([spread.interval or (spread.mean, spread.mean) for spread in spreads])
    colour = colour_of(label)
    axes.plot(mus, [spread.mean for spread in spreads], color=colour, marker=".", label=label)
    axes.fill_between(mus, *bounds.T, color=colour, alpha=0.2, linewidth=0)


@styled
def draw_curves(document: Document, *, width: float = DOUBLE_COLUMN) -> Figure:
    """Precision against recall over all thresholds, mean over seeds; of μ the published value.

    Args:
        document: as ``plant.json`` has it.
        width: in inches.
    """
    figure, panels = _panels(document, 2.8, width)
    for kind, axes in panels.items():
        cells = [cell for cell in document["cells"].values() if cell["kind"] == kind]
        for name, first in cells[0]["judged"].items():
            if first["mu"] not in (None, 1e-6) or name == "complement":
                continue
            known = [cell["judged"][name] for cell in cells if name in cell["judged"]]
            curves = np.array([judged["curve"] for judged in known])
            _, precision, recall = curves.mean(axis=0).T
            title = Found(first["score"], None, {}).title
            style: dict[str, Any] = (
                {"color": INK, "linestyle": _LINES[name]}
                if name in _LINES
                else {"color": colour_of(title)}
            )
            axes.plot(recall, precision, label=title, **style)
        axes.set_xlabel("recall")
        axes.set_xlim(0, 1)
    left = next(iter(panels.values()))
    left.set_ylabel("precision")
    left.set_yscale("log")
    left.set_ylim(bottom=0.005)
    _explain(figure)
    return figure
