"""Quantisation in plain torch, against levels searched one by one and codes known by hand."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.tiny import make_model
from wagle.model.quantization import (
    FP4_LEVELS,
    NF4_LEVELS,
    compare_to_bins,
    quantize,
    quantize_model,
)
from wagle.optim.bitmask import BitMask

# The levels as they are printed in papers, and a block whose codes follow from them by hand.
PRINTED = (
    *(-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0),
    *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1),
)


def test_nf4_gives_each_level_its_code():
    block = torch.tensor([*PRINTED, *[0.0] * 48])
    found = quantize(3 * block, "nf4")
    assert found.codes.tolist() == [*range(16), *[7] * 48]
    assert torch.allclose(found.values, 3 * block, atol=1e-6)


def test_nf4_codes_by_hand():
    # Largest 2: the scale. 0.07 lies just beyond the middle of 0 and 0.0795803 times 2 (0.0795803).
    block = torch.tensor([2.0, -2.0, 0.09, 0.07, -0.08, -0.1, 1.2, -0.9])
    expected = [15, 0, 8, 7, 7, 6, 13, 3]
    assert quantize(torch.cat([block, torch.zeros(56)]), "nf4").codes[:8].tolist() == expected


@pytest.mark.parametrize(("kind", "levels"), [("nf4", NF4_LEVELS), ("fp4", FP4_LEVELS)])
def test_every_weight_becomes_the_nearest_level_of_its_group(kind, levels):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((5, 30), generator=generator)  # the third group has 22 weights
    weight[1, 10:] = 0
    found = quantize(weight.bfloat16(), kind)
    flat = weight.bfloat16().double().view(-1)
    for start in range(0, 150, 64):
        group = flat[start : start + 64]
        scale = group.abs().max()
        for weight_, value in zip(group, found.values.view(-1)[start : start + 64], strict=True):
            nearest = min((abs(weight_ - level * scale), level * scale) for level in levels)
            assert abs(value - weight_) <= nearest[0] + 1e-6
    assert found.codes.shape == found.widths.shape == (5, 30)


def test_int8_has_a_scale_for_each_row():
    weight = torch.tensor([[127.0, -64.0, 0.4], [0.0, 0.0, 0.0], [1.27, 0.01, -0.006]])
    found = quantize(weight, "int8")
    assert found.codes.tolist() == [[127, -64, 0], [0, 0, 0], [127, 1, -1]]
    assert found.widths[:, 0].tolist() == pytest.approx([1.0, 0.0, 0.01])


def test_only_the_blocks_linear_layers_are_rounded():
    model = make_model()
    before = copy.deepcopy(model)
    quantize_model(model, "nf4")
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(old, new) == ("proj" not in name)
    once = copy.deepcopy(model)
    quantize_model(model, "nf4")  # what is rounded stays as it is
    for old, new in zip(once.parameters(), model.parameters(), strict=True):
        assert torch.allclose(old, new, atol=1e-6)


def test_moves_are_counted_in_bins():
    before = make_model()
    after = copy.deepcopy(before)
    name = "model.layers.0.self_attn.q_proj.weight"
    mask = {n: BitMask.full(p.shape, False) for n, p in before.named_parameters()}
    chosen = torch.zeros(16, 16, dtype=torch.bool)
    chosen[2, 3] = chosen[4, 5] = True
    mask[name] = BitMask.from_bool(chosen)
    widths = quantize(before.get_parameter(name), "int8").widths
    with torch.no_grad():
        after.get_parameter(name)[2, 3] += 0.1 * widths[2, 3]
        after.get_parameter(name)[0, 0] += 1  # the mask leaves it out
    found = compare_to_bins(before, after, mask, "int8")
    assert (found["weights"], found["moved"], sum(found["counts"])) == (2, 1, 1)
    place = found["counts"].index(1)
    assert found["edges"][place] <= 0.1001
    assert found["edges"][place + 1] >= 0.0999
