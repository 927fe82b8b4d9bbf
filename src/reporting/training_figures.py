"""The figure of a training: losses, gradient norm and learning rate over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from wagle.reporting.style import (
    DOUBLE_COLUMN,
    SINGLE_COLUMN,
    colour_of,
    label_of,
    shape_of,
    styled,
)
from wagle.training.loop import MEASURED

_MANY = 4  # panels, beyond which they stand in several columns
_CURVES = {  # key of the training log -> (label, scale)
    "forget_loss": ("forget loss\n(nats)", "linear"),
    "retain_loss": ("retain loss\n(nats)", "linear"),
    "loss": ("loss (nats)", "linear"),
    "multiplier": ("λ of the\nretain loss", "linear"),
    "grad_norm": ("gradient\nnorm", "log"),
    "learning_rate": ("learning\nrate", "linear"),
}


@styled
def draw_training(
    logs: Iterable[tuple[str, str, Sequence[Mapping[str, float]]]], *, width: float = SINGLE_COLUMN
) -> Figure:
    """Forget and retain loss, gradient norm and learning rate against the optimizer step.

    The losses are the terms of the objective, which add up to what training minimises; where a log
    does not tell them apart, the whole. Of equal curves each is wider than the next one.

    Args:
        logs: (method, mask, content of ``log.json``) of each run, a curve in every panel.
        width: in inches.
    """
    logs = list(logs)
    logged = {key for *_, log in logs for entry in log for key in entry}
    told_apart = [{"forget_loss", "retain_loss"} & {k for e in log for k in e} for *_, log in logs]
    if all(told_apart):
        logged -= {"loss"}
    return _draw(logs, {k: curve for k, curve in _CURVES.items() if k in logged}, width)


@styled
def draw_evaluations(
    logs: Iterable[tuple[str, str, Sequence[Mapping[str, float]]]],
    names: Iterable[str],
    *,
    width: float | None = None,
) -> Figure:
    """What was measured during training against the optimizer step.

    Args:
        logs: as for :func:`draw_training`.
        names: of the numbers, as logs have them, each a panel; many stand in several columns.
        width: in inches; not given: one column of a paper, or both where many are drawn.
    """
    curves = {name: (name.removeprefix(MEASURED).replace(" ", "\n", 1), "linear") for name in names}
    many = len(curves) > _MANY
    width = width or (DOUBLE_COLUMN if many else SINGLE_COLUMN)
    return _draw(list(logs), curves, width, columns=2 if many else 1)


def measured_names(log: Iterable[Mapping[str, float]], columns: Iterable[str]) -> list[str]:
    """Of the numbers measured during training those to be drawn: the benchmark's columns, or all.

    Args:
        columns: keys of the columns.
    """
    names = dict.fromkeys(k for entry in log for k in entry if k.startswith(MEASURED))
    return [k for k in names if k.removeprefix(MEASURED) in set(columns)] or list(names)


def _draw(
    logs: Sequence[tuple[str, str, Sequence[Mapping[str, float]]]],
    curves: Mapping[str, tuple[str, str]],
    width: float,
    columns: int = 1,
) -> Figure:
    """A panel for each key, with its label and scale."""
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(width, 0.6 + 1.15 * rows))
    panels = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for axes, (key, (label, scale)) in zip(panels, curves.items(), strict=False):
        _draw_curves(axes, key, logs)
        axes.set_ylabel(label)
        axes.set_yscale(scale)
        if scale == "linear":
            axes.ticklabel_format(axis="y", scilimits=(-2, 3))
    for axes in panels[len(curves) :]:
        axes.remove()
    for axes in panels[: len(curves)][-columns:]:
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelbottom=True)
    figure.align_ylabels()
    named = {
        f"{method}+{mask}" if mask else method: Line2D(
            [], [], color=colour_of(mask), linestyle=shape_of(method)[1]
        )
        for method, mask, _ in logs
    }
    if len(named) > 1:
        figure.legend(
            list(named.values()),
            list(map(label_of, named)),
            loc="outside lower center",
            ncols=2 if width < DOUBLE_COLUMN else 4,
            handlelength=3,
        )
    return figure


def _draw_curves(
    axes: Axes, key: str, logs: Sequence[tuple[str, str, Sequence[Mapping[str, float]]]]
) -> None:
    curves = dict.fromkeys(
        (method, mask, tuple((e["step"], e[key]) for e in log if key in e))
        for method, mask, log in logs
    )
    points = [curve for *_, curve in curves]
    for number, (method, mask, curve) in enumerate(curves):
        if curve:
            axes.plot(
                *zip(*curve, strict=True),
                color=colour_of(mask),
                linestyle=shape_of(method)[1],
                linewidth=1.2 + 0.9 * points[number + 1 :].count(curve),
                marker="." if len(curve) == 1 else None,
            )
