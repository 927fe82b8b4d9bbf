"""A finished run that kept its model, opened again beside the models that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.config import UnlearnConfig, load_config
from wagle.dataset.encoding import Encoded
from wagle.dataset.sources import row_encoder
from wagle.errors import WagleError
from wagle.loggers.run_folder import CONFIG, FINISHED, read_manifest
from wagle.model.architecture import linear_names
from wagle.model.environment import mask_fingerprint
from wagle.model.loading import check_model
from wagle.model.opened import TRAINLESS, OpenedRun, opened
from wagle.model.patching import RETAIN, UNLEARNED
from wagle.model.record import find_saved_model
from wagle.optim.bitmask import Mask
from wagle.planning.skeleton import read_configuration, skeleton
from wagle.unlearn.mask.file import load_mask

ORIGINAL = "original"


class FinishedRun:
    """A finished run with its model, its mask and its rows.

    Args:
        folder: of the run, with its model; or of the evaluation of a model that was not changed.
        command: that looks at it, whose keys name the models, for messages.
        retain_model: the model that never saw the forget set, where there is one: a hub id, a
            folder or a run folder.
        original_model: likewise the model before unlearning; ``None``: the run's own.

    Attributes:
        config: of the run.
        run: with the unlearned model loaded.
        trained: whether the run has unlearned, and not only evaluated.

    Raises:
        WagleError: it is no finished run, or holds no model; a named model is not there, is of
            another size, or has another tokenizer.
    """

    def __init__(
        self,
        folder: Path,
        command: str,
        *,
        retain_model: str | None = None,
        original_model: str | None = None,
    ) -> None:
        self.folder = folder
        self.manifest, self.config, saved = finished_run(folder)
        self.trained = saved is not None
        own = self.config.overall.model_name
        self._named = {RETAIN: retain_model, ORIGINAL: original_model or own}
        tokenizers = {
            role: self._check_named(role, f"--{command}.{key} FOLDER")
            for role, key in ((RETAIN, "retain_model"), (ORIGINAL, "original_model"))
            if self._named[role] is not None
        }
        self.run = opened(self.config, {"unlearn.resume_path": saved} if self.trained else {})
        self._check_alike(tokenizers)
        self._opened: dict[str, OpenedRun] = {UNLEARNED: self.run}

    def model(self, name: str) -> PreTrainedModel | None:
        """A model by its role, loaded once; ``None`` where nobody names the retain-only one."""
        if name not in self._opened:
            given = self._named[name]
            if given is None:
                return None
            changes = {
                "overall.model_name": _place(given),
                "unlearn.unlearn_method": TRAINLESS,
                "unlearn.mask_path": None,
                "unlearn.resume_path": None,
            }
            self._opened[name] = opened(self.config, changes)
        return self._opened[name].model

    def _check_named(self, role: str, key: str) -> PreTrainedTokenizerBase:
        """The tokenizer of a named model, which is there."""
        cache, hint = Path(self.config.overall.cache_dir), f"a local model folder with {key}"
        name = self._named[role]
        assert name is not None  # else it is not asked for
        return check_model(_place(name), cache, what=f"{role} model", hint=hint)

    def _check_alike(self, tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
        """Whether the named models have the run's layers, and read rows as the same tokens."""
        cache, own = Path(self.config.overall.cache_dir), Layout.of(self.run.model).of_linear()
        for role, tokenizer in tokenizers.items():
            name = str(self._named[role])
            with skeleton(read_configuration(_place(name), cache), self.run.dtype) as model:
                shapes = Layout.of(model).of_linear()
            if shapes != own:
                raise WagleError(
                    f"the {role} model {name} is of another architecture or size than the run's in "
                    f"{self.folder}: they cannot be compared weight by weight"
                )
            if self._forget_rows(tokenizer) != self.forget_rows:
                raise WagleError(
                    f"the {role} model {name} has another tokenizer than the run's in "
                    f"{self.folder}: the same row is other tokens to it"
                )

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
        return mask_of(self.folder, self.manifest, Path(path), Layout.of(self.run.model))

    @cached_property
    def forget_rows(self) -> list[Encoded]:
        """All rows of the forget set, as they are trained on."""
        return self._forget_rows(self.run.tokenizer)

    def _forget_rows(self, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
        name = self.config.dataset.forget_dataset_name
        encode = row_encoder(name, tokenizer, self.run.template)
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


def finished_run(folder: Path) -> tuple[dict[str, Any], UnlearnConfig, str | None]:
    """What is there of a finished run that has a model.

    Returns:
        Manifest, configuration and where its model lies; ``None``: it has only evaluated one.

    Raises:
        WagleError: it is no finished run, or holds no model.
    """
    manifest = read_manifest(folder)
    if manifest.get("status") != FINISHED:
        raise WagleError(f"the run in {folder} is not finished: there is no model to look at")
    config = config_of(folder)
    if config.unlearn.unlearn_method == TRAINLESS:
        return manifest, config, None
    return manifest, config, config.unlearn.resume_path or str(find_saved_model(folder))


class Layout(NamedTuple):
    """Shapes of a model's tensors, and names of its linear layers: what a mask file is to fit."""

    shapes: dict[str, torch.Size]
    linear: list[str]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Layout:
        """That of a model, which need not have its weights."""
        return cls({name: p.shape for name, p in model.named_parameters()}, linear_names(model))

    def of_linear(self) -> dict[str, torch.Size]:
        """The shapes of the linear layers alone; a vocabulary may have more rows for padding."""
        return {name: shape for name, shape in self.shapes.items() if name in self.linear}


def mask_of(folder: Path, manifest: Mapping[str, Any], path: Path, layout: Layout) -> Mask:
    """The mask of a run, from its file.

    Args:
        folder, manifest: of the run.
        path: of the mask.
        layout: of the run's model.

    Raises:
        WagleError: the file is gone, or is not the mask that the run was made with.
    """
    mask = load_mask(path, *layout)
    known = manifest.get("fingerprints", {}).get("mask")
    if known is not None and mask_fingerprint(mask) != known:
        raise WagleError(f"{path} is not the mask that the run in {folder} was made with")
    return mask


def _place(name: str) -> str:
    """Where a named model lies: the folder of a run holds one."""
    return str(find_saved_model(Path(name)))


def _weights_stamp(name: str | None) -> Any:
    """A model's name and, of a folder, its weights' sizes and times."""
    folder = Path(name) if name else None
    if folder is None or not folder.is_dir():
        return name
    where = find_saved_model(folder)
    files = sorted(path for path in where.iterdir() if path.suffix in (".safetensors", ".bin"))
    return [name, [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]]
