"""What every entry point shares: how failures become messages and exit codes."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from src.errors import ConfigError, Terminated, WagleError
from src.terminal import plain, secure_streams

_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EFBIG),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
"""Numbers of errors that tell of disks, folders and limits, not of a mistake in this program."""


def run_main(main: Callable[[Sequence[str]], int]) -> None:
    """Run ``main`` on the command line and exit.

    Exit status: 0 done, 1 failure, 2 wrong configuration, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
    Failures that the user can act on are one message; anything else keeps its traceback.
    """
    secure_streams()
    for kind in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(kind) is not signal.SIG_IGN:  # as under nohup
            signal.signal(kind, _terminate)
    try:
        status = main(sys.argv[1:])
    except WagleError as error:
        status = _report(error, 2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        status = _report(f"{place}{error.strerror}", 1)
    except KeyboardInterrupt as error:
        print("interrupted: nothing unfinished was left under a final name", file=sys.stderr)
        status = 128 + (error.kind if isinstance(error, Terminated) else signal.SIGINT)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.close_quietly()
    sys.exit(status)


def _report(problem: object, status: int) -> int:
    print(f"error: {plain(problem)}", file=sys.stderr)
    return status


def _terminate(kind: int, frame: FrameType | None) -> None:
    signal.signal(kind, signal.SIG_DFL)  # asked a second time, it ends at once
    raise Terminated(signal.Signals(kind))
