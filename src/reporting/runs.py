"""Finished runs, read from their folders."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src.config import METHOD_ALIASES
from src.errors import WagleError
from src.loggers.json_logger import CONFIG, MANIFEST, RESULTS, TRAINING_LOG
from src.reporting.plan import DENSE, LORA, MASKS, ORIGINAL

_METHOD_NAMES = {"origin": ORIGINAL, **{name: alias for alias, name in METHOD_ALIASES.items()}}
_MASK_NAMES = {score_type: name for name, score_type in MASKS.items()}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        title: its name in tables and figures.
        folder: the run folder.
        config: every key's value by ``section.key``.
        results: the flat summary.
        manifest: versions, device, seconds, memory.
        log: the training log, one dict per logged step; empty where nothing was trained.
    """

    title: str
    folder: Path
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    manifest: Mapping[str, Any]
    log: Sequence[Mapping[str, float]]

    @property
    def is_original(self) -> bool:
        """Whether it evaluates the model as it was before unlearning."""
        return self.method == ORIGINAL

    @property
    def method(self) -> str:
        """The unlearning method as papers name it, like ``GradDiff``."""
        method = self.results["method"]
        return _METHOD_NAMES.get(method, method)

    @property
    def mask(self) -> str:
        """What chose the weights, as papers name it, like ``WAGLE``; empty for the original."""
        if self.is_original:
            return ""
        if self.config["unlearn.use_lora"]:
            return LORA
        if self.config["unlearn.mask_path"] is None:
            return DENSE
        return _MASK_NAMES[self.config["unlearn.score_type"]]

    @property
    def trained(self) -> bool:
        """Whether the run changed the model before it evaluated it."""
        return "train" in self.manifest["seconds"]

    @property
    def unlearning_seconds(self) -> float:
        """Time of mask and training together."""
        seconds = self.manifest["seconds"]
        return seconds.get("mask", 0.0) + seconds.get("train", 0.0)

    def document(self, name: str) -> Any | None:
        """The content of another document of the run, such as ``tofu.json``, if it is there."""
        path = self.folder / name
        return _read(path) if path.is_file() else None


def read_run(folder: Path, title: str | None = None) -> Run:
    """Read a finished run's folder; the title is the folder's name unless given.

    Raises:
        WagleError: there is no such folder, the run is not finished, or a file is damaged.
    """
    if not (folder / MANIFEST).is_file():
        raise WagleError(f"{folder} is no run folder: it has no {MANIFEST}")
    manifest = _read(folder / MANIFEST)
    if not (folder / RESULTS).is_file():
        reason = manifest.get("error", f"its status is {manifest.get('status')!r}")
        raise WagleError(f"the run in {folder} is not finished: {reason}")
    log = folder / TRAINING_LOG
    return Run(
        title=title or folder.resolve().name,
        folder=folder,
        config=dict(_flatten(_read(folder / CONFIG))),
        results=_read(folder / RESULTS),
        manifest=manifest,
        log=_read(log) if log.is_file() else [],
    )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read finished runs and title each by its method and mask, and by what else sets them apart.

    Raises:
        WagleError: as :func:`read_run`.
    """
    runs = [read_run(folder) for folder in folders]
    titles = [_title(run) for run in runs]
    for detail in (_ratio, _seed, lambda run: str(run.folder)):
        details = [detail(run) for run in runs]
        found = defaultdict(set)
        for title, text in zip(titles, details, strict=True):
            found[title].add(text)
        titles = [
            f"{title}, {text}" if len(found[title]) > 1 else title
            for title, text in zip(titles, details, strict=True)
        ]
    return [replace(run, title=title) for run, title in zip(runs, titles, strict=True)]


def _title(run: Run) -> str:
    return f"{run.method}+{run.mask}" if run.mask not in ("", DENSE) else run.method


def _ratio(run: Run) -> str:
    return f"ρ = {run.results['density']:.4g}"


def _seed(run: Run) -> str:
    return f"seed {run.results['seed']}"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WagleError(f"{path} cannot be read as JSON: {error}") from error


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
