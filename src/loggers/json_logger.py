"""The logger ``json``: a run folder, claimed, filled and, last of all, marked as finished."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagle.errors import ConfigError, WagleError
from wagle.loggers.base import Logger
from wagle.loggers.files import is_part, read_json, write_figure, write_json
from wagle.loggers.folder_lock import FolderLock
from wagle.loggers.run_folder import (
    CHECKPOINTS,
    CONFIG,
    EVALUATION,
    FINISHED,
    MANIFEST,
    PARTIAL_RESULTS,
    RESULTS,
    TRAINING,
    TRAINING_LOG,
    flatten,
    read_document,
    read_manifest,
    write_manifest,
)
from wagle.terminal import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class JsonLogger(Logger):
    """Keeps a run as JSON files in one folder.

    A run has finished when its manifest says so, which is written after ``results.json``. A
    finished run is never overwritten by one of another configuration; an unfinished one never
    blocks its name: the same configuration goes on with what it has kept, another begins anew.

    Args:
        folder: the run folder, made when the run starts.
    """

    folder: Path

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FolderLock(folder, "logger.name or --logger.json.root")
        self._log: list[dict[str, float]] = []
        self._finished = False

    def start(
        self, config: dict[str, Any], fingerprint: str, *, wants_model: bool = False
    ) -> dict[str, Any] | None:
        """Claim the folder.

        Raises:
            ConfigError: the folder holds another configuration's finished run, is in use, is not
                ours, or cannot be written to.
        """
        self._lock.acquire()
        try:
            with self._lock.writing():
                results = self._claim(config, fingerprint, wants_model)
        except BaseException:
            self._lock.release()
            raise
        if results is not None:
            self._lock.release()
        return results

    def _claim(
        self, config: dict[str, Any], fingerprint: str, wants_model: bool
    ) -> dict[str, Any] | None:
        self.folder.mkdir(exist_ok=True)
        earlier = self._earlier_manifest()
        same = earlier.get("fingerprint") == fingerprint
        if earlier.get("status") == FINISHED and (self.folder / RESULTS).is_file():
            if not same:
                raise ConfigError(
                    f"the run folder {self.folder} holds a finished run with another "
                    f"configuration{_differences(self.folder / CONFIG, config)}; pass another "
                    "--logger.name, or remove the folder"
                )
            if not wants_model or (self.folder / CHECKPOINTS).is_dir():
                # Of a kill at the end:
                for name in (TRAINING, EVALUATION):
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                (self.folder / PARTIAL_RESULTS).unlink(missing_ok=True)
                return read_document(self.folder, RESULTS, earlier)
            say(f"{self.folder} has finished, but kept no model (unlearn.save_model): running it")
        elif earlier:
            then = "going on with what it has kept" if same else "another configuration begins anew"
            say(f"{self.folder} holds a run that has not finished: {then}")
        self._clear(everything=not same)
        self._head = {
            "fingerprint": fingerprint,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        # The manifest goes first: without it the folder would not be recognised as ours.
        self._write_manifest("running", {})
        write_json(self.folder / CONFIG, config)
        (self.folder / "images").mkdir(exist_ok=True)
        return None

    def _earlier_manifest(self) -> dict[str, Any]:
        """What an earlier run here has left; empty where there was none.

        Raises:
            ConfigError: there are files in the folder that no run has made.
        """
        if (self.folder / MANIFEST).is_file():
            try:
                return read_manifest(self.folder)
            except WagleError as error:
                if (self.folder / RESULTS).exists():
                    raise ConfigError(f"{error}; remove the run folder, or repair it") from error
                return {"status": "damaged"}
        if any(not is_part(path) for path in self.folder.iterdir()):
            raise ConfigError(
                f"{self.folder} is not empty and is no run folder of this program; pass another "
                "--logger.name"
            )
        return {}

    def _clear(self, *, everything: bool) -> None:
        """Remove what an earlier attempt left, but for what the same run can go on with.

        Documents stay until they are written anew; which of them still count is for those to say
        who read them with :meth:`load`. A model or a checkpoint of another configuration may come
        from the same training, so that is for the run to say as well.
        """
        for path in self.folder.iterdir():
            kept = path.name in (MANIFEST, CHECKPOINTS, TRAINING)
            of_same = path.suffix == ".json" or path.name == EVALUATION
            kept |= not everything and of_same and not is_part(path)
            if not kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def load(self, name: str) -> Any | None:
        """The content of ``{folder}/{name}``; ``None`` where it is missing or damaged."""
        path = self.folder / name
        try:
            return read_json(path) if path.is_file() else None
        except WagleError:
            return None

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
        """Write ``results.json`` and, last of all, the manifest that says so."""
        write_json(self.folder / RESULTS, results, durable=True)
        self._write_manifest(FINISHED, manifest)
        self._finished = True
        self._lock.release()

    def fail(self, error: BaseException, manifest: dict[str, Any]) -> None:
        """Record why the run ended, if that can still be written, and free the folder.

        What happens after the run has finished, to another logger for instance, changes nothing.
        """
        if self._finished:
            self._lock.release()
            return
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = f"{type(error).__name__}: {error}"
        try:
            self._write_manifest(status, {**manifest, "error": reason})
        except (OSError, WagleError) as second:
            say(f"{self.folder / MANIFEST} could not be written either: {second}", sys.stderr)
        finally:
            self._lock.release()

    def _write_manifest(self, status: str, manifest: dict[str, Any]) -> None:
        write_manifest(self.folder, {"status": status, **self._head, **manifest})


def _differences(path: Path, config: dict[str, Any]) -> str:
    """Up to three keys that another configuration has other values for, in brackets."""
    try:
        other = dict(flatten(read_json(path)))
    except WagleError:
        return ""
    found = [
        f"{key} {other[key]} there, {value} here"
        for key, value in flatten(config)
        if key in other and other[key] != value and not key.startswith("logger.")
    ]
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return f" ({'; '.join(found[:3])}{more})" if found else ""
