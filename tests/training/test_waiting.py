"""How often a step of training waits for an accelerator: once, whatever the objective.

There is none here. What would wait for one is counted on the CPU: operations whose result has a
size that only the device knows, and tensors that become Python numbers.
"""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import wagle
from tests.tiny import make_model
from tests.unlearning import (
    ROWS,
    make_mask,
    make_objective,
    make_rows,
    recipe,
)
from wagle.catalogue import METHODS
from wagle.optim import packed
from wagle.training.schedule import Plan
from wagle.unlearn import training
from wagle.unlearn.reference import SwappedWeights
from wagle.unlearn.training import unlearn

OWN = str(Path(wagle.__file__).parent)
SIZED_BY_DATA = {
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_local_scalar_dense",
    "aten::_unique2",
}


class Waits(TorchDispatchMode):
    """Counts what this program waits for, by function, beside rows, which are on the CPU."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        by_flags = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        if name in SIZED_BY_DATA or by_flags:
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self):
        frame = inspect.currentframe()
        asked_by = []
        while frame is not None:
            if "/transformers/" in frame.f_code.co_filename:
                return
            if frame.f_code.co_filename.startswith(OWN):
                asked_by.append(frame.f_code.co_name)
            frame = frame.f_back
        if "_windows" not in asked_by:
            self.counts[asked_by[0]] += 1


class Numbers(TorchFunctionMode):
    """Notes the lists that are made of tensors, which are no operation."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu):
            self.waits.note()
        return func(*args, **(kwargs or {}))


def waits_of_a_step(method="GA+FT", accumulation=1, **changes):
    """Of the second of two, each of which the log has an entry for."""
    model = make_model()
    mask, objective = make_mask(model), make_objective(method)
    reference = SwappedWeights(model, mask) if objective.needs_reference_model else None
    rows = make_rows(objective, model)
    plan = Plan.make(
        ROWS,
        batch_size=1,
        accumulation=accumulation,
        num_epochs=1,
        max_steps=2,
        whole_epochs=False,
    )
    counted = []

    def note(entry):
        counted.append(waits.counts.copy())

    with Waits() as waits, Numbers(waits):
        unlearn(
            model,
            rows,
            objective,
            mask,
            reference,
            plan,
            recipe(**changes),
            seed=0,
            on_log=note,
        )
    return counted[1] - counted[0]


@pytest.fixture(autouse=True)
def accelerator(monkeypatch):
    monkeypatch.setattr("wagle.devices.on_cpu", lambda where: False)
    monkeypatch.setattr(training, "SOPHIA_REFRESH_STEPS", 1)
    monkeypatch.setattr(packed, "SMALLEST", 1)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "origin"])
def test_a_step_waits_once(method):
    # λ of PDU is on the CPU, where nothing is waited for; the log is written after every step here
    of_the_log = {"logged": 1} if method == "PDU" else {}
    assert waits_of_a_step(method=method) == {"_numbers": 1, **of_the_log}


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"accumulation": 3, "gradients": "packed"}, {}),
        ({"sophia": True}, {}),
        ({"moments": "8bit"}, {}),
        ({"sophia": True, "moments": "8bit", "gradients": "packed"}, {}),
        ({"mask_enforcement": "gradient"}, {}),
        # Whether the loss is a number is asked before its gradients are used.
        ({"method": "FT", "gradients": "packed", "max_grad_norm": 0.0}, {"backward": 1}),
    ],
    ids=str,
)
def test_however_it_is_made(changes, more):
    assert waits_of_a_step(**changes) == {"_numbers": 1, **more}
