"""A finished run that kept its model, opened again beside the models that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from wagle.config import UnlearnConfig, load_config
from wagle.dataset.encoding import Encoded
from wagle.dataset.sources import row_encoder
from wagle.errors import WagleError
from wagle.loggers.run_folder import CONFIG, FINISHED, read_manifest
from wagle.model.architecture import linear_names
from wagle.model.environment import mask_fingerprint
from wagle.model.opened import TRAINLESS, OpenedRun, opened
from wagle.model.patching import RETAIN, UNLEARNED
from wagle.model.record import find_saved_model
from wagle.optim.bitmask import Mask
from wagle.unlearn.mask.file import load_mask

ORIGINAL = "original"


class FinishedRun:
    """A finished run with its model, its mask and its rows.

    Args:
        folder: of the run, with its model; or of the evaluation of a model that was not changed.
        retain_model: the model that never saw the forget set, where there is one: a hub id, a
            folder or a run folder.
        original_model: likewise the model before unlearning; ``None``: the run's own.

    Attributes:
        config: of the run.
        run: with the unlearned model loaded.
        trained: whether the run has unlearned, and not only evaluated.

    Raises:
        WagleError: it is no finished run, or holds no model.
    """

    def __init__(
        self, folder: Path, *, retain_model: str | None = None, original_model: str | None = None
    ) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        if self.manifest.get("status") != FINISHED:
            raise WagleError(f"the run in {folder} is not finished: there is no model to look at")
        self.config = config_of(folder)
        self.trained = self.config.unlearn.unlearn_method != TRAINLESS
        own = self.config.overall.model_name
        self._named = {RETAIN: retain_model, ORIGINAL: original_model or own}
        changes = {}
        if self.trained:
            saved = self.config.unlearn.resume_path or str(find_saved_model(folder))
            changes["unlearn.resume_path"] = saved
        self.run = opened(self.config, changes)
        self._opened: dict[str, OpenedRun] = {UNLEARNED: self.run}

    def model(self, name: str) -> PreTrainedModel | None:
        """A model by its role, loaded once; ``None`` where nobody names the retain-only one."""
        if name not in self._opened:
            given = self._named[name]
            if given is None:
                return None
            changes = {
                "overall.model_name": str(find_saved_model(Path(given))),
                "unlearn.unlearn_method": TRAINLESS,
                "unlearn.mask_path": None,
                "unlearn.resume_path": None,
            }
            self._opened[name] = opened(self.config, changes)
        return self._opened[name].model

    def model_fingerprint(self, name: str) -> str:
        """Of what a loaded model computes, by its role."""
        return self._opened[name].fingerprints["model"]

    @cached_property
    def mask(self) -> Mask | None:
        """The run's mask, from its file.

        Raises:
            WagleError: the file is gone, or is not the mask that the run was made with.
        """
        path = self.config.unlearn.mask_path
        if path is None or not self.trained:
            return None
        return mask_of(self.folder, self.manifest, Path(path), self.run.model)

    @cached_property
    def forget_rows(self) -> list[Encoded]:
        """All rows of the forget set, as they are trained on."""
        name = self.config.dataset.forget_dataset_name
        encode = row_encoder(name, self.run.tokenizer, self.run.template)
        return [encode(row) for row in self.run.data.forget_rows()]

    def first_rows(self, name: str, count: int) -> list[Encoded]:
        """The first rows of a data set."""
        encode = row_encoder(name, self.run.tokenizer, self.run.template)
        rows = self.run.data.rows(name, "retain")
        return [encode(row) for row in rows.select(range(min(len(rows), count)))]

    @property
    def pad_token_id(self) -> int:
        """For padding batches."""
        pad: int = self.run.tokenizer.pad_token_id
        return pad

    @cached_property
    def fingerprints(self) -> dict[str, Any]:
        """Of models and mask, so that nothing measured of others is taken over."""
        named = (*self._named.values(), self.config.overall.model_name)
        return {
            "unlearned": self.run.fingerprints["model"],
            "named": [_weights_stamp(name) for name in named],
            "mask": mask_fingerprint(self.mask) if self.mask is not None else None,
        }


def config_of(folder: Path) -> UnlearnConfig:
    """The configuration of a run."""
    return load_config(["--config_file", str(folder / CONFIG)], prog="finished", description="")


def mask_of(folder: Path, manifest: Mapping[str, Any], path: Path, model: PreTrainedModel) -> Mask:
    """The mask of a run, from its file.

    Args:
        folder, manifest: of the run.
        path: of the mask.
        model: of the shapes that the run's model has.

    Raises:
        WagleError: the file is gone, or is not the mask that the run was made with.
    """
    shapes = {name: p.shape for name, p in model.named_parameters()}
    mask = load_mask(path, shapes, linear_names(model))
    known = manifest.get("fingerprints", {}).get("mask")
    if known is not None and mask_fingerprint(mask) != known:
        raise WagleError(f"{path} is not the mask that the run in {folder} was made with")
    return mask


def _weights_stamp(name: str | None) -> Any:
    """A model's name and, of a folder, its weights' sizes and times."""
    folder = Path(name) if name else None
    if folder is None or not folder.is_dir():
        return name
    where = find_saved_model(folder)
    files = sorted(path for path in where.iterdir() if path.suffix in (".safetensors", ".bin"))
    return [name, [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]]
