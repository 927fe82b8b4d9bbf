"""Weights & Biases, beside the run folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import wandb
from matplotlib.figure import Figure

from wagle.errors import WagleError
from wagle.loggers.base import Logger
from wagle.loggers.json_logger import JsonLogger
from wagle.terminal import say

WandbMode = Literal["online", "offline", "disabled"]


class WandbLogger(Logger):
    """Keeps the ordinary run folder, and logs the same run to Weights & Biases.

    wandb gets the configuration, curves (``train/…``, ``evaluation/…``), the per-row answers as
    tables, the pictures, and the results as its summary. Its own files lie in the run folder.

    Args:
        folder: the run folder; its name is the name of the wandb run.
        project: wandb project.
        mode: ``online``, ``offline`` (files only, for a later ``wandb sync``) or ``disabled``.
    """

    folder: Path

    def __init__(self, folder: Path, *, project: str, mode: WandbMode) -> None:
        self.folder = folder
        self._files = JsonLogger(folder)
        self._project = project
        self._mode = mode

    def start(
        self, config: dict[str, Any], fingerprint: str, *, wants_model: bool = False
    ) -> dict[str, Any] | None:
        """Claim the folder, then open the wandb run.

        Raises:
            ConfigError: the folder holds another configuration's run, or is in use.
            WagleError: wandb cannot be reached, or knows no key.
        """
        earlier = self._files.start(config, fingerprint, wants_model=wants_model)
        if earlier is not None:
            return earlier
        try:
            self._run = wandb.init(
                project=self._project,
                name=self.folder.name,
                config=config,
                dir=self.folder,
                mode=self._mode,
            )
        except BaseException as error:
            self._files.fail(error, {})
            if not isinstance(error, wandb.Error):
                raise
            raise WagleError(
                f"wandb cannot start: {error}\nUse --logger.wandb.mode offline to keep its files "
                "here until `wandb sync`, or --overall.logger json to do without it"
            ) from error
        return None

    def load(self, name: str) -> Any | None:
        """A document that an earlier attempt at this very run has kept."""
        return self._files.load(name)

    def log_step(self, entry: dict[str, float]) -> None:
        """Record one entry, as curves over its ``step``."""
        self._files.log_step(entry)
        curves = {
            name.replace(" ", "/", 1) if name.startswith("evaluation ") else f"train/{name}": value
            for name, value in entry.items()
            if name != "step"
        }
        self._run.log(curves, step=int(entry["step"]))

    def save(self, name: str, content: Any) -> None:
        """Keep a document; rows in it, such as questions with answers, become a table too."""
        self._files.save(name, content)
        rows = list(_rows(content))
        if rows:
            columns = list(dict.fromkeys(column for row in rows for column in row))
            data = [[row.get(column) for column in columns] for row in rows]
            table = wandb.Table(columns=[*columns], data=data)
            self._run.log({f"tables/{Path(name).stem}": table})

    def save_figure(self, name: str, figure: Figure) -> None:
        """Keep a picture."""
        self._files.save_figure(name, figure)
        picture = self.folder / "images" / f"{name}.png"
        self._run.log({f"images/{name}": wandb.Image(str(picture))})

    def finish(self, results: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Close both; the folder first, so that results are kept when the connection breaks."""
        self._files.finish(results, manifest)
        try:
            self._run.summary.update({**results, "manifest": manifest})
            self._run.finish()
        except Exception as error:  # noqa: BLE001, the run has finished, whatever its copy becomes
            say(f"Weights & Biases has not got everything: {error}", sys.stderr)

    def fail(self, error: BaseException, manifest: dict[str, Any]) -> None:
        """Close both as failed."""
        self._files.fail(error, manifest)
        try:
            self._run.summary.update({"error": repr(error), "manifest": manifest})
            self._run.finish(exit_code=1)
        except Exception as second:  # noqa: BLE001
            say(f"Weights & Biases has not got everything: {second}", sys.stderr)


def _rows(content: Any) -> Iterator[dict[str, Any]]:
    """The rows of a document's sets: their single values, and the name of the set."""
    for name, part in content.items() if isinstance(content, Mapping) else ():
        for row in part.get("rows", ()) if isinstance(part, Mapping) else ():
            single = {k: v for k, v in row.items() if not isinstance(v, (Mapping, list))}
            yield {"set": name, **single}
