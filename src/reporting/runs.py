"""Finished runs, read from their folders."""

from __future__ import annotations

import contextlib
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wagle.catalogue import BENCHMARKS, METHODS
from wagle.entries import label_of
from wagle.errors import WagleError
from wagle.loggers.folder_lock import in_use
from wagle.loggers.run_folder import (
    CONFIG,
    FINISHED,
    MANIFEST,
    REFERENCES,
    RESULTS,
    TRAINING_LOG,
    flatten,
    read_document,
    read_manifest,
)
from wagle.metrics.benchmark import NO_BENCHMARK, Benchmark
from wagle.metrics.benchmarks import benchmark_of
from wagle.reporting.planned import ORIGINAL
from wagle.reporting.table_masks import DENSE, LORA, MASKS
from wagle.terminal import say

METHOD_NAMES = {"origin": ORIGINAL, **{method.name: method.title for method in METHODS.values()}}
"""Methods as papers name them, by their names in configurations."""
MASK_NAMES = {score_type: name for name, score_type in MASKS.items()}
"""Masks as papers name them, by the score types that make them."""

UNKNOWN = "unknown"
"""The method of a saved model that does not say how it was made."""
UNKNOWN_MASK = "mask of unknown origin"
"""A mask file that does not say what made it, as published ones do not."""


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
        return METHOD_NAMES.get(method, label_of(method))

    @property
    def mask(self) -> str:
        """What chose the weights, as papers name it, like ``WAGLE``; empty for the original."""
        if self.is_original or self.method == UNKNOWN:
            return ""
        config = self.training_config
        if config["unlearn.use_lora"]:
            return LORA
        if config["unlearn.mask_path"] is None:
            return DENSE
        if not self.manifest.get("mask"):  # nothing recorded it; the report says so
            score_type = config["unlearn.score_type"]
            return MASK_NAMES.get(score_type, label_of(score_type))
        score_type = self.mask_provenance.get("unlearn.score_type")
        return MASK_NAMES.get(score_type, score_type) if score_type else UNKNOWN_MASK

    @property
    def mask_provenance(self) -> Mapping[str, str]:
        """What made the mask, as its file says; empty where it does not, or there is no mask."""
        return (self.manifest.get("mask") or {}).get("provenance", {})

    @property
    def training_config(self) -> Mapping[str, Any]:
        """The configuration that the evaluated model was trained with, as far as it is known."""
        trained_with = self.manifest.get("trained_with")
        return dict(flatten(trained_with)) if trained_with else self.config

    @property
    def trained(self) -> bool:
        """Whether the run changed the model before it evaluated it."""
        return "train" in self.manifest["seconds"]

    @property
    def unlearning_seconds(self) -> float:
        """Time of mask and training together."""
        seconds = self.manifest["seconds"]
        return seconds.get("mask", 0.0) + seconds.get("train", 0.0)

    @property
    def benchmark(self) -> Benchmark:
        """What its numbers are about; where its task is not known, a benchmark without numbers."""
        config = {**self.config, "unlearn.task_name": self.results["task"]}
        return benchmark_of(config) if config["unlearn.task_name"] in BENCHMARKS else NO_BENCHMARK

    @property
    def references(self) -> Mapping[str, Mapping[str, float]]:
        """Numbers of models whose results the run was given, by their titles."""
        return self.document(REFERENCES) or {}

    def document(self, name: str) -> Any | None:
        """The content of another document of the run, such as ``tofu.json``, if it is there."""
        if not (self.folder / name).is_file():
            return None
        return read_document(self.folder, name, self.manifest)


def find_run_folders(folders: Sequence[Path]) -> list[Path]:
    """The run folders among these, and those below the ones that are none themselves."""
    found = []
    for folder in folders:
        below = [folder] if (folder / MANIFEST).is_file() else _below(folder)
        found += below or [folder]
    return list({folder.resolve(): folder for folder in found}.values())


def _below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob(MANIFEST))


def read_run(folder: Path, title: str | None = None) -> Run:
    """Read a finished run's folder; the title is the folder's name unless given.

    Raises:
        WagleError: there is no such folder, the run is not finished, or a file is damaged or no
            run's; the message names it.
    """
    manifest = read_manifest(folder)
    if manifest.get("status") != FINISHED or not (folder / RESULTS).is_file():
        state, reason = state_of(folder, manifest)
        said = [reason] if state in ("killed", "damaged") else [state, reason]
        what = ": ".join(part for part in said if part)
        raise WagleError(f"the run in {folder} is not finished: {what}")
    log = folder / TRAINING_LOG
    run = Run(
        title=title or folder.resolve().name,
        folder=folder,
        config=dict(flatten(_sections(folder, CONFIG, manifest))),
        results=_numbers(_sections(folder, RESULTS, manifest)),
        manifest=manifest,
        log=read_document(folder, TRAINING_LOG, manifest) if log.is_file() else [],
    )
    for name, part, keys in (
        (CONFIG, run.config, ("unlearn.use_lora", "unlearn.mask_path", "unlearn.score_type")),
        (RESULTS, run.results, ("task", "method", "density", "seed")),
        (MANIFEST, run.manifest, ("seconds",)),
    ):
        missing = [key for key in keys if key not in part]
        if missing:
            raise WagleError(f"{folder / name} is not of a run: it lacks {', '.join(missing)}")
    return run


def tasks_of(folders: Sequence[Path]) -> list[str]:
    """``unlearn.task_name`` of the finished runs among these folders, each once."""
    tasks: dict[str, None] = {}
    for folder in folders:
        with contextlib.suppress(WagleError):  # reading the runs says what is wrong
            results = _sections(folder, RESULTS, read_manifest(folder))
            tasks |= dict.fromkeys([str(results.get("task"))])
    return list(tasks)


def _sections(folder: Path, name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    document = read_document(folder, name, manifest)
    if not isinstance(document, dict):
        raise WagleError(f"{folder / name} is not of a run: it holds no object")
    return document


def state_of(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """What has become of a run that has not finished: a word, and in one line why."""
    status = str(manifest.get("status"))
    if status == "running" and not in_use(folder):
        return "killed", "its process has ended without a word"
    if status == FINISHED:
        return "damaged", f"its {RESULTS} is missing"
    return status, str(manifest.get("error", "")).strip().partition("\n")[0]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read finished runs and title each by its method and mask, and by what else sets them apart.

    Folders of runs that have not finished, or are damaged, are left out with a note each.

    Raises:
        WagleError: no run is left.
    """
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except WagleError as error:
            say(f"left out: {error}", sys.stderr)
    if not runs:
        raise WagleError("none of these folders holds a finished run")
    titles = [title_of(run) for run in runs]
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


def _numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results with infinities for what stands for them in JSON."""
    return {name: math.inf if value == "inf" else value for name, value in results.items()}


def title_of(run: Run) -> str:
    """Method and mask, like ``GradDiff+WAGLE``."""
    return f"{run.method}+{run.mask}" if run.mask not in ("", DENSE) else run.method


def _ratio(run: Run) -> str:
    density = run.results["density"]
    return "ρ unknown" if density is None else f"ρ = {density:.4g}"


def _seed(run: Run) -> str:
    return f"seed {run.results['seed']}"
