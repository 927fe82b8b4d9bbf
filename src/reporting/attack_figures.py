"""Figures of attacks: curves of relearning, and how far weights have moved in their bins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wagle.reporting.attacks import Document
from wagle.reporting.style import DASHES, INK, MASK_COLOURS, SINGLE_COLUMN, styled


def draw_attacks(found: Document) -> dict[str, Figure]:
    """The figures of a document by name: a set of curves for each preset, and the bins."""
    presets: dict[str, dict[str, Any]] = {}
    moves = {}
    for name, part in found["parts"].items():
        kind, _, rest = name.partition(" ")
        if kind == "relearning":
            preset, where = rest.split()
            presets.setdefault(preset, {})[where] = part
        elif "moves" in part:
            moves[rest] = part["moves"]
    figures = {f"relearning_{name}": draw_relearning(parts) for name, parts in presets.items()}
    if any(any(m["counts"]) for m in moves.values()):
        figures["bins"] = draw_bins(moves)
    return figures


_WHERE = {"all": "all weights", "mask": "the mask", "complement": "its complement"}


@styled
def draw_relearning(parts: Mapping[str, Document], *, width: float = SINGLE_COLUMN) -> Figure:
    """Knowledge against relearning steps, for the three models and where relearning is confined.

    Args:
        parts: by where relearning was confined to, as ``attack.json`` has them.
        width: in inches.
    """
    figure = Figure(figsize=(width, 3.0))
    axes = figure.subplots()
    for label, curve, style in _curves(parts):
        axes.plot(*zip(*curve, strict=True), label=label, marker=".", **style)
    axes.set_xlabel("relearning step")
    axes.set_ylabel("answer probability, forget set")
    axes.set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return figure


def _curves(parts: Mapping[str, Document]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for (where, part), dash in zip(parts.items(), DASHES, strict=False):
        place = _WHERE.get(where, "random weights of its density")
        colour = MASK_COLOURS["Random" if where == "random" else "WAGLE"]
        yield f"unlearned, {place}", part["curves"]["unlearned"], {"color": colour, "ls": dash}
        if where == "all":
            for name, shade in (("retain-only", MASK_COLOURS["Dense"]), ("original", INK)):
                if name in part["curves"]:
                    yield name, part["curves"][name], {"color": shade}


@styled
def draw_bins(moves: Mapping[str, Document], *, width: float = SINGLE_COLUMN) -> Figure:
    """How far weights have moved by the width of the bin that they were in, a line for each kind.

    Args:
        moves: by kind of quantisation, as ``attack.json`` has them.
        width: in inches.
    """
    figure = Figure(figsize=(width, 2.6))
    axes = figure.subplots()
    for (kind, part), dash in zip(moves.items(), DASHES, strict=False):
        shares = 100 * np.array(part["counts"]) / max(part["weights"], 1)
        label = f"{kind}: {part['changed']:.1%} of the codes change"
        axes.stairs(shares, part["edges"], label=label, color=INK, linestyle=dash)
    axes.axvline(1, color=MASK_COLOURS["Dense"])
    axes.set_xscale("log")
    axes.set_xlabel("|Δθ| by the width of its bin")
    axes.set_ylabel("selected weights (%)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return figure
