"""The masks of tables: their names, what makes them, and where tables keep their files."""

from __future__ import annotations

import hashlib
import json

from wagle.catalogue import SCORES
from wagle.config import UNLEARN_KEYS, UnlearnConfig
from wagle.entries import Score
from wagle.errors import ConfigError

DENSE, LORA = "Dense", "LoRA"
MASKS: dict[str, str | None] = {
    **{DENSE: None, LORA: None},
    **{score.mask_title: score.name for score in SCORES.values()},
}
"""Score type by the name that a mask has in tables; scores from outside are in ``SCORES`` alone."""

_MASK_KEYS = (
    *("overall.model_name", "overall.dtype", "unlearn.gradient_accumulation_steps"),
    *("unlearn.mask_scope", "unlearn.mask_exclude", "unlearn.attribution_dtype"),
)


def plain(number: float) -> str:
    """A ratio without exponent, as names of mask files carry it."""
    return f"{number:.8f}".rstrip("0").rstrip(".")


def find_mask(name: str) -> str:
    """The name that a mask has in tables, whatever the case, or from its score type.

    Raises:
        ConfigError: there is no such mask.
    """
    for title, score_type in MASKS.items():
        if name.lower() in (title.lower(), score_type):
            return title
    raise ConfigError(
        f"there is no mask {name!r}; --masks takes {', '.join(MASKS)}, or a file.py with a score"
    )


def score_of(mask: str) -> Score | None:
    """What makes a mask; ``None`` where all weights may change.

    Args:
        mask: a name in ``MASKS``, or of a score from outside.
    """
    if mask in MASKS:
        name = MASKS[mask]
        return None if name is None else SCORES[name]
    found = [score for score in SCORES.values() if score.code and score.label == mask]
    if len(found) > 1:
        raise ConfigError(f"{' and '.join(s.name for s in found)} have one name in tables; rename")
    return found[0]


def mask_folder(config: UnlearnConfig, score: Score) -> str:
    """Shared by all masks that are made from the same model, data and, where it matters, seed."""
    relevant = [
        (key.name, config[key.name])
        for key in UNLEARN_KEYS
        if key.name in _MASK_KEYS or (key.name.startswith("dataset.") and not key.inert)
    ]
    if score.code:
        relevant.append(("code", score.code))
    digest = hashlib.sha256(json.dumps(relevant).encode()).hexdigest()[:8]
    seed = f"seed{config.overall.seed}" if score.depends_on("seed") else "any_seed"
    return f"{digest}/{seed}"


def mask_name(config: UnlearnConfig, score: Score, ratio: float | None) -> str:
    """Of a mask's file in that folder, with all that it depends on beside what the folder says."""
    mu = f"_mu{config.unlearn.mu!r}" if score.depends_on("mu") else ""
    return f"{score.label}{mu}_{plain(ratio or 1)}.safetensors"
