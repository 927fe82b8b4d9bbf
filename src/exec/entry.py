"""What every entry point shares: how failures become messages and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence

from src.errors import ConfigError, WagleError


def print_lines(lines: Iterable[str]) -> None:
    """Print to standard output; whoever reads it, such as ``head``, may stop at any line."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would be tried again, and complained about, at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_main(main: Callable[[Sequence[str]], int]) -> None:
    """Run ``main`` on the command line and exit: 0 done, 1 failure, 2 configuration, 130 Ctrl-C.

    Failures that the user can act on are one message; anything else keeps its traceback.
    """
    if not sys.stderr.isatty():  # libraries draw their bars into log files otherwise
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        sys.exit(main(sys.argv[1:]))
    except WagleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        print("interrupted: nothing unfinished was left under a final name", file=sys.stderr)
        sys.exit(130)
