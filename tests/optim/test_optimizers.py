"""Masked optimizers against torch's dense AdamW and a dense Sophia written out."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wagle.optim import chunks
from wagle.optim.bitmask import BitMask
from wagle.optim.chunks import multiply_by_mask
from wagle.optim.masked_adamw import MaskedAdamW
from wagle.optim.sophia import SophiaG, sample_tokens

pytestmark = pytest.mark.usefixtures("either_device")

CHUNK = 1 << 15
SHAPES = [(7, 5), (), (3,), (CHUNK // 64 + 1, 67), (16,)]
STEPS = 20
SOPHIA = partial(SophiaG, lr=1e-4, betas=(0.9, 0.95), rho=0.03)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """So that a small tensor is more than one of them."""
    monkeypatch.setattr(chunks, "CPU_CHUNK", CHUNK)
    monkeypatch.setattr(chunks, "WIDE_CHUNK", CHUNK)


def make_problem(dtype=torch.float32):
    """Parameters (one longer than a chunk) with masks of density 0.3; one empty, one full mask."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES
    ]
    chosen = [torch.rand(shape, generator=generator) < 0.3 for shape in SHAPES]
    chosen[2] = torch.zeros(SHAPES[2], dtype=torch.bool)
    chosen[4] = torch.ones(SHAPES[4], dtype=torch.bool)
    masks = {p: BitMask.from_bool(c) for p, c in zip(parameters, chosen, strict=True)}
    return parameters, chosen, masks


def gradients(step: int, parameters):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in parameters]


def run(optimizer, parameters, chosen=None, steps=range(STEPS)):
    for step in steps:
        for i, (parameter, gradient) in enumerate(
            zip(parameters, gradients(step, parameters), strict=True)
        ):
            parameter.grad = gradient if chosen is None else gradient * chosen[i]
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_selected_weights_move_as_dense_adamw_moves_them(weight_decay):
    parameters, chosen, masks = make_problem()
    start = [p.detach().clone() for p in parameters]
    dense = [torch.nn.Parameter(p.clone()) for p in start]
    options = {"lr": 1e-2, "weight_decay": weight_decay}
    run(MaskedAdamW(parameters, masks=masks, **options), parameters)
    run(torch.optim.AdamW(dense, **options), dense, chosen)
    for p, d, s, c in zip(parameters, dense, start, chosen, strict=True):
        torch.testing.assert_close(p[c], d[c], rtol=1e-6, atol=1e-6)
        assert torch.equal(p[~c], s[~c])
        if c.any():
            assert not torch.equal(p[c], s[c])


def test_state_exists_for_selected_weights_only():
    parameters, chosen, masks = make_problem()
    optimizer = MaskedAdamW(parameters, masks=masks)
    run(optimizer, parameters, steps=range(1))
    assert parameters[2] not in optimizer.state
    for p, c in zip(parameters, chosen, strict=True):
        if c.any():
            assert optimizer.state[p]["exp_avg"].shape == (int(c.sum()),)
            assert optimizer.state[p]["exp_avg_sq"].shape == (int(c.sum()),)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.8])
def test_state_and_mask_take_the_share_of_dense_adamw_that_the_ratio_says(ratio):
    parameter = torch.nn.Parameter(torch.zeros(300, 500))
    parameter.grad = torch.ones_like(parameter)
    chosen = torch.rand(300, 500, generator=torch.Generator().manual_seed(0)) < ratio
    mask = BitMask.from_bool(chosen)
    optimizer = MaskedAdamW([parameter], masks={parameter: mask})
    optimizer.step()
    state = optimizer.state[parameter].values()
    held = mask.bits.nbytes + sum(value.nbytes for value in state if torch.is_tensor(value))
    allowed = ratio * 2 * parameter.nbytes + parameter.numel() / 8
    assert held == pytest.approx(allowed, rel=0.05)


@pytest.mark.parametrize("make", [MaskedAdamW, SOPHIA])
def test_results_do_not_depend_on_the_number_of_threads(make):
    results, threads = [], torch.get_num_threads()
    for count in (1, 3):
        parameters, _, masks = make_problem()
        parameters.append(torch.nn.Parameter(torch.linspace(-1, 1, 100_003)))  # without a mask
        optimizer = make(parameters, masks=masks, weight_decay=0.1)
        try:
            torch.set_num_threads(count)
            run(optimizer, parameters, steps=range(3))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
        results.append(parameters)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


def test_the_conventions_of_torch_optimizers_hold():
    """A scheduler, a closure, a late group, an absent gradient, a group's own learning rate."""
    parameters, _, masks = make_problem()
    start = [p.detach().clone() for p in parameters]
    dense = [torch.nn.Parameter(p.clone()) for p in start[:2]]
    optimizer = MaskedAdamW(parameters[:1], lr=1e-2, masks={parameters[1]: masks[parameters[1]]})
    optimizer.add_param_group({"params": [parameters[1], parameters[4]], "lr": 1e-3})
    reference = torch.optim.AdamW(dense[:1], lr=1e-2, weight_decay=0.0)
    reference.add_param_group({"params": dense[1:], "lr": 1e-3})
    schedules = [
        torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=STEPS)
        for o in (optimizer, reference)
    ]
    for step in range(STEPS):
        for p, d, g in zip(parameters, dense, gradients(step, parameters), strict=False):
            p.grad, d.grad = g, g.clone()
        if step == 3:
            parameters[0].grad = dense[0].grad = None
        assert optimizer.step(lambda: torch.tensor(2.5)) == 2.5
        reference.step()
        for schedule in schedules:
            schedule.step()
    selected = masks[parameters[1]].to_bool()
    torch.testing.assert_close(parameters[0], dense[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parameters[1][selected], dense[1][selected], rtol=1e-6, atol=1e-6)
    assert torch.equal(parameters[1][~selected], start[1][~selected])
    assert torch.equal(parameters[4], start[4])  # never had a gradient
    assert parameters[4] not in optimizer.state


def test_masters_collect_updates_that_bf16_would_lose():
    lr = 1e-5
    parameters, chosen, masks = make_problem(torch.bfloat16)
    with_masters = copy.deepcopy(parameters)
    exact = [torch.nn.Parameter(p.detach().float()) for p in parameters]
    start = [p.detach().clone() for p in parameters]
    run(MaskedAdamW(parameters, masks=masks, lr=lr), parameters)
    moved_masks = {p: masks[q] for p, q in zip(with_masters, parameters, strict=True)}
    optimizer = MaskedAdamW(with_masters, masks=moved_masks, lr=lr, master_weights=True)
    dense = torch.optim.AdamW(exact, lr=lr, weight_decay=0.0)
    for step in range(STEPS):
        for p, e, g in zip(with_masters, exact, gradients(step, parameters), strict=True):
            p.grad, e.grad = g, g.float()
        optimizer.step()
        dense.step()
    for p, e, c, s, plain in zip(with_masters, exact, chosen, start, parameters, strict=True):
        assert torch.equal(p[c], e[c].to(torch.bfloat16))
        assert torch.equal(p[~c], s[~c])
        if c.any():
            master = optimizer.state[p]["master"]
            torch.testing.assert_close(master, e[c].reshape(-1), rtol=1e-6, atol=1e-7)
        large = c & (s.abs() > 0.1)  # lr is below half a bf16 ulp there
        assert torch.equal(plain[large], s[large])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [MaskedAdamW, SOPHIA])
def test_resuming_from_a_state_dict_is_exact(make, dtype):
    def optimizer_for(parameters, masks):
        return make(parameters, masks=masks, lr=1e-3, weight_decay=0.1, master_weights=True)

    parameters, _, masks = make_problem(dtype)
    first = optimizer_for(parameters, masks)
    run(first, parameters, steps=range(5))
    saved = copy.deepcopy(first.state_dict())
    weights = [p.detach().clone() for p in parameters]
    run(first, parameters, steps=range(5, 10))

    resumed, _, masks = make_problem(dtype)
    for p, w in zip(resumed, weights, strict=True):
        p.data.copy_(w)
    second = optimizer_for(resumed, masks)
    second.load_state_dict(saved)
    run(second, resumed, steps=range(5, 10))
    for p, q in zip(parameters, resumed, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("make_other", ["mask", "masters"])
def test_foreign_state_is_refused_and_changes_nothing(make_other):
    parameters, _, masks = make_problem(torch.bfloat16)
    optimizer = MaskedAdamW(parameters, masks=masks)
    run(optimizer, parameters, steps=range(1))
    if make_other == "mask":
        other, message = MaskedAdamW(parameters), "another mask"
    else:
        other, message = MaskedAdamW(parameters, masks=masks, master_weights=True), "without master"
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state


def test_a_parameter_that_is_not_contiguous_is_refused():
    with pytest.raises(ValueError, match="not contiguous"):
        MaskedAdamW([torch.nn.Parameter(torch.zeros(3, 4).T)])


def test_a_mask_of_the_wrong_shape_is_refused():
    parameter = torch.nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        MaskedAdamW([parameter], masks={parameter: BitMask.full((4, 3), False)})


def test_sophia_equals_a_dense_reference():
    parameters, chosen, masks = make_problem()
    start = [p.detach().clone() for p in parameters]
    lr, rho, beta1, beta2, decay, batch = 1e-2, 0.05, 0.9, 0.95, 0.1, 12
    optimizer = SophiaG(
        parameters, lr=lr, betas=(beta1, beta2), rho=rho, weight_decay=decay, masks=masks
    )
    expected = [p.detach().double() for p in parameters]
    average = [torch.zeros_like(p) for p in expected]
    hessian = [torch.zeros_like(p) for p in expected]
    for step in range(STEPS):
        for p, g in zip(parameters, gradients(step, parameters), strict=True):
            p.grad = g
        if step % 5 == 0:
            optimizer.update_hessian(batch)
        optimizer.step()
        for i, g in enumerate(gradients(step, parameters)):
            g = g.double() * chosen[i]
            if step % 5 == 0:
                hessian[i] = beta2 * hessian[i] + (1 - beta2) * batch * g * g
            average[i] = beta1 * average[i] + (1 - beta1) * g
            ratio = (average[i] / (rho * hessian[i]).clamp(min=1e-15)).clamp(-1, 1)
            expected[i] = expected[i] * (1 - lr * decay) - lr * ratio
    for p, e, s, c in zip(parameters, expected, start, chosen, strict=True):
        torch.testing.assert_close(p[c].double(), e[c], rtol=1e-4, atol=1e-5)
        assert torch.equal(p[~c], s[~c])


def test_sampled_tokens_are_distributed_as_the_model_predicts():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    sampled = sample_tokens(probabilities.log().expand(4000, 3))  # more than are drawn at once
    shares = sampled.bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.03)


def test_sampled_tokens_follow_the_model():
    logits = torch.full((600, 5), -1e9)
    sure = torch.arange(600) % 5  # of each row's token
    logits[torch.arange(600), sure] = 0
    assert torch.equal(sample_tokens(logits), sure)


@given(st.lists(st.booleans(), max_size=200), st.data())
def test_bit_masks_pack_and_unpack(bits, data):
    tensor = torch.tensor(bits, dtype=torch.bool)
    mask = BitMask.from_bool(tensor)
    assert torch.equal(mask.to_bool(), tensor)
    assert mask.count() == sum(bits)
    assert mask.bits.numel() == (len(bits) + 7) // 8
    start = 8 * data.draw(st.integers(0, len(bits) // 8))
    stop = data.draw(st.integers(start, len(bits) + 20))
    assert mask.flat(start, stop).tolist() == bits[start:stop]
    full = BitMask.full((len(bits),), True)
    assert full == BitMask.from_bool(torch.ones(len(bits), dtype=torch.bool))


def test_gradients_are_multiplied_by_the_mask_in_chunks(monkeypatch):
    monkeypatch.setattr("wagle.optim.chunks.WIDE_CHUNK", 16)
    generator = torch.Generator().manual_seed(0)
    selected = torch.rand(7, 9, generator=generator) < 0.4
    gradient = torch.randn(7, 9, generator=generator)
    expected = torch.where(selected, gradient, torch.zeros(()))
    multiply_by_mask(gradient, BitMask.from_bool(selected))
    assert torch.equal(gradient, expected)
