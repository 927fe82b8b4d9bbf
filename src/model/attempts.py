"""What an attempt at a run leaves for the next one: checkpoints, the trained model, measurements.

All of it lies in the run folder. Without one, checkpoints and measurements lie in the cache, under
a name that follows from everything that decides them, so that the same command finds them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wagle import ranks
from wagle.config import UnlearnConfig
from wagle.errors import ConfigError
from wagle.loggers import Logger
from wagle.loggers.folder_lock import FolderLock
from wagle.loggers.run_folder import CHECKPOINTS, EVALUATION, PARTIAL_RESULTS, TRAINING
from wagle.model.measured import Measured, place_in_cache
from wagle.model.record import Record, read_record
from wagle.terminal import say
from wagle.training.checkpoint import Checkpoints, resumption

Origin = Mapping[str, Any]
"""Everything that decides what is kept, as JSON; what has another origin is never used."""


class Attempts:
    """What earlier attempts at a run have left, and what this one leaves.

    Args:
        config: of the run.
        logger: its folder is the run's.

    Attributes:
        checkpoints: of the training, once they are looked for.
        saved: where the trained model is, once it is.
        measured: what the evaluation has measured, once it is looked for.
        resumed: when the run went on after an interruption, and after what.
    """

    def __init__(self, config: UnlearnConfig, logger: Logger) -> None:
        self.checkpoints: Checkpoints | None = None
        self.saved: Path | None = None
        self.measured: Measured | None = None
        self.resumed: list[dict[str, str]] = []
        self._config = config
        self._logger = logger
        self._lock: FolderLock | None = None  # of checkpoints outside a run folder

    @property
    def model_folder(self) -> Path | None:
        """Where the trained model is kept, if it is."""
        folder = self._logger.folder
        return folder / CHECKPOINTS if folder and self._config.unlearn.save_model else None

    def find_checkpoints(self, origin: Origin) -> None:
        """Settle the place of the training's checkpoints; there is none where nothing can be kept.

        Args:
            origin: of the trained weights.
        """
        folder = self._logger.folder and self._logger.folder / TRAINING
        if folder is None:
            folder = self._cached(TRAINING, origin)
            self._lock = FolderLock(folder, "overall.cache_dir")
            try:
                ranks.first(self._lock.acquire)
            except ConfigError as error:
                say(f"note: no checkpoints of this training are kept: {error}")
                return
        self.checkpoints = Checkpoints(
            folder,
            origin,
            every=self._config.unlearn.save_steps,
            keeps_last=self.model_folder is None,
            resumed=self.resumed,
        )

    def find_trained(self, origin: Origin) -> Record | None:
        """How the model in the run folder was trained, if as this run does; another is removed."""
        if self._logger.folder is None:
            return None
        folder = self._logger.folder / CHECKPOINTS

        def find() -> Record | None:
            record = read_record(folder)
            if record is not None and record.training == origin:
                return record
            if folder.exists():
                say(f"{folder} holds a model of another training: it is removed")
                shutil.rmtree(folder)
            return None

        record = ranks.first(find)
        if record is not None:
            say(f"going on with the trained model in {folder}")
            self.saved = folder
            self.resumed[:0] = record.resumed
            self.note("training")
        return record

    def find_measured(self, origin: Origin) -> Measured:
        """What has been measured so far of the same weights, rows and code."""
        if self._logger.folder is not None:
            path = self._logger.folder / PARTIAL_RESULTS
            pieces = self._logger.folder / EVALUATION
        else:
            pieces = self._cached(EVALUATION, origin)
            path = pieces.with_suffix(".json")
        self.measured = Measured(path, origin, pieces)
        if self.measured.earlier:
            names = ", ".join(self.measured.earlier)
            say(f"going on with what has been measured: {names}")
            self.note(names)
        return self.measured

    def note(self, after: str) -> None:
        """Note that the run goes on now, after what an interrupted attempt has left."""
        self.resumed.append(resumption(after))

    def left_behind(self, phases: Sequence[str]) -> str:
        """What becomes of a run that has not come to its end, in a sentence.

        Args:
            phases: that have begun, in order.
        """
        phase = phases[-1] if phases else "start"
        where = f"the run ended in its phase {phase!r}"
        if self.saved is not None:
            return f"{where}; the same command goes on with the model in {self.saved}"
        if self.checkpoints and self.checkpoints.newest:
            return f"{where}; the same command goes on from {self.checkpoints.newest}"
        kept = {"mask": "the sums of gradients", "evaluate": "the evaluation"}.get(phase)
        if kept is not None:
            return f"{where}; the same command goes on with what is kept of {kept}"
        lost = ": what was trained is lost" if "train" in phases else ""
        return f"{where}{lost}; the same command runs it again"

    def drop_checkpoints(self) -> None:
        """Remove those of a training that is not needed again."""
        if self.checkpoints:
            self.checkpoints.remove()

    def remove(self) -> None:
        """Remove all that only an interrupted run needs."""
        self.drop_checkpoints()
        if self.measured:
            self.measured.remove()

    def close(self) -> None:
        """Let others use the place of the checkpoints."""
        if self._lock:
            self._lock.release()

    def _cached(self, kind: str, origin: Origin) -> Path:
        return place_in_cache(Path(self._config.overall.cache_dir), kind, origin)
