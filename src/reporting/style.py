"""What every figure looks like: the one table of colours, markers and lines.

Colours are masks, shapes (markers and lines) are methods, in every figure. Figures are drawn at the
size at which a two-column paper prints them, with 8-point text. The first colours are those of
Okabe and Ito (2008), which people with any colour vision tell apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from wagle.catalogue import METHODS
from wagle.terminal import plain

SINGLE_COLUMN, DOUBLE_COLUMN = 3.3, 6.9
"""Widths in inches of one column and of both, in a two-column paper."""

INK = "#262626"
"""Colour of all text, axes and ticks, and of the model before unlearning. The report turns it light
on a dark page."""
QUIET = "#b8bec4"
"""Of what is no mask's: bars, legends' examples of shapes."""
HEAT_MAP = "cividis"  # even steps of lightness for every colour vision

MASK_COLOURS = {
    "": INK,
    "Dense": "#8c8c8c",
    "WAGLE": "#d55e00",
    "Random": "#0072b2",
    "Magnitude": "#009e73",
    "Wanda": "#cc79a7",
    "LoRA": "#e69f00",
    "SNIP": "#56b4e9",
    "WAGLE-CL": "#882255",
    "WAGLE-GN": "#332288",
    "gradient": "#117733",
    "FFN": "#999933",
    "WAGLE-Fisher": "#aa7733",
    "Fisher ratio": "#6699cc",
    "Neuron": "#44aa99",
    "Activation ratio": "#ddcc77",
    "MemFlex": "#661100",
}
_OTHER_MASK = "#aa4499"  # a score of one's own, a mask of unknown origin

METHOD_SHAPES: dict[str, tuple[str, Any]] = {  # marker and line
    "Original": ("*", "-"),
    "Retrained": ("8", "-"),
    "Retain-only": ("8", "-"),
    "GradDiff": ("o", "-"),
    "NPO": ("s", "--"),
    "PO": ("^", "-."),
    "GA": ("v", ":"),
    "FT": ("D", (0, (8, 2))),
    "SimNPO": ("P", (0, (5, 1, 1, 1, 1, 1))),
    "DPO": ("X", (0, (3, 3))),
    "RMU": ("<", (0, (1, 1))),
    "GA+KL": (">", (0, (6, 1, 1, 1))),
    "KL": ("p", (0, (2, 1))),
    "CL": ("h", (0, (4, 1, 2, 1))),
    "CL+KL": ("$K$", (0, (10, 1))),
    "RL": ("d", (0, (1, 3))),
    "l1_sparse": ("H", (0, (7, 1, 2, 1))),
    "AltPO": ("$A$", (0, (9, 1))),
    "WGA": ("$W$", (0, (8, 1))),
    "TNPO": ("$T$", (0, (7, 1))),
    "SatImp": ("$S$", (0, (6, 1))),
    "UNDIAL": ("$U$", (0, (5, 1))),
    "CE-U": ("$E$", (0, (4, 2))),
    "IHL": ("$I$", (0, (3, 2))),
    "FLAT": ("$F$", (0, (2, 2))),
    "PDU": ("$P$", (0, (1, 2))),
    "TaskArithmetic": ("$M$", (0, (9, 2))),
}
_OTHER_METHOD = ("$+$", (0, (3, 1, 1, 1)))

DASHES = ("-", "--", "-.", ":")
"""Lines in :data:`INK` that mark places on an axis; they stand for no method."""

_TITLES = {method.name: method.title for method in METHODS.values()}

_STYLE: dict[Any, Any] = {
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


def colour_of(mask: str) -> str:
    """The colour of a mask, by the name that it has in tables."""
    return MASK_COLOURS.get(mask, _OTHER_MASK)


def shape_of(method: str) -> tuple[str, Any]:
    """Marker and line style of a method, by the name that it has in tables or configurations."""
    return METHOD_SHAPES.get(_TITLES.get(method, method), _OTHER_METHOD)


def marker_of(method: str, mask: str) -> dict[str, Any]:
    """A method's marker in its mask's colour, as options of a line.

    A letter has an edge of its own colour: a white one would make it thin.
    """
    marker, colour = shape_of(method)[0], colour_of(mask)
    edge = colour if marker.startswith("$") else "white"
    return {"marker": marker, "color": colour, "markeredgecolor": edge, "markeredgewidth": 0.4}


def label_of(text: object) -> str:
    """Text that matplotlib shows as it is: dollars are no formulas, and nothing is left out."""
    shown = plain(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown  # legends skip what begins so


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """The function, run under this module's style without changing the caller's."""

    @wraps(draw)
    def in_style(*arguments: Any, **options: Any) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # a notebook's own style would change sizes and colours
            matplotlib.rcParams.update(_STYLE)
            return draw(*arguments, **options)

    return in_style
