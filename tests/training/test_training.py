"""Objectives through training on a tiny model: what moves, what stays, and what a step sees."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.tiny import make_model
from tests.unlearning import (
    ROWS,
    batches,
    encode,
    make_dataset,
    make_mask,
    make_objective,
    make_rows,
    recipe,
)
from wagle.catalogue import METHODS
from wagle.dataset.encoding import IGNORED, pad_batch
from wagle.errors import WagleError
from wagle.model.lora import adapted_share, add_lora, merge_lora, without_lora
from wagle.optim.bitmask import BitMask
from wagle.optim.sophia import SophiaG, sample_tokens
from wagle.training.schedule import Plan
from wagle.unlearn import training
from wagle.unlearn.objectives.losses import cross_entropy
from wagle.unlearn.reference import SwappedWeights
from wagle.unlearn.training import unlearn


def train(model, method, *, mask=None, reference=None, max_steps=3, **changes):
    """Unlearn for some steps of two batches of two rows; returns the log."""
    objective = make_objective(method)
    if objective.needs_reference_model and reference is None:
        reference = SwappedWeights(model, mask)
    rows = make_rows(objective, model)
    plan = Plan.make(
        ROWS, batch_size=2, accumulation=2, num_epochs=1, max_steps=max_steps, whole_epochs=False
    )
    return unlearn(model, rows, objective, mask, reference, plan, recipe(**changes), seed=0)


@pytest.fixture
def optimizers(monkeypatch):
    """The optimizers that training makes."""
    made = []
    make = training.make_optimizer

    def keep(*args, **options):
        made.append(make(*args, **options))
        return made[-1]

    monkeypatch.setattr(training, "make_optimizer", keep)
    return made


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(model, method, masked):
    before = copy.deepcopy(dict(model.named_parameters()))
    mask = make_mask(model) if masked else None
    assert train(model, method, mask=mask)[-1]["step"] == 3
    moved = 0
    for name, parameter in model.named_parameters():
        frozen = ~mask[name].to_bool() if masked else torch.zeros(parameter.shape, dtype=bool)
        assert torch.equal(parameter[frozen], before[name][frozen]), name
        # not all of them: rows of the embedding whose tokens never occur have no gradient, and
        # dense RMU reads nothing behind its layer
        moved += int((parameter != before[name]).sum())
    selected = sum(bits.count() for bits in mask.values()) if masked else model.num_parameters()
    assert 0.3 * selected < moved <= selected


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"TaskArithmetic"}))
def test_every_method_trains_adapters_alone(model, method):
    before = copy.deepcopy(dict(model.named_parameters()))
    adapted = add_lora(model)
    train(adapted, method, reference=lambda: without_lora(adapted))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero before; those behind RMU's layer stay
            assert parameter.any() or method == "RMU", name
        elif "lora_A" not in name:
            plain = name.removeprefix("base_model.model.").replace("base_layer.", "")
            assert torch.equal(parameter, before[plain]), name


def test_task_arithmetic_takes_away_what_learning_would_add(model):
    """θ₀ − 2 (θ_ft − θ₀), with the frozen weights bit for bit as before."""
    start, learnt = make_model(), make_model()
    mask = make_mask(model)
    objective = METHODS["TaskArithmetic"].load()
    plan = Plan.make(ROWS, batch_size=2, accumulation=2, num_epochs=1, max_steps=4, whole_epochs=0)
    for trained, scale in ((model, 2.0), (learnt, -1.0)):  # the latter is θ_ft itself
        rows = make_rows(objective(scale=scale), trained)
        unlearn(trained, rows, objective(scale=scale), mask, None, plan, recipe(), seed=0)
    for (name, p), p0, ft in zip(
        model.named_parameters(), start.parameters(), learnt.parameters(), strict=True
    ):
        frozen = ~mask[name].to_bool()
        assert torch.equal(p[frozen], p0[frozen]), name
        torch.testing.assert_close(p, p0 - 2 * (ft - p0), rtol=1e-4, atol=1e-6)
    assert not torch.equal(learnt.lm_head.weight, start.lm_head.weight)


@pytest.mark.parametrize("method", ["KL", "RMU"])
@pytest.mark.parametrize("masked", [True, False])
def test_the_reference_is_the_model_before_training(model, method, masked):
    before = copy.deepcopy(dict(model.named_parameters()))
    mask = make_mask(model) if masked else None
    reference = SwappedWeights(model, mask)
    train(model, method, mask=mask, reference=reference)
    after = copy.deepcopy(dict(model.named_parameters()))
    with reference() as original:
        assert not original.training
        for name, parameter in original.named_parameters():
            assert torch.equal(parameter, before[name]), name
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, after[name]), name


def test_16_bit_weights_with_masters_and_a_reference(optimizers):
    model = make_model().bfloat16()
    before = copy.deepcopy(dict(model.named_parameters()))
    mask = make_mask(model)
    reference = SwappedWeights(model, mask)
    changes = {"mask": mask, "reference": reference, "master_weights": True}
    train(model, "GA+KL", **changes)
    state = optimizers[0].state
    for name, parameter in model.named_parameters():
        chosen = mask[name].to_bool()
        assert torch.equal(parameter[~chosen], before[name][~chosen]), name
        if parameter in state:  # the swaps went past the masters
            assert torch.equal(parameter[chosen], state[parameter]["master"].bfloat16()), name
    with reference() as original:
        for name, parameter in original.named_parameters():
            assert torch.equal(parameter, before[name]), name


def test_lora_with_a_reference(model):
    before, ids = make_model(), torch.arange(3, 13)[None]
    adapted = add_lora(model)
    share = adapted_share(adapted)
    weights = sum(p.nbytes for p in adapted.parameters() if p.requires_grad)
    train(adapted, "GA+KL", reference=lambda: without_lora(adapted))
    adapted.train()
    with torch.no_grad(), without_lora(adapted) as original:
        assert torch.equal(original(input_ids=ids).logits, before(input_ids=ids).logits)
        assert not original.training
    assert adapted.training
    assert weights == sum(p.nbytes for p in adapted.parameters() if p.requires_grad)
    with torch.no_grad():
        trained = adapted.eval()(input_ids=ids).logits
        merged = merge_lora(adapted)
        torch.testing.assert_close(merged(input_ids=ids).logits, trained, rtol=1e-4, atol=1e-4)
    changed = [
        name
        for (name, p), q in zip(merged.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(p, q)
    ]
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    sizes = {name: p.numel() for name, p in merged.named_parameters()}
    assert share == sum(sizes[name] for name in changed) / sum(sizes.values())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("method", ["GA+KL", "RMU"])
def test_gradient_checkpointing_changes_nothing(method, lora):
    results, runs = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = make_model()
        runs.append([])
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *call: runs[-1].append(call))
        changes = {"gradient_checkpointing": checkpointing}
        if lora:
            model = add_lora(model)
            changes["reference"] = lambda model=model: without_lora(model)
        else:
            changes["mask"] = make_mask(model)
        train(model, method, **changes)
        results.append(model)
    assert len(runs[1]) > len(runs[0])  # layers did run again
    for (name, p), q in zip(results[0].named_parameters(), results[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


def test_the_loss_of_a_step_is_the_mean_over_its_batches(model):
    log = train(model, "GA+FT", lr=0.0)
    objective = make_objective("GA+FT")
    values = [float(objective(model, batch, None).detach()) for batch in batches(objective)]
    expected = [sum(values[:2]) / 2, sum(values[2:]) / 2]
    assert [entry["loss"] for entry in log[:2]] == pytest.approx(expected, rel=1e-5)


def test_forget_and_retain_loss_are_logged_apart(model):
    log = train(model, "GA+FT", lr=0.0)
    objective = make_objective("GA+FT")
    read = batches(objective)
    for name, sign in (("forget", -1.0), ("retain", objective.gamma)):
        values = [sign * float(cross_entropy(model, batch[name]).detach()) for batch in read]
        expected = [sum(values[:2]) / 2, sum(values[2:]) / 2]
        assert [entry[f"{name}_loss"] for entry in log[:2]] == pytest.approx(expected, rel=1e-5)


def test_reference_losses_equal_one_row_at_a_time(model):
    dataset = make_dataset(make_objective("DPO+FT"), model)
    for view, shift in (("forget", 0), ("refusal", 2)):
        rows = [pad_batch([encode(row, shift)], 2) for row in range(ROWS)]
        expected = [float(cross_entropy(model, row).detach()) for row in rows]
        assert dataset.reference_losses[view].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_sophia_estimates_curvature_from_the_first_batch_of_a_step(model, optimizers, masked):
    """One step at learning rate 0: h = (1 − β2) · B · ĝ², with ĝ over both views of the batch."""
    mask = make_mask(model) if masked else None
    trained = dict(model.named_parameters())
    train(model, "GA+FT", mask=mask, lr=0.0, max_steps=2, sophia=True)
    batch = batches(make_objective("GA+FT"))[0]
    generator = torch.Generator().manual_seed(0)
    total, count = 0, 0
    model = make_model().train()
    for view in ("forget", "retain"):
        labelled = batch[view]["labels"][:, 1:] != IGNORED
        inputs = {name: batch[view][name] for name in ("input_ids", "attention_mask")}
        log_probs = model(**inputs).logits[:, :-1][labelled].log_softmax(dim=-1)
        drawn = sample_tokens(log_probs.detach(), generator)
        total = total - log_probs.gather(1, drawn[:, None]).sum()
        count += len(drawn)
    (total / count).backward()
    state = optimizers[0].state
    for name, parameter in model.named_parameters():
        if trained[name] not in state:
            assert masked
            continue
        gradient = parameter.grad[mask[name].to_bool()] if masked else parameter.grad.reshape(-1)
        expected = 0.05 * count * gradient**2
        torch.testing.assert_close(state[trained[name]]["hessian"], expected, rtol=1e-4, atol=1e-9)


def test_sophia_refreshes_every_ten_steps_and_repeats(monkeypatch):
    refreshed, models = [], []
    update = SophiaG.update_hessian

    def count(optimizer, size):
        state = next(iter(optimizer.state.values()), {"step": 0})
        refreshed.append(int(state["step"]))
        update(optimizer, size)

    monkeypatch.setattr(SophiaG, "update_hessian", count)
    for sophia, repetition in ((True, 1), (True, 2), (False, 3)):
        models.append(make_model())
        torch.manual_seed(repetition)
        mask = make_mask(models[-1])
        train(models[-1], "GA+FT", mask=mask, max_steps=11, sophia=sophia)
        state = torch.get_rng_state()
    assert refreshed == [0, 10, 0, 10]
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p, q), name
        frozen = ~mask[name].to_bool()
        assert torch.equal(p[frozen], make_model().get_parameter(name)[frozen]), name
    train(make_model(), "GA+FT", max_steps=11, sophia=True)
    assert torch.equal(torch.get_rng_state(), state)  # the draws leave torch's own state alone


@pytest.mark.parametrize("enforcement", ["optimizer", "gradient"])
def test_a_mask_that_selects_nothing_is_refused(model, enforcement):
    mask = {name: BitMask.full(p.shape, False) for name, p in model.named_parameters()}
    with pytest.raises(WagleError, match="selects no weight"):
        train(model, "GA", mask=mask, mask_enforcement=enforcement)


def test_lora_is_the_published_one(model):
    """Rank 8, scale 32 / 8 and dropout 0.05, on the query and value projections."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapted = add_lora(model)
    expected, generator = {}, torch.Generator().manual_seed(0)
    for name, layer in adapted.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        up.data = torch.randn(up.shape, generator=generator)
        assert down.shape[0] == up.shape[1] == 8
        assert layer.lora_dropout["default"].p == 0.05
        own = f"{name.removeprefix('base_model.model.')}.weight"
        expected[own] = before[own] + 4 * up.detach() @ down.detach()
    assert {name.split(".")[-2] for name in expected} == {"q_proj", "v_proj"}
    assert len(expected) == 4
    merged = dict(merge_lora(adapted).named_parameters())
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name].detach(), weight)
