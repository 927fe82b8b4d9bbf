"""Every objective against its formula written out by hand, and its gradient by differences."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

from src.dataset.encoding import IGNORED, Encoded, pad_batch
from src.optim.bitmask import BitMask
from src.unlearn.objectives import OBJECTIVES
from src.unlearn.reference import SwappedWeights
from tests.conftest import VOCABULARY, make_model

GAMMA, BETA, ALPHA = 0.7, 0.3, 0.01


def random_view(seed: int) -> dict[str, torch.Tensor]:
    """Three rows of unequal length, the first tokens unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in (9, 5, 7):
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORED] * 2 + ids[2:]))
    return pad_batch(rows, pad_token_id=2)


@pytest.fixture
def batch():
    views = ("forget", "retain", "refusal", "mismatched")
    batch = {view: random_view(seed) for seed, view in enumerate(views)}
    batch["forget"]["reference_loss"] = torch.tensor([2.0, 5.5, 4.0])
    batch["refusal"]["reference_loss"] = torch.tensor([3.0, 1.5, 2.0])
    return batch


def rows_of(model, view):
    """Log-probabilities and labels of each row, run alone and without padding."""
    for ids, labels, attention in zip(
        view["input_ids"], view["labels"], view["attention_mask"], strict=True
    ):
        length = int(attention.sum())
        with torch.no_grad():
            logits = model(input_ids=ids[None, :length]).logits[0].double()
        yield logits.log_softmax(-1), labels[:length]


def example_losses(model, view):
    losses = []
    for log_probs, labels in rows_of(model, view):
        terms = [
            -float(log_probs[t - 1, label])
            for t, label in enumerate(labels.tolist())
            if label != IGNORED
        ]
        losses.append(sum(terms) / len(terms))
    return losses


def ce(model, view):
    losses = example_losses(model, view)
    return sum(losses) / len(losses)


def divergence(model, original, view):
    terms = []
    for (p, _), (q, _) in zip(rows_of(model, view), rows_of(original, view), strict=True):
        terms += (-(p.exp() * (q.exp() + 1e-12).log()).sum(-1)).tolist()
    return sum(terms) / len(terms)


def npo(model, view):
    terms = []
    for loss, reference in zip(
        example_losses(model, view), view["reference_loss"].tolist(), strict=True
    ):
        terms.append(math.log(1 / (1 + math.exp(-BETA * (loss - reference)))))
    return -2 / BETA * sum(terms) / len(terms)


FORMULAS = {
    "FT": lambda m, o, b: ce(m, b["retain"]),
    "l1_sparse": lambda m, o, b: (
        ce(m, b["retain"])
        + ALPHA * sum(float(p.detach().double().abs().sum()) for p in m.parameters())
    ),
    "GA": lambda m, o, b: -ce(m, b["forget"]),
    "GA+FT": lambda m, o, b: -ce(m, b["forget"]) + GAMMA * ce(m, b["retain"]),
    "GA+KL": lambda m, o, b: (
        -GAMMA * ce(m, b["forget"]) + (1 - GAMMA) * divergence(m, o, b["retain"])
    ),
    "NPO+FT": lambda m, o, b: npo(m, b["forget"]) + GAMMA * ce(m, b["retain"]),
    "CL": lambda m, o, b: ce(m, b["refusal"]),
    "CL+FT": lambda m, o, b: ce(m, b["refusal"]) + GAMMA * ce(m, b["retain"]),
    "CL+KL": lambda m, o, b: ce(m, b["refusal"]) + GAMMA * divergence(m, o, b["retain"]),
    "RL": lambda m, o, b: ce(m, b["mismatched"]),
    "KL": lambda m, o, b: divergence(m, o, b["retain"]) - GAMMA * divergence(m, o, b["forget"]),
}


def make_objective(name):
    fields = OBJECTIVES[name].__dataclass_fields__
    values = {"gamma": GAMMA, "beta": BETA, "alpha": ALPHA}
    return OBJECTIVES[name](**{key: values[key] for key in fields})


def reference_to(original):
    return lambda: nullcontext(original)


@pytest.mark.parametrize("name", FORMULAS)
def test_value_equals_the_formula(name, batch):
    model, original = make_model(seed=0), make_model(seed=1)
    value = make_objective(name)(model, batch, reference_to(original))
    assert float(value.detach()) == pytest.approx(FORMULAS[name](model, original, batch), rel=1e-4)


@pytest.mark.parametrize("name", FORMULAS)
def test_gradient_equals_finite_differences(name, batch):
    # GPT-2 computes in float64 throughout; Llama's norms and softmax would round to float32
    model, original = make_model("gpt2", 0).double(), make_model("gpt2", 1).double()
    with torch.no_grad():  # away from zero, where |θ| has no derivative
        for parameter in model.parameters():
            parameter[parameter.abs() < 1e-3] = 0.1
    objective, reference = make_objective(name), reference_to(original)
    objective(model, batch, reference).backward()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            slope = float((parameter.grad * direction).sum())
            step = 1e-5
            values = []
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * step)
                values.append(float(objective(model, batch, reference)))
                parameter.add_(direction, alpha=-sign * step)
            measured = (values[0] - values[1]) / (2 * step)
            assert measured == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_swapped_weights_give_back_the_original(batch):
    model, original = make_model(seed=0), make_model(seed=0)
    generator = torch.Generator().manual_seed(3)
    mask = {
        name: BitMask.from_bool(torch.rand(p.shape, generator=generator) < 0.3)
        for name, p in model.named_parameters()
    }
    reference = SwappedWeights(model, mask)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(mask[name].to_bool() * 0.5)
    changed = {name: p.detach().clone() for name, p in model.named_parameters()}
    with reference() as restored:
        for (name, p), q in zip(restored.named_parameters(), original.parameters(), strict=True):
            assert torch.equal(p, q), name
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, changed[name]), name


@pytest.mark.parametrize("name", ["GA+KL", "CL+KL", "KL"])
def test_swapping_does_not_disturb_the_backward_pass(name, batch):
    """The gradient with weights swapped in and out equals the one with a frozen copy."""
    gradients = []
    for swapped in (True, False):
        model = make_model(seed=0)
        reference = SwappedWeights(model, None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        if not swapped:
            reference = reference_to(make_model(seed=0))
        make_objective(name)(model, batch, reference).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
