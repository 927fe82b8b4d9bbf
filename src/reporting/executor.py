"""Running planned runs: several at a time, on this machine or through submitit.

Each run is a process of its own, so nothing that happens to it can harm the others. What is done
is read off the run folders alone; killing this process at any moment loses nothing that was done.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from wagle.errors import ConfigError, Terminated, WagleError
from wagle.loggers.folder_lock import in_use
from wagle.loggers.run_folder import MANIFEST, is_finished, read_manifest
from wagle.reporting.planned import ORIGINAL, PlannedRun
from wagle.terminal import say

if TYPE_CHECKING:
    import submitit

SCRIPT = Path(__file__).resolve().parents[1] / "exec" / "unlearn_model.py"
POLL_SECONDS = 0.2
GRACE_SECONDS = (60.0, 10.0)  # to end what a run is at; then, asked again, to close its folder
DAY_MINUTES = 24 * 60  # submitit's own limit is five minutes

Finished = Callable[[PlannedRun, str | None], None]
"""Called with a run that has ended, and the reason if it failed."""


class Job(Protocol):
    """A run that has been started."""

    def ended(self) -> bool:
        """Whether it has come to its end, good or bad."""

    def interrupt(self) -> None:
        """Ask it to end; the second time at once."""

    def kill(self) -> None:
        """End it at once."""

    def reason(self) -> str:
        """After the end of a failed run: why, as far as that can be seen from outside."""


Start = Callable[[PlannedRun, int], Job]
"""Starts a run in a slot, a number from 0."""


def command_of(run: PlannedRun, processes: int = 1) -> list[str]:
    """What is executed, for a shell: ``shlex.join(command_of(run))``.

    Args:
        processes: that torchrun starts for the run. A step reads as many rows as with one: of four
            batches that are accumulated each of two processes accumulates two.

    Raises:
        ConfigError: there are not so many batches in a step that each process has as many.
    """
    command = [str(SCRIPT), *run.arguments]
    if processes == 1:
        return [sys.executable, *command]
    accumulation = run.config.unlearn.gradient_accumulation_steps
    if accumulation % processes == 0:
        command += ["--unlearn.gradient_accumulation_steps", str(accumulation // processes)]
    elif run.row.method != ORIGINAL:  # for which nothing is trained
        raise ConfigError(
            f"{run.title}: a step accumulates {accumulation} batches (unlearn."
            f"gradient_accumulation_steps), which {processes} processes cannot share evenly"
        )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *torchrun, *command]


def find_finished(root: Path) -> dict[str, Path]:
    """Folders of the finished runs below ``root``, by their configurations' fingerprints."""
    finished = {}
    for path in sorted(root.rglob(MANIFEST)):
        if is_finished(path.parent):
            finished[read_manifest(path.parent).get("fingerprint", "")] = path.parent
    return finished


def execute(runs: Sequence[PlannedRun], start: Start, slots: int, finished: Finished) -> None:
    """Run all, at most ``slots`` at a time; a run that fails is reported, and the others go on.

    A run whose folder another process is writing to (another table's, or one that a killed table
    has left running) is put off until that process has ended; one that starts from another's model
    until that has finished.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM, after the runs that were going on have ended.
    """
    waiting = list(runs)
    active: dict[int, tuple[PlannedRun, Job, float]] = {}
    put_off = False
    # SIGINT is ignored by what a shell starts in the background, and children inherit that.
    handlers = {kind: signal.signal(kind, _interrupt) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        while waiting or active:
            for slot in set(range(slots)) - set(active):
                chosen = next(filter(_may_start, waiting), None)
                if chosen is None:
                    break
                waiting.remove(chosen)
                if is_finished(chosen.folder):  # another process has done it meanwhile
                    finished(chosen, None)
                else:
                    active[slot] = chosen, start(chosen, slot), time.time()
            if waiting and not active and not put_off:
                put_off = True
                say(f"waiting for {len(waiting)} runs of other processes", sys.stderr)
            time.sleep(POLL_SECONDS)
            for slot, (run, job, since) in list(active.items()):
                if not job.ended():
                    continue
                del active[slot]
                if is_finished(run.folder):
                    finished(run, None)
                elif in_use(run.folder):
                    waiting.append(run)
                else:
                    finished(run, _failure(run.folder, since) or job.reason())
                    _give_up(run, waiting, finished)
    finally:
        _stop([job for _, job, _ in active.values()])
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


def _give_up(failed: PlannedRun, waiting: list[PlannedRun], finished: Finished) -> None:
    """Runs that were to start from the model of one that has failed fail with it."""
    for run in [r for r in waiting if r.after and r.after.folder == failed.folder]:
        waiting.remove(run)
        finished(run, f"there is no model to start from: {failed.title} has failed")
        _give_up(run, waiting, finished)


def _may_start(run: PlannedRun) -> bool:
    return not in_use(run.folder) and (run.after is None or is_finished(run.after.folder))


def _interrupt(kind: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt if kind == signal.SIGINT else Terminated(signal.Signals(kind))


def _stop(jobs: Sequence[Job]) -> None:
    if going := sum(not job.ended() for job in jobs):
        runs = "1 run" if going == 1 else f"{going} runs"
        say(f"ending {runs} after the step or batch at hand; once more: at once", sys.stderr)
    for patience in GRACE_SECONDS:
        for job in jobs:
            job.interrupt()
        end = time.monotonic() + patience
        try:
            while not all(job.ended() for job in jobs) and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:  # another Ctrl-C: no more patience
            pass
    for job in jobs:
        if not job.ended():
            job.kill()


def _failure(folder: Path, since: float) -> str:
    """Why the run says it has failed, in one line; empty where it could not say."""
    path = folder / MANIFEST
    if not path.is_file() or path.stat().st_mtime < since:  # an earlier attempt's
        return ""
    try:
        lines = str(read_manifest(folder).get("error", "")).strip().splitlines()
    except WagleError as error:
        return str(error)
    return lines[0][:300] if lines else ""


# ------------------------------------------------------------------------------- this machine


class LocalJob:
    """A process in a session of its own: Ctrl-C reaches it once, from here.

    Args:
        log: file for everything that it prints.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            file.write(f"{shlex.join(command)}\n")
            file.flush()
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self) -> bool:
        return self.process.poll() is not None

    def interrupt(self) -> None:
        if not self.ended():
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def reason(self) -> str:
        status = self.process.returncode
        if status < 0:
            name = signal.Signals(-status).name
            return f"killed by {name}" + (", maybe out of memory" if name == "SIGKILL" else "")
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]  # torchrun says more
        return f"exit status {status}: {(errors or lines)[-1][:300]} [{self.log}]"


def start_here(logs: Path, devices: Sequence[str], slots: int, processes: int = 1) -> Start:
    """Runs as processes of this machine; slot ``i`` has device ``i``, round and round.

    Args:
        logs: folder for what runs print.
        devices: like ``cuda:0``, or ``cpu``. None: all runs see all devices, and share the cores.
        slots: how many run at a time.
        processes: of each run. With two of them slot 0 has devices 0 and 1, and slot 1 has 2 and 3.

    Raises:
        ConfigError: a device has another name, or is not among the visible ones; they cannot be
            shared out evenly.
    """
    if len(devices) % processes:
        raise ConfigError(
            f"--processes {processes} takes as many --devices or a multiple, not {len(devices)}"
        )
    environments = [
        _environment(devices[first : first + processes])
        for first in range(0, len(devices), processes)
    ]
    if not environments:
        environments = [{}]
        if slots * processes > 1 and "OMP_NUM_THREADS" not in os.environ:
            # Left alone, every run would use every core, and they would wait for one another.
            threads = max(1, _cores() // (slots * processes))
            environments = [{"OMP_NUM_THREADS": str(threads)}]

    def start(run: PlannedRun, slot: int) -> LocalJob:
        environment = {**os.environ, **environments[slot % len(environments)]}
        log = logs / run.row.name / f"{run.folder.name}.log"
        return LocalJob(command_of(run, processes), environment, log)

    return start


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _environment(devices: Sequence[str]) -> dict[str, str]:
    """What a run sees of the devices, if it shall use these."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if visible is None else [name for name in visible.split(",") if name]
    seen = []
    for device in devices:
        match = re.fullmatch(r"cuda:(\d+)", device)
        if match is None and device != "cpu":
            raise ConfigError(f"--devices takes names like cuda:0, or cpu, not {device!r}")
        if match is not None:
            index = int(match.group(1))
            if names is not None and index >= len(names):
                raise ConfigError(
                    f"--devices names {device}, but CUDA_VISIBLE_DEVICES is {visible!r}"
                )
            seen.append(str(index) if names is None else names[index])
    return {"CUDA_VISIBLE_DEVICES": ",".join(seen)}


# ----------------------------------------------------------------------------------- submitit


class SubmittedJob:
    """A job of submitit's."""

    def __init__(self, job: submitit.Job[Any]) -> None:
        self.job = job

    def ended(self) -> bool:
        return self.job.done()

    def interrupt(self) -> None:
        self.job.cancel(check=False)

    kill = interrupt

    def reason(self) -> str:
        return f"job {self.job.job_id} ended as {self.job.state} [{self.job.paths.stderr}]"


def submit_with_submitit(
    folder: Path, cluster: str, parameters: Mapping[str, int | float | str], processes: int = 1
) -> Start:
    """Runs as jobs of submitit.

    Args:
        folder: for submitit's scripts and logs.
        cluster: ``slurm`` or ``local``.
        parameters: of its ``AutoExecutor``, such as ``gpus_per_node``.
        processes: of each run, on one node: a job is one task, whose devices they share out.

    Raises:
        ConfigError: there is no Slurm here, or no such parameter.
    """
    import submitit

    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"timeout_min": DAY_MINUTES, "name": "wagle", **parameters})
    except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"submitit cannot use {cluster}: {error}") from error

    def start(run: PlannedRun, slot: int) -> SubmittedJob:
        command = command_of(run, processes)
        return SubmittedJob(executor.submit(subprocess.run, command, check=True))

    return start
