"""What made a mask, as its file says, against what would make it now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wagle.catalogue import SCORES

SEEDS = ("overall.seed", "dataset.dataset_seed")
"""Entries that may differ: published practice shares a mask between seeds."""

_DESCRIBED_BY = {
    "model": ("overall.model_name",),
    "forget examples": (
        *("dataset.forget_dataset_name", "dataset.forget_ratio", "dataset.dataset_seed"),
        "dataset.template",
    ),
    "retain examples": ("dataset.retain_dataset_name", "dataset.self_retain", "dataset.template"),
}
"""Fingerprints, and the entries that say in words what they are of. The words are compared only
where a file has no fingerprint: one model may lie in two folders."""

_WORDS = {word for words in _DESCRIBED_BY.values() for word in words}


def provenance_entries(score_type: str) -> tuple[str, ...]:
    """What a mask of a score type depends on: the entries of its provenance.

    Configuration keys stand for themselves; the others are explained at :class:`MaskOrigin`.
    """
    score = SCORES[score_type]
    gradients = score.gradients
    entries = ["unlearn.score_type", "model", "dtype"]
    if score.code:
        entries.append("score code")
    if score.has_ratio:
        entries.append("ratio")
    if score.ranks:
        entries += ["unlearn.mask_scope", "unlearn.mask_exclude"]
    if score.examples:
        entries += ["forget examples", "dataset.dataset_seed"]
    if gradients:
        entries.append("dataset.batch_size")
    if score.sums:
        entries.append("unlearn.attribution_dtype")
    if "retain" in score.examples:
        entries.append("retain examples")
    if score.depends_on("seed"):
        entries.append("overall.seed")
    if "retain" in gradients:  # elsewhere A scales all scores alike
        entries.append("unlearn.gradient_accumulation_steps")
    if score.depends_on("mu"):
        entries.append("unlearn.mu")
    words = [word for entry in entries for word in _DESCRIBED_BY.get(entry, ())]
    return tuple(dict.fromkeys([*entries, *words]))


Origin = Literal["made", "loaded", "unknown origin", "accepted"]
"""How a run came by its mask; :class:`MaskOrigin` says what each means."""


@dataclass(frozen=True)
class MaskOrigin:
    """Where a run's mask comes from; ``manifest.json`` holds it under ``mask``.

    Attributes:
        path: of the mask file.
        origin: ``made`` by this run; ``loaded``: made earlier from the same model, examples and
            settings, seeds apart; ``unknown origin``: the file does not say what made it, as
            published masks do not; ``accepted``: made by something else, and
            ``unlearn.mask_mismatch`` is ``accept``.
        provenance: what made it, as its file says, such as ``{"unlearn.score_type": "wagle",
            "ratio": "0.8", "model": "5b0e2a61…", "overall.seed": "0", …}``:
            ``ratio``, configuration keys, ``dtype`` of the weights, and fingerprints of the
            ``model``, ``forget examples`` and ``retain examples``. Score type and μ of the mask are
            these, whatever the configuration says.
        differences: for an accepted mask, (the file's value, this run's) by entry.
        seeds: the same for the seeds it depends on.
        unrecorded: what a file of an earlier version does not say.
    """

    path: str
    origin: Origin
    provenance: Mapping[str, str]
    differences: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    seeds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    unrecorded: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``origin`` in words, and without the empty parts."""
        parts = {
            "provenance": dict(self.provenance),
            "differences": {key: list(pair) for key, pair in self.differences.items()},
            "seeds": {key: list(pair) for key, pair in self.seeds.items()},
            "unrecorded": list(self.unrecorded),
        }
        origin: str = self.origin
        if origin == "accepted":
            origin += f" although it differs in {', '.join(self.differences)}"
        return {"path": self.path, "origin": origin, **{k: v for k, v in parts.items() if v}}


@dataclass(frozen=True)
class Comparison:
    """A file's provenance against that of this run; pairs are (the file's, this run's).

    Attributes:
        differences: of what decides which weights are selected.
        seeds: of the seeds.
        unrecorded: entries of this run that the file lacks.
    """

    differences: dict[str, tuple[str, str]]
    seeds: dict[str, tuple[str, str]]
    unrecorded: tuple[str, ...]

    def listing(self) -> str:
        """The differences, a line each."""
        return "\n".join(
            f"  {key}: {file} made it, this run has {run}"
            for key, (file, run) in self.differences.items()
        )


def compare_provenance(found: Mapping[str, str], wanted: Mapping[str, str]) -> Comparison:
    """Compare entries that both have; what only describes a fingerprint counts where it is missing.

    Args:
        found: from the file.
        wanted: of this run.
    """
    pairs = {k: (found[k], wanted[k]) for k in wanted if k in found and found[k] != wanted[k]}
    missing = tuple(key for key in wanted if key not in found and key not in _WORDS)
    differing = {key for key in pairs if key not in _WORDS and key not in SEEDS}
    for name, words in _DESCRIBED_BY.items():
        if name in differing:  # say in words what fingerprints only tell apart
            differing |= {word for word in words if word in pairs}
        elif name in missing:
            differing |= {word for word in words if word in pairs and word not in SEEDS}
    return Comparison(
        differences={key: pairs[key] for key in pairs if key in differing},
        seeds={key: pairs[key] for key in SEEDS if key in pairs},
        unrecorded=missing,
    )
