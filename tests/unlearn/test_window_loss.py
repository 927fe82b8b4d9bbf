"""SAM, smoothing and averaged weights, against plain gradients of whole batches."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from tests.tiny import make_model
from tests.unlearning import ROWS, batches, make_mask, make_objective, make_rows, recipe
from wagle.errors import ConfigError
from wagle.model.lora import add_lora
from wagle.training.optimizer import make_optimizer
from wagle.training.schedule import Plan
from wagle.unlearn.objectives import no_reference
from wagle.unlearn.reference import SwappedWeights
from wagle.unlearn.training import unlearn
from wagle.unlearn.window_loss import WeightAverage, WindowLoss


def train(model, method="GA+FT", mask=None, steps=6, **changes):
    objective = make_objective(method)
    plan = Plan.make(
        ROWS, batch_size=2, accumulation=2, num_epochs=1, max_steps=steps, whole_epochs=False
    )
    reference = SwappedWeights(model, mask) if objective.needs_reference_model else None
    rows, section = make_rows(objective, model), recipe(**changes)
    return unlearn(model, rows, objective, mask, reference, plan, section, seed=0)


def masked(model, mask):
    """An optimizer of the selected weights."""
    parameters = dict(model.named_parameters())
    return make_optimizer(
        model,
        lr=0.1,
        weight_decay=0.0,
        master_weights=False,
        masks={parameters[name]: mask[name] for name in mask},
    )


def gradients_of(model, objective, window, name):
    """Whole gradients of one term, meant over a window, by plain torch; tensor by tensor."""
    terms = [objective.terms(model, batch, no_reference)[name] for batch in window]
    parameters = list(model.parameters())
    return torch.autograd.grad(sum(terms) / len(terms), parameters, allow_unused=True)


def displaced_gradients(model, displacement, objective, window):
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, by in zip(moved.parameters(), displacement, strict=True):
            parameter.add_(by)
    return gradients_of(moved, objective, window, "forget")


def found_gradients(model, mask, window, objective, **how):
    loss = WindowLoss(objective, no_reference, masked(model, mask), seed=3, **how)
    loss.prepare(model, 5, window)
    for batch in window:
        for part in loss.share(model, batch, window):
            part.value.backward()
    return [parameter.grad for parameter in model.parameters()]


def compare(found, forget, retain):
    for gradient, one, other in zip(found, forget, retain, strict=True):
        expected = one if other is None else one + other
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_sam_takes_the_forget_gradient_up_its_slope():
    """ε = ρ g/‖g‖ of the whole window, over the selected weights; the retain term is at θ."""
    model, objective = make_model(), make_objective("GA+FT")
    mask, window = make_mask(model), batches(objective)[:2]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    selected = [mask[name].to_bool() for name, _ in model.named_parameters()]
    forget = gradients_of(model, objective, window, "forget")
    chosen = [g * bits for g, bits in zip(forget, selected, strict=True)]
    norm = torch.cat([g.flatten() for g in chosen]).norm()
    expected = displaced_gradients(model, [0.5 * g / norm for g in chosen], objective, window)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(expected, forget, strict=True))
    retain = gradients_of(model, objective, window, "retain")
    found = found_gradients(model, mask, window, objective, sam_rho=0.5, smoothing_std=0.0)
    compare(found, expected, retain)
    for parameter, weights in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, weights)


def test_smoothing_takes_the_mean_of_three_gradients_at_noisy_weights():
    model, objective = make_model(), make_objective("GA+FT")
    mask, window = make_mask(model), batches(objective)[:2]
    forget = []
    for number in range(3):
        key = random.Random(f"smoothing 3 5 {number}").getrandbits(62)
        generator, noise = torch.Generator().manual_seed(key), []
        groups = masked(model, mask).param_groups  # those that decay come first
        names = {parameter: name for name, parameter in model.named_parameters()}
        drawn = {}
        for parameter in (p for group in groups for p in group["params"]):
            bits = mask[names[parameter]].to_bool()
            values = 0.05 * torch.randn(int(bits.sum()), generator=generator)
            drawn[parameter] = torch.zeros(parameter.shape).masked_scatter(bits, values)
        noise = [drawn[parameter] for parameter in model.parameters()]
        forget.append(displaced_gradients(model, noise, objective, window))
    mean = [sum(tensors) / 3 for tensors in zip(*forget, strict=True)]
    retain = gradients_of(model, objective, window, "retain")
    found = found_gradients(model, mask, window, objective, sam_rho=0.0, smoothing_std=0.05)
    compare(found, mean, retain)


def test_averaged_weights_are_the_mean_after_each_step_from_one_on():
    model = make_model()
    mask = make_mask(model)
    optimizer = masked(model, mask)
    average, seen = WeightAverage(optimizer, 2, steps=4), []
    for done in range(5):
        average.add(done)
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
        with torch.no_grad():
            for parameter, (name, bits) in zip(model.parameters(), mask.items(), strict=True):
                assert name in dict(model.named_parameters())
                parameter.add_(bits.to_bool() * (done + 1.0))
    average.install()
    for parameter, *after in zip(model.parameters(), *seen[2:], strict=True):
        torch.testing.assert_close(parameter.detach(), sum(after) / 3)


OPTIONS = {
    "SAM": {"sam_rho": 0.05},
    "smoothing": {"smoothing_std": 0.05},
    "averaging": {"average_from": 3},
}


@pytest.mark.parametrize("gradients", ["dense", "packed"])
@pytest.mark.parametrize("option", OPTIONS)
def test_weights_outside_the_mask_stay_bit_for_bit(option, gradients):
    model, plain = make_model(), make_model()
    before, mask = copy.deepcopy(dict(model.named_parameters())), make_mask(model)
    how = {"gradients": gradients, "max_grad_norm": 0.0, "mask": mask}
    train(model, **how, **OPTIONS[option])
    train(plain, **how)
    moved = False
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        frozen = ~mask[name].to_bool()
        assert torch.equal(parameter[frozen], before[name][frozen]), name
        moved |= not torch.equal(parameter, other)
    assert moved


def test_a_method_without_a_retain_term_and_adapters_take_all_of_them():
    for method in ("GA", "CL", "RMU"):
        model = make_model()
        options = {"mask": None, "sam_rho": 0.05, "average_from": 2}
        if method == "RMU":  # by way of all its terms
            options["mask"] = make_mask(model)
        assert train(model, method, steps=3, **options)[-1]["step"] == 3
    assert train(add_lora(make_model()), steps=3, smoothing_std=0.01)[-1]["step"] == 3


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="about the forget term, and this method has none"):
        train(make_model(), "FT", sam_rho=0.01)
    with pytest.raises(ConfigError, match="average_from is 7, but there are 6 steps"):
        train(make_model(), average_from=7)
