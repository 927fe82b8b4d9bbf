"""Signals that ask the program to end: it ends at once, or in training after the step.

Ctrl-C, SIGTERM, SIGHUP and SIGUSR1, which Slurm sends before a job's time is over (``sbatch
--signal=B:USR1@600``), become exceptions: KeyboardInterrupt, or :class:`~wagle.errors.Terminated`.
Where work should not be cut off in the middle of a step, the first one waits::

    with deferring() as request:
        for step in steps:
            work(step)
            if request.kind is not None:
                save()
                request.end()

A second signal does not wait, and a third is left to the system, which ends the process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from wagle.errors import Terminated

_KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopRequest:
    """A request to end that may wait.

    Attributes:
        kind: the signal; ``None`` as long as there has been none.
    """

    kind: signal.Signals | None = None

    def end(self) -> NoReturn:
        """End now.

        Raises:
            KeyboardInterrupt: always; :class:`Terminated` where it was another signal's request.
        """
        kind, self.kind = self.kind or signal.SIGINT, None
        _end(kind)


_waiting: list[StopRequest] = []  # where a signal is noted instead of obeyed: the last one's


def install() -> None:
    """Have the signals handled in this process, but for those that it was started to ignore."""
    for kind in _KINDS:
        if signal.getsignal(kind) is not signal.SIG_IGN:  # as under nohup
            signal.signal(kind, _handle)


@contextmanager
def deferring() -> Iterator[StopRequest]:
    """Within, the first signal is only noted; what nobody has obeyed is obeyed at the end."""
    request = StopRequest()
    _waiting.append(request)
    try:
        yield request
    finally:
        _waiting.pop()
    if request.kind is not None:
        request.end()


def _handle(number: int, frame: FrameType | None) -> None:
    kind = signal.Signals(number)
    if _waiting and _waiting[-1].kind is None:
        _waiting[-1].kind = kind
        with suppress(OSError):  # Python's own streams may be in the middle of writing
            os.write(2, b"\nending after this step; once more: at once\n")
        return
    signal.signal(kind, signal.SIG_DFL)
    _end(kind)


def _end(kind: signal.Signals) -> NoReturn:
    raise KeyboardInterrupt if kind == signal.SIGINT else Terminated(kind)
