"""The main job on the embedded benchmark: make the models, unlearn with several masks, compare.

python src/exec/demo.py
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import active_children, get_context
from pathlib import Path

from wagle.config import FineTuneConfig, load_config
from wagle.errors import ConfigError
from wagle.reporting.plan import plan_runs
from wagle.reporting.planned import PlannedRun, TableRow
from wagle.reporting.request import TableRequest
from wagle.shipped import shipped

CONFIGS = shipped("configs/demo")
RESULTS = Path("files/results/unlearn_demo")
DEMO_METHODS = ("GradDiff", "PO")
MASKS = ("Dense", "Random", "WAGLE")
SEEDS = (0, 1, 2)
WORKERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


def main(argv: Sequence[str]) -> int:
    """Run the demo; finished parts are kept, so an interrupted one goes on where it stopped."""
    if argv:
        print(__doc__)
        return 0 if argv[0] in ("-h", "--help") else 2
    from wagle.loggers.run_folder import is_finished
    from wagle.reporting.comparison import show_comparison
    from wagle.reporting.reproduction import Reproduction

    RESULTS.mkdir(parents=True, exist_ok=True)
    print("1. a language model that knows other authors and some real facts", flush=True)
    base = _make_model("fine_tune_base")
    with (
        ProcessPoolExecutor(
            WORKERS,
            get_context("spawn"),
            initializer=_start_worker,
            initargs=(RESULTS / "log.txt",),
        ) as pool,
        _passing_on(),
    ):
        print("2. the model to be unlearned, and one that never saw the forget set", flush=True)
        made = [pool.submit(_make_model, name, base) for name in ("fine_tune", "fine_tune_retain")]
        original, retrained = (future.result() for future in made)
        # Nothing that other models have left behind is ever used.
        output = RESULTS / _digest(original, retrained)
        print("3. unlearning, with several masks and seeds", flush=True)
        goal = _goal(retrained, output)
        if not is_finished(goal.folder):
            pool.submit(_unlearn, goal.arguments).result()
        request = TableRequest(
            table="tofu",
            config_file=CONFIGS,
            output=output,
            methods=DEMO_METHODS,
            masks=MASKS,
            seeds=SEEDS,
            overrides=(
                *("--overall.model_name", str(original)),
                *("--evaluation.retain_results", str(goal.folder / "tofu.json")),
            ),
        )
        runs = Reproduction("tofu", plan_runs(request), output, "make demo")
        runs.run(lambda run, slot: _PooledRun(pool.submit(_unlearn, run.arguments)), WORKERS)
    if runs.failures:
        return 1
    show_comparison(runs.outcomes(), goal.folder, output)
    return 0


def _make_model(name: str, base: Path | None = None) -> Path:
    """Make the model of a configuration, and return its folder.

    Where somebody's own model lies in the configuration's folder, another one is used.
    """
    from wagle.model.fine_tuning import fine_tune_from_config

    arguments = ["--config_file", str(CONFIGS / f"{name}.json")]
    if base is not None:
        arguments += ["--overall.model_name", str(base)]
    try:
        return fine_tune_from_config(_load_fine_tuning(arguments))
    except ConfigError:
        config = _load_fine_tuning(arguments)
        folder = f"{config.finetune.output_dir}_{config.fingerprint()[:8]}"
        return fine_tune_from_config(
            _load_fine_tuning([*arguments, "--finetune.output_dir", folder])
        )


def _digest(*models: Path) -> str:
    """Eight digits that models of other weights do not have."""
    digest = hashlib.sha256()
    for folder in models:
        digest.update((folder / "model.safetensors").read_bytes())
    return digest.hexdigest()[:8]


def _load_fine_tuning(arguments: Sequence[str]) -> FineTuneConfig:
    return load_config(arguments, FineTuneConfig, prog="demo", description="")


def _goal(retrained: Path, output: Path) -> PlannedRun:
    """The evaluation of the model that never saw the forget set, which unlearning is to equal."""
    row = TableRow("Retrained")
    folder = output / "runs" / row.name / "evaluation"
    arguments = (
        *("--config_file", str(CONFIGS / f"{DEMO_METHODS[0]}.json")),
        *("--unlearn.unlearn_method", "origin", "--overall.model_name", str(retrained)),
        *("--logger.json.root", str(folder.parent), "--logger.name", folder.name),
    )
    config = load_config(arguments, prog="demo", description="")
    return PlannedRun(row, None, arguments, folder, config)


@contextmanager
def _passing_on() -> Iterator[None]:
    """Within, a request to end reaches the worker processes too."""
    try:
        yield
    except KeyboardInterrupt:
        _ask_workers_to_end()
        raise


@cache
def _ask_workers_to_end() -> None:
    """Ask each, after the step or batch at hand; only once, since the second time is at once."""
    for worker in active_children():
        worker.terminate()


def _start_worker(log: Path) -> None:
    """A worker has one core, ends after a step when asked to, and says what it says to a file."""
    import torch

    from wagle import stopping

    # A terminal's Ctrl-C reaches all; the first process passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping.install()
    torch.set_num_threads(1)
    sys.stdout.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)


def _unlearn(arguments: Sequence[str]) -> None:
    from wagle.commands import unlearn

    unlearn.main(arguments)


class _PooledRun:
    """A run in one of the worker processes, which import torch but once."""

    def __init__(self, future: Future[None]) -> None:
        self.future = future

    def ended(self) -> bool:
        return self.future.done()

    def interrupt(self) -> None:
        if not self.future.cancel():
            _ask_workers_to_end()

    def kill(self) -> None:
        for worker in active_children():
            worker.kill()

    def reason(self) -> str:
        return str(self.future.exception())
