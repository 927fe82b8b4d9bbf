"""The ``wagle`` command, and how every command's failures become messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from wagle import launch, stopping
from wagle.errors import ConfigError, Terminated, WagleError
from wagle.terminal import fall_silent, plain, secure_streams


class _Command(NamedTuple):
    script: str
    module: str
    about: str


COMMANDS = {
    "unlearn": _Command("unlearn_model.py", "unlearn", "unlearn and evaluate: the main job"),
    "fine-tune": _Command("fine_tune.py", "fine_tune", "make the model to be unlearned"),
    "mask": _Command("mask.py", "mask", "make, inspect, compare and convert mask files"),
    "delta": _Command("delta.py", "delta", "put requests in, take them out, check what changed"),
    "alternates": _Command(
        "alternates.py", "alternates", "sample other answers from the model, for AltPO"
    ),
    "attack": _Command("attack.py", "attack", "does forgetting survive few bits and relearning?"),
    "depth": _Command("depth.py", "depth", "where do mask, update and knowledge sit?"),
    "compare": _Command("compare.py", "compare", "how sure is it that one run is better?"),
    "plant": _Command("plant.py", "plant", "does a score find facts whose weights are known?"),
    "table": _Command("reproduce_tables.py", "table", "make a table of the paper"),
    "sweep": _Command("sweep.py", "sweep", "try settings, and choose the best of each method"),
    "runs": _Command("runs.py", "runs", "list runs, show one, compare their settings; data frames"),
    "report": _Command("report.py", "report", "one HTML page about finished runs"),
    "score": _Command("score_tofu.py", "score", "scores of TOFU or MUSE of files of results"),
    "prepare-text": _Command(
        "prepare_copyright.py", "prepare_text", "cut a text into the copyright task's data sets"
    ),
    "demo": _Command("demo.py", "demo", "the main job on the embedded benchmark"),
}
"""By sub-command: the script in src/exec that does the same, the module in wagle.commands."""

TOGETHER = ("unlearn", "fine-tune")
"""Commands that torchrun may start as several processes."""

_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EFBIG),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
"""Numbers of errors that tell of disks, folders and limits, not of a mistake in this program."""


def main() -> None:
    """The ``wagle`` command: run the sub-command that is named first, and exit."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
        sys.exit(0)
    if name not in COMMANDS:
        print(f"error: there is no command {plain(name)}\n\n{_overview()}", file=sys.stderr)
        sys.exit(2)
    run(name, rest)


def run(command: str, argv: Sequence[str]) -> None:
    """Run one command, and exit."""
    if sys.stderr is None or not sys.stderr.isatty() or launch.number() > 0:
        # Libraries draw their bars into log files otherwise; they read these when imported.
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if launch.number() > 0:
        fall_silent()
    module = importlib.import_module(f"wagle.commands.{COMMANDS[command].module}")
    run_main(module.main if command in TOGETHER else _alone(command, module.main), argv)


def _alone(command: str, main: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """A command that runs as one process."""

    def checked(argv: Sequence[str]) -> int:
        if launch.processes() > 1:
            raise ConfigError(
                f"wagle {command} runs as one process, and torchrun has started "
                f"{launch.processes()}; start it without torchrun"
            )
        return main(argv)

    return checked


def program(command: str) -> str:
    """How this process's command is written in front of its arguments, for help texts."""
    script = COMMANDS[command].script
    called = Path(sys.argv[0]).name
    return f"python src/exec/{script}" if called == script else f"wagle {command}"


def run_main(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> None:
    """Run ``main`` on a command line and exit.

    Exit status: 0 done, 1 failure, 2 wrong configuration, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP,
    138 SIGUSR1 (128 and the signal's number).
    Failures that the user can act on are one message; anything else keeps its traceback. Of several
    processes that work as one, the first to fail says why; the others end when they miss it.
    """
    streams = secure_streams()
    stopping.install()
    try:
        status = main(argv)
    except WagleError as error:
        status = _report(f"error: {plain(error)}", 2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt as error:
        kind = error.kind if isinstance(error, Terminated) else signal.SIGINT
        status = _report("interrupted: nothing unfinished was left under a final name", 128 + kind)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            place = "" if error.filename is None else f"{error.filename}: "
            status = _report(f"error: {plain(f'{place}{error.strerror}')}", 1)
        elif _speaks():
            raise
        else:
            status = 1
    finally:
        for stream in streams:
            stream.close_quietly()
    sys.exit(status)


def _overview() -> str:
    commands = "\n".join(f"  {name:14}{command.about}" for name, command in COMMANDS.items())
    return (
        "usage: wagle COMMAND [ARGUMENT ...]\n\n"
        f"Weight-attribution-guided unlearning of language models.\n\n{commands}\n\n"
        "wagle COMMAND --help says what a command takes."
    )


def _report(text: str, status: int) -> int:
    if _speaks():
        print(text, file=sys.stderr)
    return status


def _speaks() -> bool:
    """Whether this process says why it fails."""
    if launch.processes() == 1:
        return True
    from wagle import ranks  # torch takes its time to import

    return ranks.is_first_to_fail()
