"""Training by several processes gives what one process gives, with the same batches in a step."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.several import together
from tests.tiny import make_model
from tests.unlearning import make_objective, make_rows, recipe
from wagle import ranks, shards
from wagle.model.lora import add_lora, merge_lora
from wagle.optim.bitmask import BitMask
from wagle.training.checkpoint import Checkpoints
from wagle.training.schedule import Plan
from wagle.unlearn.reference import SwappedWeights
from wagle.unlearn.training import unlearn

PLAN = Plan.make(7, batch_size=1, accumulation=4, num_epochs=3, whole_epochs=True)
SHORT = Plan.make(7, batch_size=1, accumulation=4, num_epochs=1, whole_epochs=True)
CASES = {  # method, architecture, whether there is a mask, further settings
    "dense": ("GA+FT", "llama", False, {}),
    "masked": ("GA+FT", "llama", True, {}),
    "tied": ("GA+FT", "gpt2", True, {}),
    "packed": ("GA+FT", "gpt2", True, {"gradients": "packed"}),
    "packed, not clipped": ("GA+FT", "llama", True, {"gradients": "packed", "max_grad_norm": 0.0}),
    "gradient": ("GA+FT", "llama", True, {"mask_enforcement": "gradient"}),
    "NPO": ("NPO+FT", "llama", True, {}),
    "KL": ("GA+KL", "llama", True, {}),
    "RMU": ("RMU", "llama", False, {}),
    "Sophia": ("GA+FT", "gpt2", True, {"sophia": True}),
    "LoRA": ("GA+FT", "llama", False, {}),
    "SAM": ("GA+FT", "llama", True, {"sam_rho": 0.01, "average_from": 1}),
    "PDU": ("PDU", "llama", True, {}),
}
UNEVEN = ["dense", "tied", "packed", "NPO"]  # three share 16 rows so; Sophia goes on in three


def _make_mask(model):
    generator = torch.Generator().manual_seed(1)
    mask = {
        name: BitMask.from_bool(torch.rand(p.shape, generator=generator) < 0.3)
        for name, p in model.named_parameters()
    }
    first, *_, last = mask
    mask[last] = BitMask.full(mask[last].shape, True)
    # A key's bias has no gradient but rounding errors, of which AdamW makes whole steps.
    for name in (first, *(name for name in mask if name.endswith("c_attn.bias"))):
        mask[name] = BitMask.full(mask[name].shape, False)
    return mask


class _Killed(Checkpoints):
    """Checkpoints every third step, of processes that are killed after the fourth."""

    def after_step(self, standing, *args, **options):
        super().after_step(standing, *args, **options)
        if standing.step == 4:
            raise InterruptedError


def _train(case, sharded, checkpoints=None, plan=PLAN):
    method, kind, masked, options = CASES[case]
    model = make_model(kind)
    mask = _make_mask(model) if masked else None
    objective = make_objective(method)
    rows = make_rows(objective, model)
    if sharded:
        shards.shard(model)
    adapted = add_lora(model) if case == "LoRA" else None
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # which units are dropped is chance
    log = unlearn(
        adapted or model,
        rows,
        objective,
        mask,
        SwappedWeights(model, mask) if objective.needs_reference_model else None,
        plan,
        recipe(**options),
        seed=0,
        checkpoints=checkpoints,
    )
    if adapted is not None:
        model = merge_lora(adapted)
    weights = {name: shards.whole(p.detach()) for name, p in model.named_parameters()}
    return log, weights


def _train_all(cases, sharded):
    return {case: _train(case, sharded, plan=SHORT) for case in cases}


@pytest.fixture(scope="module")
def alone():
    """What one process leaves, by case."""
    return functools.cache(lambda case: _train(case, sharded=False, plan=SHORT))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharded", "size", "cases"),
    [
        pytest.param(True, 2, list(CASES), id="fsdp-2"),
        pytest.param(True, 3, UNEVEN, id="fsdp-3"),
        pytest.param(False, 2, ["masked", "packed", "NPO", "RMU", "Sophia", "LoRA"], id="ddp-2"),
        pytest.param(False, 3, ["dense", "packed", "PDU"], id="ddp-3"),
    ],
)
def test_losses_and_weights_are_those_of_one_process(alone, sharded, size, cases):
    outcomes = together(size, _train_all, cases, sharded)
    for case in cases:
        log, weights = alone(case)
        for outcome in outcomes:
            own_log, own = outcome[case]
            for entry, expected in zip(own_log[:-1], log[:-1], strict=True):
                assert entry == pytest.approx(expected, rel=1e-5, abs=1e-7), case
            for name, weight in weights.items():
                away = float((own[name] - weight).abs().max())
                assert away <= 1e-5, f"{case}, {name}: {away}"


def _begin(case, folder):
    with pytest.raises(InterruptedError):
        _train(case, True, _Killed(folder, {}, every=3, keeps_last=False))


def _go_on(case, folder):
    checkpoints = Checkpoints(folder, {}, every=None, keeps_last=False)
    result = _train(case, ranks.size() > 1, checkpoints)
    assert [entry["after"] for entry in checkpoints.resumed] == ["step 3"]
    return result


@pytest.mark.parametrize("case", ["Sophia", "SAM", "PDU"])
def test_another_number_of_processes_goes_on(case, tmp_path):
    together(2, _begin, case, tmp_path / "training")
    log, weights = _train(case, sharded=False)
    for own_log, own in (
        _go_on(case, tmp_path / "training"),
        together(3, _go_on, case, tmp_path / "training")[2],
    ):
        assert own_log[-1]["train_loss"] == pytest.approx(log[-1]["train_loss"], rel=1e-5)
        for name, weight in weights.items():
            away = float((own[name] - weight).abs().max())
            assert away <= 1e-5, f"{name}: {away}"
