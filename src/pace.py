"""How often to write down how far some work has come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Says when to write again: at intervals, longer ones where writing itself takes long.

    With intervals of 600 seconds and a share of 0.05, what takes 20 seconds to write is written
    every 600 seconds, and what takes 60 seconds every 1200.

    Args:
        seconds: the shortest interval.
        share: of the time, the most that writing may take.
        takes: seconds that the first time is expected to take; later the last time counts.
    """

    def __init__(self, seconds: float, share: float, takes: float = 0.0) -> None:
        self._seconds, self._share, self._takes = seconds, share, takes
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._last >= max(self._seconds, self._takes / self._share)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around each writing, well done or not."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._last = time.monotonic()
            self._takes = self._last - start
