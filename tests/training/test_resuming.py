"""A training that is interrupted and goes on ends as one that was not, bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import make_model
from tests.unlearning import ROWS, encode, make_objective, make_rows, recipe
from wagle import stopping
from wagle.errors import Terminated, WagleError
from wagle.loggers import files
from wagle.model.fine_tuning import fine_tune
from wagle.model.lora import add_lora, merge_lora, without_lora
from wagle.optim.bitmask import BitMask
from wagle.training import checkpoint, schedule
from wagle.training.checkpoint import Checkpoints, Standing
from wagle.training.optimizer import make_optimizer
from wagle.training.schedule import Plan
from wagle.unlearn.reference import SwappedWeights
from wagle.unlearn.training import unlearn

STEPS = 22  # an entry of the log every second; two windows in an epoch, of three batches and of one
LENGTH = {"batch_size": 2, "accumulation": 3, "num_epochs": 1, "max_steps": STEPS}


@pytest.fixture(scope="module", autouse=True)
def _entries_of_the_log():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(schedule, "LOG_ENTRIES", STEPS // 2)
        yield


class Watched(Checkpoints):
    """Checkpoints of a process that is killed after a step, and of which steps it has done."""

    def __init__(self, folder, *, killed_after=None, every=5, origin="a", keeps_last=False):
        super().__init__(folder, {"config": origin}, every=every, keeps_last=keeps_last)
        self.killed_after, self.steps = killed_after, []

    def after_step(self, standing, *args, **options):
        super().after_step(standing, *args, **options)
        self.steps.append(standing.step)
        if standing.step == self.killed_after:
            raise InterruptedError  # nothing is written on the way out


def mask_of(model):
    generator = torch.Generator().manual_seed(1)
    shares = {
        p: 0.3 if p.dim() > 1 else float(index % 2) for index, p in enumerate(model.parameters())
    }
    return {
        name: BitMask.from_bool(torch.rand(p.shape, generator=generator) < shares[p])
        for name, p in model.named_parameters()
    }


def train(
    checkpoints=None,
    method="GA+FT",
    architecture="llama",
    dtype=torch.float32,
    masked=False,
    lora=False,
    steps=STEPS,
    num_workers=0,
    on_log=lambda entry: None,
    **changes,
):
    """Unlearn a fresh tiny model; returns it with the log."""
    model = make_model(architecture).to(dtype)
    objective = make_objective(method)
    rows = make_rows(objective, model, num_workers)
    mask = mask_of(model) if masked else None
    torch.manual_seed(3)
    trained = add_lora(model) if lora else model
    reference = (lambda: without_lora(trained)) if lora else SwappedWeights(trained, mask)
    plan = Plan.make(ROWS, whole_epochs=False, **{**LENGTH, "max_steps": steps})
    log = unlearn(
        *(trained, rows, objective, mask, reference, plan, recipe(**{"lr": 3e-3, **changes})),
        seed=0,
        on_log=on_log,
        checkpoints=checkpoints,
    )
    return merge_lora(trained) if lora else trained, log


def tune(checkpoints=None, dtype=torch.float32):
    """Fine-tune a fresh tiny model with dropout; returns it with the log."""
    model = make_model("gpt2").to(dtype)
    numbers = {"lr": 3e-3, "weight_decay": 0.1, "seed": 5, "pad_token_id": 2}
    plan = Plan.make(ROWS, whole_epochs=True, warmup=0.3, **LENGTH)
    rows = [encode(row) for row in range(ROWS)]
    log = fine_tune(model, rows, plan, **numbers, master_weights=True, checkpoints=checkpoints)
    return model, log


def without_times(log):
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [{key: value for key, value in entry.items() if key not in timed} for entry in log]


def assert_same(found, expected):
    (model, log), (straight, whole) = found, expected
    assert without_times(log) == without_times(whole)
    for (name, p), q in zip(model.named_parameters(), straight.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.fixture(scope="module")
def straight():
    """The plain training, undisturbed."""
    return train()


BFLOAT16 = {"dtype": torch.bfloat16}
CASES = {
    "dense": {},
    "masked": {"masked": True},
    "dropout": {"architecture": "gpt2"},
    "masked, dropout": {"architecture": "gpt2", "masked": True},
    "LoRA": {"lora": True, "method": "GA+KL"},
    "Sophia": {"sophia": True, "masked": True},
    "Sophia, masters": {"sophia": True, **BFLOAT16, "master_weights": True},
    "masters": {**BFLOAT16, "master_weights": True},
    "masked, masters": {**BFLOAT16, "master_weights": True, "masked": True, "moments": "8bit"},
    "packed gradients": {"masked": True, "gradients": "packed", "max_grad_norm": 0.0},
    "published": {**BFLOAT16, "masked": True, "mask_enforcement": "gradient"},
    "reference losses": {"method": "NPO+FT", "masked": True},
    "reference model": {"method": "GA+KL", "masked": True},
    "RMU": {"method": "RMU", "masked": True},
    "PDU": {"method": "PDU"},
    "task arithmetic": {"method": "TaskArithmetic", "masked": True},
    "SAM, averaged": {"masked": True, "sam_rho": 0.01, "average_from": 6},
    "smoothing": {"method": "NPO+FT", "smoothing_std": 1e-2},
}


def kill_and_resume(run, folder, every, kills):
    done = 0
    for killed_after in kills:
        with pytest.raises(InterruptedError):
            run(Watched(folder, every=every, killed_after=killed_after))
        again, done = Watched(folder, every=every), killed_after // every * every
    result = run(again)
    assert again.steps[0] == done + 1  # nothing before is done again
    assert again.resumed[-1]["after"] == f"step {done}"
    return result


# In the middle of an epoch and of an entry of the log, and between two of both.
KILLS = {"every": 3, "kills": (5, 6)}
FEW = 8  # steps, an entry of the log every second


@pytest.mark.parametrize("case", CASES)
def test_unlearning_that_goes_on_ends_as_if_it_had_not_stopped(case, tmp_path, monkeypatch):
    def run(checkpoints=None):
        return train(checkpoints, steps=FEW, **CASES[case])

    monkeypatch.setattr(schedule, "LOG_ENTRIES", FEW // 2)
    assert_same(kill_and_resume(run, tmp_path, **KILLS), run())


def test_processes_that_load_rows_change_nothing(tmp_path):
    def run(checkpoints=None, num_workers=1):
        return train(checkpoints, "GA+FT", "gpt2", steps=6, num_workers=num_workers)

    assert_same(kill_and_resume(run, tmp_path, every=3, kills=[4]), run(num_workers=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fine_tuning_that_goes_on_ends_as_if_it_had_not_stopped(dtype, tmp_path):
    def run(checkpoints=None):
        return tune(checkpoints, dtype)

    assert_same(kill_and_resume(run, tmp_path, **KILLS), run())


def test_every_step_may_be_the_last_one(tmp_path):
    """Killed again and again; what was resumed when is remembered."""
    options = {"architecture": "gpt2", "masked": True, "steps": FEW}
    straight = train(**options)
    for killed_after in range(1, FEW):
        with pytest.raises(InterruptedError):
            train(Watched(tmp_path / "c", every=1, killed_after=killed_after), **options)
    last = Watched(tmp_path / "c", every=1)
    entries = []
    assert_same(train(last, on_log=entries.append, **options), straight)
    assert without_times(entries) == without_times(straight[1])
    assert [entry["after"] for entry in last.resumed] == [f"step {n}" for n in range(1, FEW)]


# ----------------------------------------------------------------------------- what is kept


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_are_kept_with_nothing_beside_them(tmp_path):
    with pytest.raises(InterruptedError):
        train(Watched(tmp_path, every=5, killed_after=17))
    assert names(tmp_path) == ["step-00000010", "step-00000015"]
    assert names(tmp_path / "step-00000015") == ["checkpoint.json", "tensors.safetensors"]
    dead = tmp_path / "step-00000020.999999999.0123450123abcd.partial"
    dead = dead.with_name(dead.name.replace("012345", checkpoint_host()))
    dead.mkdir()
    (dead / "tensors.safetensors").write_bytes(b"half")
    with pytest.raises(InterruptedError):
        train(Watched(tmp_path, every=50, killed_after=16))
    assert names(tmp_path) == ["step-00000010", "step-00000015"]


def checkpoint_host():
    files._swept.clear()  # as in a process that has just been started
    return files._HOST


def test_of_a_masked_model_the_selected_weights_are_kept_and_of_lora_the_adapters(tmp_path):
    def weights(folder):
        return sum(
            vector.numel()
            for name, vector in load_file(folder / "step-00000005/tensors.safetensors").items()
            if name.startswith("weights.")
        )

    for name, options in {"masked": {"masked": True}, "lora": {"lora": True}, "dense": {}}.items():
        with pytest.raises(InterruptedError):
            train(Watched(tmp_path / name, killed_after=5), **options)
    model = make_model()
    selected = sum(bits.count() for bits in mask_of(model).values())
    assert weights(tmp_path / "masked") == selected < 0.5 * model.num_parameters()
    assert weights(tmp_path / "dense") == model.num_parameters()
    adapted = add_lora(model)
    adapters = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert weights(tmp_path / "lora") == adapters


def test_a_model_that_is_saved_nowhere_else_is_kept_after_the_last_step(tmp_path, straight):
    train(Watched(tmp_path, every=50))
    assert not tmp_path.joinpath(f"step-{STEPS:08}").exists()
    train(Watched(tmp_path, every=50, keeps_last=True))
    again = Watched(tmp_path, every=50, keeps_last=True)
    assert_same(train(again), straight)
    assert again.steps == []
    again.remove()
    assert not tmp_path.exists()


def test_checkpoints_by_time_take_a_small_share_of_it(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    written = []

    class Slow(Checkpoints):
        def _write(self, path, *args, **options):
            written.append(path.name)
            clock[0] += 60  # to write

        def after_step(self, *args, **options):
            clock[0] += 100  # to do a step
            super().after_step(*args, **options)

    train(Slow(tmp_path, {}, every=None, keeps_last=False), steps=44)
    assert written == [f"step-{step:08}" for step in (6, 18, 30, 42)]


# ---------------------------------------------------------------------- what must not be used


def damage_document(path):
    content = json.loads((path / "checkpoint.json").read_text())
    content["step"] += 1
    (path / "checkpoint.json").write_text(json.dumps(content))


def flip_a_bit(path):
    file = path / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "another step": damage_document,
    "flipped bit": flip_a_bit,
    "no tensors": lambda path: (path / "tensors.safetensors").unlink(),
    "cut short": lambda path: os.truncate(path / "tensors.safetensors", 1000),
    "no JSON": lambda path: (path / "checkpoint.json").write_text("{"),
    "a list": lambda path: (path / "checkpoint.json").write_text("[]"),
    "nothing in it": lambda path: [file.unlink() for file in path.iterdir()],
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The checkpoints of the plain training after its steps 5 and 10."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(InterruptedError):
        train(Watched(folder, killed_after=11))
    return folder


@pytest.fixture
def two_checkpoints(killed, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_used(
    damage, two_checkpoints, tmp_path, capsys, straight
):
    DAMAGES[damage](tmp_path / "step-00000010")
    again = Watched(tmp_path, every=50)
    assert_same(train(again), straight)
    assert again.steps[0] == 6
    assert "step-00000010 is damaged" in capsys.readouterr().out
    assert names(tmp_path) == ["step-00000005"]


def test_where_all_checkpoints_are_damaged_training_begins_anew(
    two_checkpoints, tmp_path, straight
):
    for path in tmp_path.iterdir():
        flip_a_bit(path)
    assert_same(train(Watched(tmp_path, every=50)), straight)


def test_checkpoints_of_another_training_are_never_used(tmp_path, capsys, straight):
    with pytest.raises(InterruptedError):
        train(Watched(tmp_path, killed_after=11), lr=1e-2)
    other = Watched(tmp_path, origin="b")
    assert_same(train(other), straight)
    assert (other.steps[0], other.resumed) == (1, [])
    assert "of another training: they are removed" in capsys.readouterr().out


def test_a_full_disk_does_not_end_a_training(tmp_path, capsys, monkeypatch, straight):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        assert_same(train(Watched(tmp_path / "c", every=10)), straight)
    assert "no checkpoint after step 20" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.*"))


def test_all_generators_are_put_back(tmp_path):
    model, (standing, optimizer) = make_model(), parts_of_a_training()
    checkpoints = Watched(tmp_path)
    standing.step = 5
    checkpoints.after_step(standing, optimizer, model.device, steps=STEPS, asked=False)

    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    expected = draw()
    draw()
    Watched(tmp_path).restore(parts_of_a_training()[1], model.device)
    assert draw() == expected


def parts_of_a_training():
    optimizer = make_optimizer(make_model(), lr=0.1, weight_decay=0.0, master_weights=False)
    return Standing(), optimizer


# ------------------------------------------------------------------------------------- signals


def interrupted(folder, *kinds, in_step=7):
    """Training that gets signals in the middle of a step: its checkpoints, and how it ended."""
    checkpoints, entries = Watched(folder, every=50), []

    def on_log(entry):
        entries.append(entry)
        if len(entries) == in_step // 2:
            for kind in kinds:
                os.kill(os.getpid(), kind)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(checkpoints, on_log=on_log)
    return checkpoints, caught.value


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_training_after_the_step_with_a_checkpoint(kind, tmp_path, handled, capsys):
    checkpoints, error = interrupted(tmp_path, kind)
    assert (error.kind if isinstance(error, Terminated) else signal.SIGINT) == kind
    assert checkpoints.steps[-1] == 6 == int(checkpoints.newest.name[-8:])
    assert f"the same command goes on after step 6 of {STEPS}" in capsys.readouterr().out


def test_another_process_is_told_which_signal_it_was():
    error = pickle.loads(pickle.dumps(Terminated(signal.SIGHUP)))
    assert (error.kind, str(error)) == (signal.SIGHUP, "SIGHUP")


def test_what_a_signal_has_ended_goes_on(tmp_path, handled, straight):
    interrupted(tmp_path, signal.SIGTERM)
    again = Watched(tmp_path, every=50)
    assert_same(train(again), straight)
    assert again.steps[0] == 7


def test_the_second_signal_ends_training_at_once(tmp_path, handled):
    checkpoints, _ = interrupted(tmp_path, signal.SIGINT, signal.SIGINT)
    assert (checkpoints.steps[-1], checkpoints.newest) == (5, None)


def test_a_signal_that_came_too_late_for_a_step_is_not_forgotten(handled):
    with pytest.raises(Terminated), stopping.deferring("this step"):
        os.kill(os.getpid(), signal.SIGTERM)
    with stopping.deferring("this step") as request:
        assert request.kind is None


def test_a_step_that_fails_does_not_make_a_signal_forgotten(handled):
    def failing(*kinds):
        with stopping.deferring("this step"):
            for kind in kinds:
                os.kill(os.getpid(), kind)
            raise WagleError("who evaluates goes on with the next part after this")

    with pytest.raises(Terminated):
        failing(signal.SIGTERM)
    with pytest.raises(WagleError):
        failing()
