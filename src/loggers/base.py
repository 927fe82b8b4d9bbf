"""What a run reports, and where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Logger:
    """Keeps nothing (``overall.logger none``); the base of the loggers that do.

    The life of a run: ``start``, any number of ``log_step``, ``save`` and ``save_figure``,
    then ``finish``, or ``fail`` when an error or a signal ended it.

    Attributes:
        folder: the run folder, ``None`` when nothing is kept.
    """

    folder: Path | None = None

    def start(
        self, config: dict[str, Any], fingerprint: str, *, wants_model: bool = False
    ) -> dict[str, Any] | None:
        """Open the run.

        Args:
            config: all keys, nested.
            fingerprint: of what decides the results.
            wants_model: a finished run without a saved model is to be run again.

        Returns:
            The results of an earlier, finished run with the same name and configuration; there is
            nothing left to do then. Otherwise ``None``.
        """
        return None

    def load(self, name: str) -> Any | None:
        """A document that an earlier attempt at this very run has kept; ``None``: there is none."""
        return None

    def log_step(self, entry: dict[str, float]) -> None:
        """Record one entry of the training log."""

    def save(self, name: str, content: Any) -> None:
        """Keep one JSON document of the run, such as ``tofu.json``."""

    def save_figure(self, name: str, figure: Figure) -> None:
        """Keep a picture of the run, such as ``training``."""

    def finish(self, results: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Close the run; only now does it count as finished."""

    def fail(self, error: BaseException, manifest: dict[str, Any]) -> None:
        """Close the run after an error or an interruption."""
