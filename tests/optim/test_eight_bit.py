"""Moments in 8 bits, against a search for the nearest share and AdamW written out."""

from __future__ import annotations

import copy

import pytest
import torch

from wagle.optim import chunks
from wagle.optim.bitmask import BitMask
from wagle.optim.eight_bit import BLOCK, EightBit, shares
from wagle.optim.masked_adamw import MaskedAdamW
from wagle.optim.sophia import SophiaG

CHUNK = 9000  # elements, so that blocks end before they are full
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CPU_CHUNK", CHUNK)
    monkeypatch.setattr(chunks, "WIDE_CHUNK", CHUNK)


def rounded(values, signed):
    """Block by block, each value as the nearest share of the largest, by trying all of them."""
    table, parts = shares(signed=signed).double(), []
    for block in values.double().split(BLOCK):
        largest = block[block.abs().argmax()]
        if largest == 0:
            parts.append(torch.zeros_like(block))
            continue
        away = (block / largest)[:, None] - table
        parts.append(table[away.abs().argmin(1)] * largest)
    return torch.cat(parts)


def test_the_shares_are_those_of_the_papers_own_code():
    # bitsandbytes.functional.create_dynamic_map and torchao.optim.quant_utils give these
    signed, positive = shares(signed=True), shares(signed=False)
    assert (len(signed), len(positive)) == (256, 255)
    known = {0: -0.99296875, 63: -0.10703125, 64: -0.09859375, 126: -5.5e-7, 127: 0.0, 128: 5.5e-7}
    known |= {129: 3.25e-6, 254: 0.99296875, 255: 1.0}
    for index, share in known.items():
        assert float(signed[index]) == pytest.approx(share, rel=1e-6)
    for index, share in {0: 3.25e-7, 1: 7.75e-7, 253: 0.996484375, 254: 1.0}.items():
        assert float(positive[index]) == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [3, BLOCK, 3 * BLOCK + 1])
def test_what_is_read_is_the_nearest_share(signed, count):
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(count, generator=generator) * torch.rand(count, generator=generator) ** 8
    values[:BLOCK] *= 0 if count > BLOCK else 1  # a block of zeros
    values = values if signed else values.square()
    piece = slice(5, 5 + count)
    vector = EightBit([piece], dtype=torch.float32, device=CPU, signed=signed)
    assert not vector[piece].any()
    vector[piece] = values
    read = vector[piece]
    for block, own in zip(values.split(BLOCK), read.split(BLOCK), strict=True):
        at = block.abs().argmax()
        assert own[at] == block[at]
    # where two shares are nearly as near, either is
    expected = (rounded(values, signed) - values).abs()
    torch.testing.assert_close((read - values).abs().double(), expected, rtol=1e-4, atol=1e-9)
    vector[piece] = read
    assert torch.equal(vector[piece], read)
    assert vector.nbytes == count + 4 * -(-count // BLOCK)


def make_problem(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    parameters = [
        torch.nn.Parameter(torch.randn(n, 100, generator=generator).to(dtype)) for n in (300, 50, 9)
    ]
    mask = torch.rand(300, 100, generator=generator) < 0.7
    return parameters, {parameters[0]: BitMask.from_bool(mask)}


def run(optimizer, parameters, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for p in parameters:
            spread = torch.rand(p.shape, generator=generator) ** 6
            p.grad = (torch.randn(p.shape, generator=generator) * spread).to(p.dtype)
        optimizer.step()


def test_a_step_is_that_of_adamw_with_rounded_moments():
    parameters, masks = make_problem()
    selected = masks[parameters[0]].to_bool()
    flat = [parameters[0][selected], parameters[1].flatten(), parameters[2].flatten()]
    weights = [values.detach().double() for values in flat]
    of_chunks = [int(part.sum()) for part in selected.flatten().split(CHUNK)]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    lr, decay, steps = 1e-2, 0.1, 4
    optimizer = MaskedAdamW(parameters, lr=lr, weight_decay=decay, masks=masks, eight_bit=True)
    for step in range(steps):
        run(optimizer, parameters, [step])
        gradients = [p.grad.double() for p in parameters]
        gradients = [gradients[0][selected], gradients[1].flatten(), gradients[2].flatten()]
        for i, (w, g, (m, v)) in enumerate(zip(weights, gradients, moments, strict=True)):
            m.lerp_(g, 0.1)
            v.lerp_(g * g, 0.001)
            first, second = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            w.mul_(1 - lr * decay).sub_(lr * first / (second.sqrt() + 1e-8))
            if i < 2:  # 900 elements are too few
                cuts = of_chunks if i == 0 else [5000]
                m.copy_(torch.cat([rounded(part, signed=True) for part in m.split(cuts)]))
                v.copy_(torch.cat([rounded(part, signed=False) for part in v.split(cuts)]))
    found = [parameters[0][selected], parameters[1].flatten(), parameters[2].flatten()]
    for own, w in zip(found, weights, strict=True):
        # a value half-way between two shares may be rounded to either
        away = (own.detach().double() - w).abs()
        assert (away > 1e-5).sum() <= 3
        assert float(away.max()) < 0.1 * lr
    state = optimizer.state[parameters[2]]
    assert isinstance(state["exp_avg"], torch.Tensor)
    assert isinstance(optimizer.state[parameters[1]]["exp_avg"], EightBit)


def test_a_small_gradient_beside_a_large_one_makes_no_large_step():
    parameter = torch.nn.Parameter(torch.zeros(5000))
    optimizer = MaskedAdamW([parameter], lr=1.0, eight_bit=True)
    gradient = torch.full((5000,), 1e-4)  # its square is 1e-8 of the largest, and no share of it
    gradient[::BLOCK] = 1.0
    for _ in range(3):
        parameter.grad = gradient.clone()
        optimizer.step()
    assert float(parameter.detach().abs().max()) <= 3.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [MaskedAdamW, SophiaG])
def test_what_goes_on_ends_as_what_never_stopped(make, dtype):
    sophia = {"betas": (0.9, 0.95), "rho": 0.03} if make is SophiaG else {}
    options = {"lr": 1e-3, "weight_decay": 0.1, "master_weights": True, "eight_bit": True, **sophia}
    parameters, masks = make_problem(dtype)
    first = make(parameters, masks=masks, **options)

    def go(optimizer, parameters, steps):
        for step in steps:
            run(optimizer, parameters, [step])
            if make is SophiaG:
                optimizer.update_hessian(4)

    go(first, parameters, range(3))
    floats = [  # as checkpoints have it
        {k: v.whole() if isinstance(v, EightBit) else v.clone() for k, v in state.items()}
        for state in first.packed_state()
    ]
    weights = [p.detach().clone() for p in parameters]
    digests = [digest for _, _, digest in first.parts]
    go(first, parameters, range(3, 5))

    again, masks = make_problem(dtype)
    for p, w in zip(again, weights, strict=True):
        p.data.copy_(w)
    second = make(again, masks=masks, **options)
    state = {i: {**own, "mask": digests[i]} for i, own in enumerate(floats)}
    second.load_state_dict({**copy.deepcopy(second.state_dict()), "state": state})
    go(second, again, range(3, 5))
    for p, q in zip(parameters, again, strict=True):
        assert torch.equal(p, q)
