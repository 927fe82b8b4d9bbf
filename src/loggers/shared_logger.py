"""The logger of several processes that work as one: the first one keeps everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wagle import ranks
from wagle.loggers.base import Logger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SharedLogger(Logger):
    """What the first process's logger knows all processes know; what they report it alone keeps.

    Args:
        own: this process's, which only the first one uses.
    """

    def __init__(self, own: Logger) -> None:
        self._own = own
        self.folder = own.folder

    def start(
        self, config: dict[str, Any], fingerprint: str, *, wants_model: bool = False
    ) -> dict[str, Any] | None:
        """As the first process's; what it raises all raise."""
        return ranks.first(lambda: self._own.start(config, fingerprint, wants_model=wants_model))

    def load(self, name: str) -> Any | None:
        return ranks.first(lambda: self._own.load(name))

    def log_step(self, entry: dict[str, float]) -> None:
        if ranks.is_first():
            self._own.log_step(entry)

    def save(self, name: str, content: Any) -> None:
        if ranks.is_first():
            self._own.save(name, content)

    def save_figure(self, name: str, figure: Figure) -> None:
        if ranks.is_first():
            self._own.save_figure(name, figure)

    def finish(self, results: dict[str, Any], manifest: dict[str, Any]) -> None:
        if ranks.is_first():
            self._own.finish(results, manifest)

    def fail(self, error: BaseException, manifest: dict[str, Any]) -> None:
        if ranks.is_first():
            self._own.fail(error, manifest)
