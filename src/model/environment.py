"""What a run's manifest says about the machine and the software."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch
import xxhash

from wagle.dataset.columns import each_row
from wagle.optim.bitmask import Mask
from wagle.shipped import CHECKOUT
from wagle.terminal import say_phase

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "lm-eval", "fastargs")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in _PACKAGES}}


def git_commit() -> str | None:
    """The checkout's commit, with ``+changes`` where files differ from it; None outside git."""
    if CHECKOUT is None:
        return None

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(CHECKOUT), *arguments]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}+changes" if git("status", "--porcelain", "-uno") else commit


def peak_memory() -> dict[str, int]:
    """Peak memory of this process so far, in bytes: resident, and per accelerator in use."""
    # Linux reports kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    for index in range(torch.cuda.device_count()):
        peak[f"cuda:{index}"] = torch.cuda.max_memory_allocated(index)
    return peak


def rows_fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """A hash of data rows: all fields, in order."""
    digest = xxhash.xxh3_128()
    for row in each_row(rows):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def mask_fingerprint(mask: Mask) -> str:
    """A hash of a mask's names and bits."""
    digest = xxhash.xxh3_128()
    for name, selected in mask.items():
        digest.update(name.encode())
        digest.update(selected.bits.cpu().numpy().data)
    return digest.hexdigest()


class Stopwatch:
    """Seconds spent in named phases, and the process's peak memory at the end of each.

    Attributes:
        phases: those that have begun, in order.
        seconds: by phase.
        memory: by phase, as :func:`peak_memory` says; since it never falls, the growth from one
            phase to the next is what that phase needed on top.
    """

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, dict[str, int]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Say that it begins, and add the time spent inside to ``seconds[name]``."""
        say_phase(name)
        self.phases.append(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.memory[name] = peak_memory()

    def report(self) -> dict[str, Any]:
        """Seconds per phase, rounded to milliseconds."""
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}
