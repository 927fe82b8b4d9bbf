"""Run folders as records, whatever has become of them: for lists, comparisons and data frames.

In a notebook::

    from wagle.reporting.listing import frame_of

    runs = frame_of(["files/results"])  # a row for each run
    rows = frame_of(["files/results"], rows=True)  # for each run and question
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagle.config import UNLEARN_KEYS
from wagle.config.reading import shortened
from wagle.entries import label_of
from wagle.errors import ConfigError, WagleError
from wagle.loggers.files import replacing
from wagle.loggers.run_folder import CONFIG, FINISHED, flatten, read_document, read_manifest
from wagle.reporting.answers import asked_rows
from wagle.reporting.planned import ORIGINAL
from wagle.reporting.runs import (
    MASK_NAMES,
    METHOD_NAMES,
    Run,
    find_run_folders,
    read_run,
    state_of,
)
from wagle.reporting.table_masks import DENSE, LORA
from wagle.reporting.tables import values_of

if TYPE_CHECKING:
    import pandas as pd

FOREIGN, DAMAGED = "foreign", "damaged"
"""What stands for a status where there is no run, and where files are not as the run left them."""
_COMMIT = 8  # characters of it


@dataclass(frozen=True)
class Listed:
    """A run folder and what can be known of it.

    Attributes:
        status: of the manifest; or ``foreign``, ``damaged``, and ``killed`` where the process of a
            run that is still to be running has gone.
        reason: what is wrong; empty of a finished run.
        manifest: empty where it cannot be read.
        config: every key's value by ``section.key``; empty where it cannot be read.
        run: the run, where it has finished.
    """

    folder: Path
    status: str
    reason: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    run: Run | None = None

    @classmethod
    def of(cls, folder: Path) -> Listed:
        """Whatever the folder holds; nothing of it is used unless it is as the run left it."""
        try:
            manifest = read_manifest(folder)
        except WagleError as error:
            is_run = (folder / "manifest.json").exists()
            return cls(folder, DAMAGED if is_run else FOREIGN, str(error))
        try:
            if manifest["status"] == FINISHED:
                run = read_run(folder)
                return cls(folder, FINISHED, "", manifest, run.config, run)
            there = (folder / CONFIG).is_file()
            config = read_document(folder, CONFIG, manifest) if there else {}
            status, reason = state_of(folder, manifest)
            return cls(folder, status, reason, manifest, dict(flatten(config)))
        except (WagleError, AttributeError) as error:
            return cls(folder, DAMAGED, str(error), manifest)

    @property
    def about(self) -> dict[str, Any]:
        """What it is: where, when, how far, method, mask, ratio and seed."""
        config, run = self.config, self.run
        commit = self.manifest.get("git_commit")
        return {
            "folder": str(self.folder),
            "status": self.status,
            "reason": self.reason,
            "started": str(self.manifest.get("started", "")),
            "version": commit and commit[:_COMMIT] + ("+" if "+" in commit else ""),
            "task": run.results["task"] if run else config.get("unlearn.task_name"),
            "method": run.method if run else _method(config),
            "mask": run.mask if run else _mask(config),
            "ratio": run.results["density"] if run else None,
            "seed": run.results["seed"] if run else config.get("overall.seed"),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Keys that are not at their defaults."""
        return {
            key.name: self.config[key.name]
            for key in UNLEARN_KEYS
            if key.name in self.config and self.config[key.name] != key.default
        }

    @property
    def numbers(self) -> dict[str, float]:
        """Of a finished run, with seconds and memory of its phases and what attacks have found."""
        return values_of(self.run) if self.run else {}

    @property
    def headline(self) -> dict[str, float]:
        """The numbers that sum it up, as far as it has them."""
        keys = [metric.key for metric in self.run.benchmark.summary] if self.run else []
        return {key: self.numbers[key] for key in keys if key in self.numbers}


def _method(config: Mapping[str, Any]) -> str:
    name = config.get("unlearn.unlearn_method", "")
    return METHOD_NAMES.get(name, label_of(name))


def _mask(config: Mapping[str, Any]) -> str:
    if not config or _method(config) == ORIGINAL:
        return ""
    if config.get("unlearn.use_lora"):
        return LORA
    score = config.get("unlearn.score_type", "")
    return MASK_NAMES.get(score, label_of(score)) if config.get("unlearn.mask_path") else DENSE


def list_runs(folders: Sequence[Path]) -> Iterator[str]:
    """Aligned lines, a heading first: of each run when it began, what it is and what it found."""
    lines = [("started", "status", "run", "ρ", "seed", "numbers", "version", "folder")]
    for folder in folders:
        listed = Listed.of(folder)
        about = listed.about
        numbers = "  ".join(f"{name} {value:.3g}" for name, value in listed.headline.items())
        mask = f"+{about['mask']}" if about["mask"] not in ("", DENSE) else ""
        lines.append(
            (
                about["started"][:16].replace("T", " "),
                listed.status,
                f"{about['method']}{mask}",
                "" if about["ratio"] is None else f"{about['ratio']:.4g}",
                "" if about["seed"] is None else str(about["seed"]),
                numbers or shortened(listed.reason.partition("\n")[0]),
                about["version"] or "",
                about["folder"],
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(
            f"{text:{width}}" for text, width in zip(line, widths, strict=True)
        ).rstrip()


def frame_of(folders: Sequence[str | Path], *, rows: bool = False) -> pd.DataFrame:
    """Runs as a data frame.

    Of each run folder among these and below them there is a row with what it is, every setting and
    every number; folders that hold no finished run have a status and a reason in place of numbers.
    With ``rows`` there is one for each question that a finished run asked. What is no text, number
    or truth value is JSON.

    Args:
        folders: run folders, or folders with run folders below.
        rows: a row for each run and question, not for each run.

    Raises:
        ConfigError: one of the folders is not there.
    """
    import pandas as pd

    listed = [Listed.of(folder) for folder in find_run_folders(existing(folders))]
    records = [
        record
        for entry in listed
        for record in (
            _questions(entry) if rows else [{**entry.about, **entry.config, **entry.numbers}]
        )
    ]
    return pd.DataFrame([{k: _scalar(v) for k, v in record.items()} for record in records])


def _questions(listed: Listed) -> Iterator[dict[str, Any]]:
    about = {k: v for k, v in listed.about.items() if k not in ("reason", "status", "version")}
    if listed.run:
        for name, row in asked_rows(listed.run, listed.run.benchmark.answers):
            yield {**about, "set": name, **row}


def _scalar(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)


def existing(folders: Sequence[str | Path]) -> list[Path]:
    """The folders, as paths.

    Raises:
        ConfigError: one is not there.
    """
    paths = [Path(folder) for folder in folders]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"there is no folder {', '.join(missing)}; give folders of runs")
    return paths


def export(frame: pd.DataFrame, path: Path) -> None:
    """Write a data frame as Parquet or CSV, by the name's end.

    Raises:
        ConfigError: the name has another end.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"--export takes a name that ends in .parquet or .csv, not {path}")
    with replacing(path) as part:
        if path.suffix == ".csv":
            frame.to_csv(part, index=False)
        else:
            frame.to_parquet(part, index=False)
