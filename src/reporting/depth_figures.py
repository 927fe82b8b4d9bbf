"""The figure of where masks, updates and knowledge sit, layer by layer.

In a notebook::

    found = {run: read_json(Path(run) / "depth.json") for run in ("runs/dense", "runs/wagle")}
    figure = draw_depth([("GradDiff", "Dense", found["runs/dense"]), …])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wagle.reporting.depth import Document, depth_lines
from wagle.reporting.style import DOUBLE_COLUMN, INK, colour_of, label_of, shape_of, styled

_PANELS = {
    "density": ("selected weights (%)", 100),
    "score": ("share of the score (%)", 100),
    "update": ("norm of the update", 1),
    "e_forget": ("e, forget set", 1),
    "e_retain": ("e, retain set", 1),
}


@styled
def draw_depth(
    runs: Sequence[tuple[str, str, Document]], *, width: float = DOUBLE_COLUMN
) -> Figure:
    """Panels of what patching costs, and of masks, scores, updates and effects, over the layers.

    Args:
        runs: (method, mask, content of ``depth.json``) of each, a line in every panel.
        width: in inches.
    """
    lines = [(method, mask, depth_lines(found)) for method, mask, found in runs]
    there = {column for *_, line in lines for values in line.values() for column in values}
    panels = {key: panel for key, panel in _PANELS.items() if key in there}
    rows = 1 + len(panels) // 2
    figure = Figure(figsize=(width, 0.5 + 1.6 * rows + 0.13 * len(runs)))
    first, *others = figure.subplots(rows, 2, squeeze=False).flat
    _draw_patching(first, runs)
    for axes, (key, (label, scale)) in zip(others, panels.items(), strict=False):
        for method, mask, by_layer in lines:
            values = [scale * line[key] for line in by_layer.values() if key in line]
            axes.plot(values, **_look(method, mask))
        axes.set_ylabel(label)
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        _name_layers(axes, list(lines[0][2]))
    for axes in others[len(panels) :]:
        axes.remove()
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _draw_patching(axes: Axes, runs: Sequence[tuple[str, str, Document]]) -> None:
    """The retain-only model's losses once where runs share them, and each unlearned model's."""
    shared = dict.fromkeys(tuple(found["blocks"]["retain-only"]) for *_, found in runs)
    for number, losses in enumerate(shared):
        axes.plot(losses, color=INK, marker=".", label=None if number else "retain-only")
    for method, mask, found in runs:
        name = label_of(f"{method}+{mask}" if mask else method)
        score = f", UDS {found['UDS']:.2f}" if "UDS" in found else ""
        axes.plot(found["blocks"]["unlearned"], label=name + score, **_look(method, mask))
    axes.set_ylabel("lost by patching\n(nats a token)")
    _name_layers(axes, [name for name in runs[0][2]["layers"]["by layer"] if name.isdigit()])


def _name_layers(axes: Axes, layers: Sequence[str]) -> None:
    """Some of the layers' names below the axis, and what lies outside of them last."""
    step = -(-len(layers) // 12)
    shown = [n for n, name in enumerate(layers) if name == "outside" or n % step == 0]
    axes.set_xticks(shown, ["out" if layers[n] == "outside" else layers[n] for n in shown])
    axes.set_xlabel("layer")


def _look(method: str, mask: str) -> dict[str, Any]:
    marker, dash = shape_of(method)
    return {"color": colour_of(mask), "marker": marker, "linestyle": dash, "markersize": 3}
