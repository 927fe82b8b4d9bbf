"""What a saved model says about how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wagle.errors import WagleError
from wagle.loggers.files import read_json
from wagle.loggers.run_folder import CHECKPOINTS, MANIFEST, RESULTS, read_document, read_manifest

RECORD = "unlearning.json"
"""The record's name, beside the weights."""


@dataclass(frozen=True)
class Record:
    """How an unlearned model was made.

    Attributes:
        method, mask, density, seed: as in the run's results.
        training: everything that decided the weights: the configuration's fingerprint without the
            evaluation, fingerprints of the model before, of the rows and of the mask, device and
            dtype. A run that would train with the same goes on from the saved model instead.
        certificate: of the weights that the mask left out
            (:class:`wagle.unlearn.mask.certificate.Certificate`).
        seconds: of mask and training.
        log: the training log.
        config: every key.
        resumed: when the run went on after an interruption, and after which step.
    """

    method: str
    mask: str | None
    density: float
    seed: int
    training: Mapping[str, Any]
    certificate: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)
    config: Mapping[str, Any] = field(default_factory=dict)
    resumed: list[dict[str, str]] = field(default_factory=list)

    @property
    def about(self) -> dict[str, Any]:
        """What results say about the model."""
        keys = ("method", "mask", "density", "seed")
        return {key: value for key, value in asdict(self).items() if key in keys}


def read_record(folder: Path) -> Record | None:
    """The record beside a saved model's weights; ``None`` where there is none, or it is damaged."""
    try:
        return Record(**read_json(folder / RECORD))
    except (WagleError, TypeError):
        return None


def find_saved_model(path: Path) -> Path:
    """The folder with the weights: of a run folder its ``checkpoints``, else ``path`` itself.

    Raises:
        WagleError: a run folder that holds no model.
    """
    if not (path / MANIFEST).is_file():
        return path
    if not (path / CHECKPOINTS).is_dir():
        raise WagleError(
            f"the run in {path} holds no model: it has not come so far, or was made with "
            "unlearn.save_model false; the same command with --unlearn.save_model true makes it"
        )
    return path / CHECKPOINTS


def about_run(folder: Path) -> dict[str, Any]:
    """What a run's results say about its model, for models that have no record of their own.

    Where the folder is no finished run's, nothing is known.
    """
    unknown = {"method": "unknown", "mask": None, "density": None, "seed": None}
    try:
        results = read_document(folder, RESULTS, read_manifest(folder))
        return {key: results[key] for key in unknown}
    except (WagleError, KeyError, TypeError):
        return unknown
