"""Packed gradients against whole ones: the same weights, and never a whole model of gradients."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.tiny import CONFIGS, make_model
from tests.unlearning import (
    ROWS,
    batches,
    make_mask,
    make_objective,
    make_rows,
    recipe,
)
from wagle.errors import WagleError
from wagle.model.lora import add_lora, merge_lora, without_lora
from wagle.optim.bitmask import BitMask
from wagle.optim.gradients import PackedGradients
from wagle.optim.masked_adamw import MaskedAdamW
from wagle.planning.simulation import MemoryTracker
from wagle.training.schedule import Plan
from wagle.unlearn import training
from wagle.unlearn.reference import SwappedWeights
from wagle.unlearn.training import unlearn


def train(model, *, steps=4, method="GA+FT", accumulation=1, mask=None, reference=None, **changes):
    """Steps of batches of two rows; returns the log."""
    objective = make_objective(method)
    if objective.needs_reference_model and reference is None:
        reference = SwappedWeights(model, mask)
    plan = Plan.make(
        ROWS,
        batch_size=2,
        accumulation=accumulation,
        num_epochs=1,
        max_steps=steps,
        whole_epochs=False,
    )
    rows = make_rows(objective, model)
    return unlearn(model, rows, objective, mask, reference, plan, recipe(**changes), seed=0)


def assert_equal(models):
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not all(map(torch.equal, models[0].parameters(), make_model().parameters()))


VARIANTS = [
    {},
    {"masked": False},
    {"method": "GA+KL"},
    {"method": "DPO+FT"},
    {"method": "RMU", "gradient_checkpointing": True},
    {"method": "l1_sparse"},
    {"method": "FT"},
    {"method": "FT", "sophia": True},
    {"sophia": True, "masked": False},
]


@pytest.mark.parametrize(("device", "accumulation"), [("cpu", 3), ("accelerator", 1)])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_weights_are_those_of_dense_gradients(device, accumulation, changes, monkeypatch):
    """Bit for bit in float32, where both ways add the same numbers in the same order.

    They do not where a step reads more than two texts in several terms: (a + b) + (c + d) is then
    ((a + b) + c) + d.
    """
    if device == "accelerator":
        monkeypatch.setattr("wagle.devices.on_cpu", lambda where: False)
    monkeypatch.setattr(training, "SOPHIA_REFRESH_STEPS", 2)
    models = []
    for gradients in ("dense", "packed"):
        options = dict(changes)
        models.append(make_model())
        if options.pop("masked", True):
            options["mask"] = make_mask(models[-1])
        train(
            models[-1], accumulation=accumulation, gradients=gradients, max_grad_norm=0.0, **options
        )
    method = changes.get("method")
    if method in ("l1_sparse", "FT") or (accumulation == 1 and method != "DPO+FT"):
        assert_equal(models)
    else:
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)


def test_terms_of_one_forward_pass_go_back_together():
    weights = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    optimizer = MaskedAdamW([weights])
    with PackedGradients(optimizer, max_norm=1.0) as gradients:
        squares = weights**2
        terms = [squares.sum(), 10 * squares[0]]
        gradients.backward(terms[0] + terms[1], terms, last=True)
        assert optimizer.packed_gradients[weights].tolist() == [44.0, 6.0]


def test_tied_weights_have_one_gradient():
    """The sum of the embedding's and the head's, taken when it is whole."""
    models = []
    for gradients in ("dense", "packed"):
        models.append(make_model("llama_tied"))
        assert models[-1].lm_head.weight is models[-1].model.embed_tokens.weight
        mask = {
            name: BitMask.from_bool(
                torch.rand(p.shape, generator=torch.Generator().manual_seed(3)) < 0.4
            )
            for name, p in models[-1].named_parameters()
        }
        train(models[-1], method="FT", mask=mask, gradients=gradients, max_grad_norm=0.0)
    embeddings = [m.model.embed_tokens.weight for m in models]
    assert torch.equal(*embeddings)
    assert not torch.equal(embeddings[0], make_model("llama_tied").model.embed_tokens.weight)


def test_lora_weights_are_those_of_dense_gradients():
    models = []
    for gradients in ("dense", "packed"):
        torch.manual_seed(0)
        adapted = add_lora(make_model())
        reference = lambda adapted=adapted: without_lora(adapted)  # noqa: E731
        options = {"gradients": gradients, "max_grad_norm": 0.0, "reference": reference}
        train(adapted, method="GA+KL", **options)
        models.append(merge_lora(adapted))
    assert_equal(models)


@pytest.mark.usefixtures("either_device")
@pytest.mark.parametrize("masters", [True, False])
def test_16_bit_weights_are_those_of_dense_gradients(masters):
    models = []
    for gradients in ("dense", "packed"):
        models.append(make_model().bfloat16())
        options = {"master_weights": masters, "gradients": gradients, "max_grad_norm": 0.0}
        options["method"] = "FT"
        train(models[-1], mask=make_mask(models[-1]), **options)
    assert_equal(models)


def test_16_bit_gradients_add_up_in_float32():
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    mask = BitMask.from_bool(torch.tensor([False, True]))
    optimizer = MaskedAdamW([parameter], masks={parameter: mask}, master_weights=True)
    with PackedGradients(optimizer, max_norm=0.0) as gradients:
        for value in (256.0, 1.0, 1.0):  # bfloat16 has no 257: it would stay at 256
            gradients.backward((parameter * value).sum(), (), last=False)
        assert parameter.grad is None
        assert optimizer.packed_gradients[parameter].tolist() == [258.0]
        assert float(gradients.clip()) == 258.0


def selected_norm(model, mask, read):
    """Norm of the selected gradients of the mean loss of some batches, in float64."""
    objective = make_objective("GA+FT")
    for batch in read:
        (objective(model, batch, None) / len(read)).backward()
    parts = [p.grad[mask[name].to_bool()].double() for name, p in model.named_parameters()]
    return float(torch.cat(parts).norm())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_packed_gradients_are_clipped_by_their_own_norm(accumulation, monkeypatch):
    taken = []
    update = MaskedAdamW.update

    def spy(optimizer, parameters):
        taken.append(torch.cat([optimizer.packed_gradients[p] for p in parameters]).norm())
        update(optimizer, parameters)

    monkeypatch.setattr(MaskedAdamW, "update", spy)
    model = make_model()
    log = train(
        model,
        mask=make_mask(model),
        accumulation=accumulation,
        gradients="packed",
        max_grad_norm=1e-2,
    )
    read = batches(make_objective("GA+FT"))[:accumulation]
    expected = selected_norm(make_model().train(), make_mask(model), read)
    assert log[0]["grad_norm"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-2
    assert [float(norm) for norm in taken] == pytest.approx([1e-2] * 4, rel=1e-3)


def test_the_norm_of_gradients_that_are_used_at_once_is_logged():
    model = make_model()
    log = train(model, mask=make_mask(model), gradients="packed", max_grad_norm=0.0)
    read = batches(make_objective("GA+FT"))[:1]
    expected = selected_norm(make_model().train(), make_mask(model), read)
    assert log[0]["grad_norm"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("either_device")
@pytest.mark.parametrize(
    ("method", "max_norm", "kept"), [("FT", 0.0, 0), ("FT", 1.0, 1), ("GA+FT", 0.0, 1)]
)
def test_no_more_is_kept_than_needed(model, monkeypatch, method, max_norm, kept):
    """Of one loss that is not clipped nothing; else packed gradients, for the norm or a term."""
    whole, packed = [], []
    take = PackedGradients._take

    def spy(self, parameter):
        whole.append(sum(p.grad is not None for p in model.parameters()))
        take(self, parameter)
        packed.append(len(self.optimizer.packed_gradients))
        assert parameter.grad is None

    monkeypatch.setattr(PackedGradients, "_take", spy)
    mask = make_mask(model)
    train(model, method=method, mask=mask, gradients="packed", max_grad_norm=max_norm)
    trained = sum(bits.count() > 0 for bits in mask.values())
    assert set(whole) == {1}
    assert max(packed) == kept * trained
    assert not packed[-1] or max_norm


@pytest.mark.parametrize("method", ["FT", "GA+FT"])
def test_packed_gradients_spare_most_of_the_memory_of_dense_ones(method):
    """Of all tensors that a step makes, in a model so wide that activations are small beside it."""
    config = copy.deepcopy(CONFIGS["llama"])
    config.update({"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4})
    peaks = {}
    for gradients in ("dense", "packed"):
        model = LlamaForCausalLM(config)
        generator = torch.Generator().manual_seed(1)
        mask = {
            name: BitMask.from_bool(torch.rand(p.shape, generator=generator) < 0.1)
            for name, p in model.named_parameters()
        }
        with MemoryTracker(model) as tracker:
            train(model, method=method, mask=mask, gradients=gradients, max_grad_norm=0.0)
        peaks[gradients] = tracker.peak.total()
    size = sum(p.nbytes for p in model.parameters())
    assert peaks["dense"] - peaks["packed"] > 0.6 * size


def test_nothing_is_left_behind(model):
    train(model, mask=make_mask(model), gradients="packed")
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_no_number_touches_no_weight(model, accumulation, monkeypatch):
    """Of any batch of a window, even where weights are updated as gradients come."""
    read, before = [], []
    backward = PackedGradients.backward

    def spoil(self, loss, terms, *, last):
        read.append(loss)
        if len(read) == accumulation + 1:  # the first batch of the second step
            before.extend(p.detach().clone() for p in model.parameters())
            loss = loss * math.nan
        backward(self, loss, () if loss is not read[-1] else terms, last=last)

    monkeypatch.setattr(PackedGradients, "backward", spoil)
    options = {"method": "FT", "gradients": "packed", "max_grad_norm": 0.0}
    with pytest.raises(WagleError, match="diverged at step 2"):
        train(model, mask=make_mask(model), accumulation=accumulation, **options)
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_a_gradient_that_is_no_number_ends_training(model, max_norm):
    model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(WagleError, match=r"diverged at step 1.*the gradient norm is nan"):
        train(model, mask=make_mask(model), gradients="packed", max_grad_norm=max_norm)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
