"""Runs of a command in processes of their own, to be signalled, killed and met by others.

Each is a child of one process that has imported the program: a start takes no seconds of imports.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = [
    "hypothesis",  # tiny's
    "matplotlib.figure",
    "pytest",
    "sentence_transformers",
    "transformers.models.llama.modeling_llama",
    "wagle.cli",
    "wagle.commands.unlearn",
    "wagle.model.evaluation",
    "wagle.model.unlearn",
]


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that calls a module's function."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


class Running:
    """``wagle COMMAND``, started in a folder; what it says goes to a file beside that folder.

    ``environment`` is added to this process's.
    """

    def __init__(
        self, command: str, argv: list[str], folder: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._output = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.txt")
        self._process = start(_run, command, argv, folder, self._output, environment or {})

    def wait_for(self, path: Path) -> None:
        """Until the file or folder is there."""
        for _ in range(1200):
            if path.exists():
                return
            assert self._process.is_alive(), self._output.read_text()
            time.sleep(0.05)
        raise AssertionError(f"{path} never appeared")

    def signal(self, kind: signal.Signals) -> None:
        os.kill(self._process.pid, kind)

    def ended(self) -> bool:
        return not self._process.is_alive()

    def end(self) -> tuple[int, str]:
        """Its exit status, once it has ended (minus the signal that killed it), and its output."""
        self._process.join()
        return self._process.exitcode, self._output.read_text()


def _run(
    command: str, argv: list[str], folder: Path, output: Path, environment: dict[str, str]
) -> None:
    import torch

    from wagle import cli

    draw_nothing()
    torch.set_num_threads(1)
    os.environ.update(environment)
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    cli.run(command, argv)


def draw_nothing() -> None:
    """In this process pictures are empty files, as for ``tiny.undrawn``."""
    from matplotlib.figure import Figure

    Figure.savefig = lambda figure, path, **options: Path(path).touch()
