"""Numbers by layer against sums over whole models."""

from __future__ import annotations

import pytest
import torch
from gradient_sums import random_examples, sums_by_hand
from unlearning import make_mask

from tests.tiny import make_model
from wagle.unlearn.mask.layers import mask_effects, score_shares, update_norms

LAYERS = ["outside", "0", "1"]


def of_layer(layer, name):
    return f".{layer}." in name if layer.isdigit() else ".layers." not in name


class Sums:
    """As a file of sums is read."""

    def __init__(self, tensors):
        self.read = tensors.__getitem__


def test_effects_against_gradients_of_the_losses():
    model = make_model()
    mask, gamma, batches = make_mask(model), 0.7, 3
    sums = {
        k: sums_by_hand(model, random_examples(6, s), 2) for s, k in enumerate(("forget", "retain"))
    }
    found = mask_effects(mask, {k: Sums(v) for k, v in sums.items()}, batches=batches, gamma=gamma)
    assert list(found) == LAYERS
    for layer, effect in found.items():
        names = [name for name in mask if of_layer(layer, name)]
        chosen = torch.cat([mask[name].to_bool().flatten() for name in names])
        mean = {k: torch.cat([v[n].flatten() for n in names]) / batches for k, v in sums.items()}
        descended = torch.where(chosen, gamma * mean["retain"] - mean["forget"], 0)
        assert effect.forget == pytest.approx(float(descended @ mean["forget"]), rel=1e-9)
        assert effect.retain == pytest.approx(float(descended @ mean["retain"]), rel=1e-9)


def test_norms_of_updates_and_shares_of_scores():
    before, after = make_model(), make_model(seed=1)
    changes = {n: (p - before.get_parameter(n)).detach() for n, p in after.named_parameters()}
    norms = update_norms(before, after)
    assert list(norms) == LAYERS
    for layer, norm in norms.items():
        parts = [c.flatten() for n, c in changes.items() if of_layer(layer, n)]
        assert norm == pytest.approx(float(torch.cat(parts).double().norm()), rel=1e-5)

    def stream():
        for name, change in changes.items():
            yield name, 0, lambda change=change: change.abs().flatten()

    whole = sum(float(c.double().abs().sum()) for c in changes.values())
    for layer, share in score_shares(stream).items():
        part = sum(float(c.double().abs().sum()) for n, c in changes.items() if of_layer(layer, n))
        assert share == pytest.approx(part / whole, rel=1e-6)
