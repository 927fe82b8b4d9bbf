"""What attacks on a run have found: lines of a table, and numbers for tables of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wagle.metrics.benchmark import Metric

R = Metric(
    "attack R", "Relearning: the retain-only model's gain by this one's, 0 to 1.", 1, "attack", "R"
)
Q = Metric(
    "attack Q", "Knowledge before rounding to NF4 by that after it, at most 1.", 1, "attack", "Q"
)

_LINES = tuple(
    Metric(f"attack {column} {{}}", f"{meaning}, by the attack {{0}}.", better)
    for column, meaning, better in (
        ("before", "Knowledge of the forget rows before", 0),
        ("after", "Knowledge of the forget rows after", -1),
        ("retain-only", "As after, of the retain-only model", 0),
        ("original", "As after, of the original model", 0),
        ("Q", "Knowledge before rounding by that after it, at most 1", 1),
        ("R", "The retain-only model's gain by this one's, 0 to 1", 1),
        ("gap", "Mean distance between the curves of this and the retain-only model", 0),
    )
)
Document = Mapping[str, Any]
"""The content of ``attack.json``."""


def attack_lines(found: Document) -> dict[str, dict[str, float]]:
    """By attack: knowledge before and after it, also of the other models, and what follows."""
    lines: dict[str, dict[str, float]] = {}
    for name, part in found["parts"].items():
        _, _, short = name.partition(" ")
        if "Q" in part:
            before, after = part["before"], part["after"]
            line = {"before": before["forget"], "after": after["forget"], "Q": part["Q"]}
        else:
            curves = part["curves"]
            line = {name: curve[-1][1] for name, curve in curves.items() if name != "unlearned"}
            line |= {"before": curves["unlearned"][0][1], "after": curves["unlearned"][-1][1]}
            line |= {"R": part["R"], "gap": part["gap"]} if "R" in part else {}
        lines[short] = line
    return lines


def attack_numbers(found: Document | None) -> dict[str, float]:
    """R of relearning as open-unlearning does, and Q of NF4, where they have been measured."""
    parts = found["parts"] if found else {}
    relearned = parts.get("relearning open_unlearning all", {})
    rounded = parts.get("quantization nf4", {})
    return {
        **({R.key: relearned["R"]} if "R" in relearned else {}),
        **({Q.key: rounded["Q"]} if "Q" in rounded else {}),
    }


def report_numbers(found: Document | None) -> dict[str, float]:
    """What the report shows of a run: :func:`attack_numbers`, and each line's as ``attack …``."""
    lines = attack_lines(found) if found else {}
    every = {f"attack {c} {name}": v for name, line in lines.items() for c, v in line.items()}
    return attack_numbers(found) | every


def attack_metric(key: str) -> Metric | None:
    """What one of these numbers is; ``None`` where it is none of them."""
    metrics = (metric.called(key) for metric in (R, Q, *_LINES))
    return next((metric for metric in metrics if metric), None)
