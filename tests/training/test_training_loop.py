"""The training loop and its schedule against other formulations, without a language model."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wagle.errors import ConfigError, WagleError
from wagle.training.loop import Hooks, Loss, TrainingData, train
from wagle.training.optimizer import make_optimizer
from wagle.training.schedule import Plan


def make_plan(rows=10, batch_size=4, accumulation=2, num_epochs=5, max_steps=-1, **options):
    lengths = {"batch_size": batch_size, "accumulation": accumulation, "num_epochs": num_epochs}
    return Plan.make(rows, **lengths, max_steps=max_steps, **{"whole_epochs": False, **options})


# ------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("steps", "warmup"), [(2, 1), (9, 1), (19, 1), (20, 2), (99, 9), (100, 10), (500, 50)]
)
def test_a_tenth_of_the_steps_warms_up(steps, warmup):
    """max(1, steps // 10), as published."""
    assert make_plan(max_steps=steps).warmup == warmup


def test_the_learning_rate_rises_and_falls_linearly():
    plan = make_plan(max_steps=40)
    rates = [plan.rate(step) for step in range(40)]
    np.testing.assert_allclose(rates, np.interp(range(40), [0, 4, 40], [0, 1, 0]), atol=1e-12)
    assert [make_plan(max_steps=3, warmup=1.0).rate(step) for step in range(3)] == [0, 1 / 3, 2 / 3]


def test_an_entry_of_the_log_every_twentieth_of_the_steps():
    logged = [make_plan(max_steps=steps).log_every for steps in (2, 39, 40, 59, 60, 500)]
    assert logged == [1, 1, 2, 2, 3, 25]


def test_steps_by_the_published_formula_and_by_whole_epochs():
    assert make_plan().steps == 5 * 10 // (4 * 2)
    assert make_plan(whole_epochs=True).steps == 5 * 2  # windows of 8 and of 2 rows
    paper = make_plan(rows=400, batch_size=1, accumulation=4)
    assert paper.steps == make_plan(400, 1, 4, whole_epochs=True).steps == 500
    assert make_plan(max_steps=7, whole_epochs=True).steps == 7


def test_rows_that_the_published_formula_leaves_unread_are_said():
    plan = make_plan()
    assert plan.describe() == (
        "10 rows in 6 steps of 8 rows (batch size 4 × accumulation 2), 1 of them warm-up: "
        "reads 30 rows, 3 epochs"
    )
    assert "30 of the 50 rows" in plan.warning()
    for silent in (make_plan(whole_epochs=True), make_plan(max_steps=2), make_plan(rows=16)):
        assert silent.warning() is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows": 9, "batch_size": 16, "accumulation": 1, "num_epochs": 1}, "no whole step of 16"),
        ({"rows": 9, "batch_size": 8, "accumulation": 1, "num_epochs": 1}, "nothing would be tr"),
        ({"max_steps": 1}, "nothing would be trained"),
        ({"rows": 3, "num_epochs": 1, "whole_epochs": True}, "nothing would be trained"),
    ],
)
def test_a_training_of_nothing_is_refused(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        make_plan(**changes)


# ----------------------------------------------------------------------------------------- loop


class Weights(torch.nn.Module):
    """Parameters and a device; the loss is whatever a test makes of them."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.tensor([3.0, -2.0, 0.5]))
        self.bias = torch.nn.Parameter(torch.tensor([1.0]))


def run(model, plan, share, optimizer=None, read=None, **options):
    def collate(items):
        if read is not None:
            read.append(items)
        return {"x": torch.tensor(items, dtype=torch.float32)}

    rows = TrainingData(range(plan.rows), lambda epoch: range(plan.rows), collate)
    optimizer = optimizer or make_optimizer(model, lr=0.1, weight_decay=0.2, master_weights=False)
    losses = lambda *args: [Loss(share(*args))]  # noqa: E731
    return train(model, rows, losses, optimizer, plan, seed=0, **options)


def test_steps_equal_adamw_written_out():
    """Clipping to norm 1, warm-up, decay, betas and epsilon, in float64 (Loshchilov and Hutter)."""
    model, plan = Weights(), make_plan(rows=5, batch_size=1, accumulation=2, max_steps=12)

    def share(model, batch, window):
        loss = ((batch["x"] + 1) * model.matrix**2).sum() + model.bias.sum() * 1e-6
        return loss / len(window)

    log = run(model, plan, share)
    weights, moment, square = np.array([3.0, -2.0, 0.5, 1.0]), np.zeros(4), np.zeros(4)
    windows, norms = [(1, 2), (3, 4), (5,)] * 4, []
    for step, window in enumerate(windows):
        gradient = np.append(2 * weights[:3] * np.mean(window), 1e-6)
        norms.append(np.linalg.norm(gradient))
        gradient = gradient / max(1.0, norms[-1])
        rate = 0.1 * (step / 1 if step < 1 else (12 - step) / (12 - 1))
        weights = weights * (1 - rate * np.array([0.2, 0.2, 0.2, 0.0]))  # a bias does not decay
        moment = 0.9 * moment + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        mean, variance = moment / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        weights = weights - rate * mean / (np.sqrt(variance) + 1e-8)
    assert max(norms) > 5
    assert [entry["grad_norm"] for entry in log[:-1]] == pytest.approx(norms, rel=1e-4)
    found = torch.cat([model.matrix, model.bias]).detach().numpy()
    np.testing.assert_allclose(found, weights, rtol=1e-4)


def test_small_gradients_are_not_clipped():
    model, norms = Weights(), []

    def keep(step):
        norms.append(float(model.matrix.grad.norm()))

    for scale in (0.01, 100.0):
        plan = make_plan(rows=2, batch_size=1, accumulation=1, max_steps=2)
        run(
            model,
            plan,
            lambda m, b, w, s=scale: s * m.matrix.sum(),
            hooks=Hooks(before_update=keep),
        )
    assert norms == pytest.approx([0.01 * math.sqrt(3)] * 2 + [1.0] * 2, rel=1e-5)


def test_the_log_has_means_since_the_last_entry():
    plan = make_plan(rows=100, batch_size=1, accumulation=2, max_steps=45)
    log = run(Weights(), plan, lambda m, b, w: b["x"].sum() / len(w) + 0 * m.matrix.sum())
    losses = [2 * step % 100 + 0.5 for step in range(45)]
    *entries, summary = log
    assert [entry["step"] for entry in entries] == list(range(2, 46, 2))
    means = [np.mean(losses[step - 2 : step]) for step in range(2, 46, 2)]
    assert [entry["loss"] for entry in entries] == pytest.approx(means)
    assert [entry["epoch"] for entry in entries] == pytest.approx(np.arange(2, 46, 2) / 50)
    assert summary["train_loss"] == pytest.approx(np.mean(losses))
    assert summary["step"] == 45


@pytest.mark.parametrize("whole", [True, False])
def test_the_rows_really_read_are_those_that_were_announced(whole):
    read, plan = [], make_plan(whole_epochs=whole)
    run(Weights(), plan, lambda m, b, w: m.matrix.sum(), read=read)
    times = Counter(item for items in read for item in items)
    assert set(times.values()) == ({5} if whole else {3})
    assert sum(times.values()) == plan.rows_read == (50 if whole else 30)


@given(*[st.integers(1, 9)] * 3, st.integers(2, 30))
def test_rows_read_are_counted_as_windows_are_cut(rows, batch_size, accumulation, steps):
    plan = make_plan(rows, batch_size, accumulation, max_steps=steps)
    batches = [min(batch_size, rows - start) for start in range(0, rows, batch_size)]
    windows = [
        sum(batches[start : start + accumulation]) for start in range(0, len(batches), accumulation)
    ]
    assert plan.rows_read == sum(windows[step % len(windows)] for step in range(steps))
    ends = [min((i + 1) * accumulation, len(batches)) / len(batches) for i in range(len(windows))]
    expected = (steps - 1) // len(windows) + ends[(steps - 1) % len(windows)]
    assert plan.epoch_after(steps - 1) == pytest.approx(expected)


# -------------------------------------------------------------------------------- what diverges


@pytest.mark.parametrize("step", [3, 44, 45])
@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_training_ends_at_the_step_that_diverges(step, what):
    """Logged or not (45 steps have entries at the even ones), with weights still numbers."""
    model, logged, steps = Weights(), [], []
    plan = make_plan(rows=45, batch_size=1, accumulation=1, max_steps=45)

    def share(model, batch, window):
        if int(batch["x"]) + 1 < step:
            return model.matrix.sum()
        if what == "loss":
            return model.matrix.sum() * math.nan
        return (model.matrix * 0).abs().sqrt().sum()  # 0 with an infinite slope

    with pytest.raises(WagleError, match=f"training diverged at step {step}: the {what} is nan"):
        run(
            model,
            plan,
            share,
            on_log=logged.append,
            hooks=Hooks(before_update=lambda step: steps.append(1)),
        )
    assert len(steps) == step - 1
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(math.isfinite(value) for entry in logged for value in entry.values())


def test_what_is_wrong_from_the_start_is_not_blamed_on_the_learning_rate():
    with pytest.raises(WagleError, match="step 1, before any weight has moved") as caught:
        run(Weights(), make_plan(), lambda m, b, w: m.matrix.sum() * math.nan)
    assert "learning rate" not in str(caught.value)


def test_weights_that_the_last_step_breaks_are_not_returned():
    model = Weights()
    optimizer = SimpleNamespace(
        param_groups=[{"lr": 1.0}], step=lambda: model.matrix.data.fill_(math.inf)
    )
    plan = make_plan(max_steps=2)
    with pytest.raises(WagleError, match="diverged at step 2: matrix is no longer finite"):
        run(model, plan, lambda m, b, w: m.bias.sum(), optimizer)


# ----------------------------------------------------------------------------------- what decays


def test_biases_and_norms_do_not_decay():
    module = torch.nn.ModuleDict(
        {
            "proj": torch.nn.Linear(2, 2),
            "input_layernorm": torch.nn.Linear(2, 2, bias=False),
            "q_norm": torch.nn.Linear(2, 2, bias=False),
            "norm": torch.nn.Linear(2, 2, bias=False),
            "rmsnorm": torch.nn.Linear(2, 2, bias=False),
            "ln_f": torch.nn.LayerNorm(2),
            "normal": torch.nn.Linear(2, 2, bias=False),
        }
    )
    groups = make_optimizer(module, lr=1, weight_decay=0.5, master_weights=False).param_groups
    names = {parameter: name for name, parameter in module.named_parameters()}
    decaying = {names[p] for group in groups for p in group["params"] if group["weight_decay"]}
    assert decaying == {"proj.weight", "normal.weight"}
