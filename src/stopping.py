"""Signals that ask the program to end: it ends at once, or where what is done can be kept.

Ctrl-C, SIGTERM, SIGHUP and SIGUSR1, which Slurm sends before a job's time is over (``sbatch
--signal=B:USR1@600``), become exceptions: KeyboardInterrupt, or :class:`~wagle.errors.Terminated`.
Where work should not be cut off in the middle of a step, the first one waits::

    with deferring("this step") as request:
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

    Args:
        until: what is brought to its end first, such as ``this step``.

    Attributes:
        kind: the signal; ``None`` as long as there has been none.
        until: as given.
    """

    def __init__(self, until: str) -> None:
        self.kind: signal.Signals | None = None
        self.until = until

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
def deferring(until: str) -> Iterator[StopRequest]:
    """Within, the first signal is only noted; what nobody has obeyed is obeyed at the end.

    So it is where the work fails: whoever lives with the failure must not forget the signal.

    Args:
        until: what is brought to its end first; said when the signal comes.
    """
    request = StopRequest(until)
    _waiting.append(request)
    try:
        yield request
    except Exception:
        if request.kind is not None:
            request.end()
        raise
    finally:
        _waiting.pop()
    if request.kind is not None:
        request.end()


def _handle(number: int, frame: FrameType | None) -> None:
    kind = signal.Signals(number)
    if _waiting and _waiting[-1].kind is None:
        _waiting[-1].kind = kind
        with suppress(OSError):  # Python's own streams may be in the middle of writing
            os.write(2, f"\nending after {_waiting[-1].until}; once more: at once\n".encode())
        return
    signal.signal(kind, signal.SIG_DFL)
    _end(kind)


def _end(kind: signal.Signals) -> NoReturn:
    raise KeyboardInterrupt if kind == signal.SIGINT else Terminated(kind)
