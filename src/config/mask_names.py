"""What the name of a mask file says: its ratio, its score type, and placeholders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from wagle.catalogue import SCORE_ALIASES, SCORES
from wagle.entries import label_of


def plain_number(number: float) -> str:
    """The shortest decimal of a float, without exponent or useless zeros: 0.8, 1, 0.000001."""
    return f"{Decimal(repr(float(number))):f}".removesuffix(".0")


PLACEHOLDERS = {
    "score": "unlearn.score_type",
    "ratio": "unlearn.mask_ratio",
    "mu": "unlearn.mu",
    "seed": "overall.seed",
    "task": "unlearn.task_name",
}
"""Keys by what stands for their values in ``unlearn.mask_path``, in braces."""

SHARED = dict.fromkeys(PLACEHOLDERS[name] for name in ("score", "ratio", "mu"))
"""Values that leave the placeholders of what sums of gradients do not depend on."""


def filled(mask_path: str, values: Mapping[str, Any]) -> str:
    """The path with each placeholder that has a value replaced by it."""

    def value(match: re.Match[str]) -> str:
        given = values.get(PLACEHOLDERS.get(match[1], ""))
        if given is None:
            return match[0]
        return plain_number(given) if isinstance(given, float) else label_of(str(given))

    return re.sub(r"\{(\w*)\}", value, mask_path)


def mask_ratio(path: str | Path) -> float | None:
    """The ratio in a mask's file name: ``tofu_0.8.pt`` and ``with_0.8.safetensors`` carry 0.8.

    Returns:
        A number in (0, 1], or ``None`` where the name carries none.
    """
    match = re.search(r"_(\d*\.?\d+)\.(pt|safetensors)$", Path(path).name)
    ratio = float(match.group(1)) if match else 0.0
    return ratio if 0 < ratio <= 1 else None


def mask_file(values: Mapping[str, Any]) -> str:
    """The filled ``unlearn.mask_path``, before the score type is resolved."""
    path = values["unlearn.mask_path"]
    score_type = values["unlearn.score_type"] or score_type_of_folder(path)
    return filled(path, {**values, "unlearn.score_type": score_type})


def score_type_of_folder(mask_path: str | None) -> str:
    """Published masks lie in a folder that is named after their score type."""
    folder = Path(mask_path).parent.name if mask_path else ""
    folder = SCORE_ALIASES.get(folder, folder)
    return folder if folder in SCORES else "wagle"
