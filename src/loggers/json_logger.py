"""The run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from src.errors import ConfigError
from src.loggers.base import Logger
from src.loggers.files import write_figure, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG, MANIFEST, RESULTS, TRAINING_LOG = "config.json", "manifest.json", "results.json", "log.json"


class JsonLogger(Logger):
    """Keeps a run as JSON files in one folder.

    ``results.json`` is written last: a run without it is not finished. A folder that holds another
    configuration, or that another process is writing to, is refused.

    Args:
        folder: the run folder, made when the run starts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = _lock(folder)
        self._log: list[dict[str, float]] = []

    def start(self, config: dict[str, Any], fingerprint: str) -> dict[str, Any] | None:
        """Claim the folder.

        Raises:
            ConfigError: the folder holds another configuration's run, or is in use.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigError(
                f"another process is writing to the run folder {self.folder}; wait for it or pass "
                "another --logger.name"
            ) from error
        earlier = _read(self.folder / MANIFEST)
        if earlier and earlier["fingerprint"] != fingerprint:
            self._lock.release()
            raise ConfigError(
                f"the run folder {self.folder} holds a run with another configuration; pass "
                "another --logger.name, or remove the folder"
            )
        results = _read(self.folder / RESULTS)
        if earlier and results is not None:
            self._lock.release()
            return results
        if not earlier and any(self.folder.iterdir()):
            self._lock.release()
            raise ConfigError(
                f"{self.folder} is not empty and is no run folder of this program; pass another "
                "--logger.name"
            )
        self._clear()
        # The manifest goes first: without it the folder would not be recognised as ours.
        write_json(self.folder / MANIFEST, {"status": "running", "fingerprint": fingerprint})
        write_json(self.folder / CONFIG, config)
        (self.folder / "images").mkdir(exist_ok=True)
        self._fingerprint = fingerprint
        return None

    def _clear(self) -> None:
        """Remove what an interrupted run of the same configuration left."""
        for path in self.folder.iterdir():
            if path.name == MANIFEST:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def log_step(self, entry: dict[str, float]) -> None:
        """Append to ``log.json``."""
        self._log.append(entry)
        write_json(self.folder / TRAINING_LOG, self._log)

    def save(self, name: str, content: Any) -> None:
        """Write ``{folder}/{name}``."""
        write_json(self.folder / name, content, durable=True)

    def save_figure(self, name: str, figure: Figure) -> None:
        """Write ``{folder}/images/{name}.png`` and ``.pdf``."""
        write_figure(self.folder / "images" / name, figure)

    def finish(self, results: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Write the manifest and, last of all, ``results.json``."""
        self._write_manifest("finished", manifest)
        write_json(self.folder / RESULTS, results, durable=True)
        self._lock.release()

    def fail(self, error: BaseException, manifest: dict[str, Any]) -> None:
        """Record why the run ended; ``results.json`` stays absent."""
        reason = f"{type(error).__name__}: {error}"
        self._write_manifest("failed", {**manifest, "error": reason})
        self._lock.release()

    def _write_manifest(self, status: str, manifest: dict[str, Any]) -> None:
        head = {"status": status, "fingerprint": self._fingerprint}
        write_json(self.folder / MANIFEST, {**head, **manifest})


def in_use(folder: Path) -> bool:
    """Whether a process is writing to the run folder at this moment."""
    if not folder.is_dir():
        return False
    try:
        with _lock(folder):
            return False
    except Timeout:
        return True


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
