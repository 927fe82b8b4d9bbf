"""Where a run's mask, update and knowledge sit: lines of a table, and a number for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wagle.metrics.benchmark import Metric

UDS = Metric(
    "depth UDS",
    "How much of the forget rows' knowledge is gone from the blocks that held it, 0 to 1.",
    1,
    "depth",
    "UDS",
)

Document = Mapping[str, Any]
"""The content of ``depth.json``."""

COLUMNS = ("density", "score", "update", "e_forget", "e_retain", "retain-only", "unlearned")
"""Of :func:`depth_lines`: share of the layer's weights that is selected, of the sum of all scores,
L2 norm of the update, effects of the mask, nats lost by patching behind the layer."""


def depth_lines(found: Document) -> dict[str, dict[str, float]]:
    """By layer, what of :data:`COLUMNS` there is."""
    lines = {layer: dict(line) for layer, line in found["layers"]["by layer"].items()}
    for source, losses in found.get("blocks", {}).items():
        for block, lost in enumerate(losses):
            lines[str(block)][source] = lost
    return lines


def depth_numbers(found: Document | None) -> dict[str, float]:
    """The score, where it has been measured."""
    return {UDS.key: found["UDS"]} if found and "UDS" in found else {}
