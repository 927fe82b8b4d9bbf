"""Linear layers of few rows against float64 products, and where they stay torch's own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from src.intrinsics import LANES, has_kernels
from src.metrics.cpu_linear import LEAST_ROWS, MOST_ROWS, OUTPUTS, few_row_linears, kernel

needs_kernel = pytest.mark.skipif(
    not has_kernels(), reason="this processor or this torch lacks what the kernel needs"
)


def make_layer(depth, width, bias=True):
    torch.manual_seed(0)
    return nn.Linear(depth, width, bias=bias)


@torch.inference_mode()
def apply(layer, inputs):
    with few_row_linears(layer):
        return layer(inputs)


@pytest.mark.parametrize(
    "rows", [1, 2, 3, 4, LEAST_ROWS, 16, 20, 40, 50, 150, MOST_ROWS, MOST_ROWS + 1]
)
@pytest.mark.parametrize("depth", [16, 48, 576])
@pytest.mark.parametrize("width", [8, 9, 15, 16, 200])
def test_products_are_those_of_float64(rows, depth, width):
    layer = make_layer(depth, width, bias=width != 16)
    inputs = torch.randn(rows, depth)
    exact = nn.functional.linear(
        inputs.double(),
        layer.weight.double(),
        layer.bias.double() if layer.bias is not None else None,
    )
    assert (apply(layer, inputs) - exact).abs().max() < 1e-5


def test_inputs_of_any_form():
    layer = make_layer(32, 24)
    inputs = torch.randn(5, 32, 4).transpose(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(apply(layer, inputs), layer(inputs))
        empty = inputs[:0]
        assert apply(layer, empty).shape == layer(empty).shape


@needs_kernel
def test_a_row_does_not_depend_on_the_others():
    layer = make_layer(64, 40)
    inputs = torch.randn(MOST_ROWS, 64)
    together = apply(layer, inputs)
    for rows in (LEAST_ROWS, 16, 17, 33, 49, 150):
        assert torch.equal(apply(layer, inputs[:rows]), together[:rows])


@needs_kernel
@pytest.mark.parametrize("width", [OUTPUTS, OUTPUTS + 3, 5 * OUTPUTS])
@pytest.mark.parametrize("rows", [5, 16, 60])
def test_nothing_is_written_beside_the_outputs(rows, width):
    layer, inputs = make_layer(32, width, bias=False), torch.randn(rows, 32)
    guard = torch.full((64,), 7.0)
    whole = -(-rows // LANES) * LANES
    rearranged, outputs = (
        torch.cat([guard, torch.zeros(whole * columns), guard]) for columns in (32, width)
    )
    tensors = layer.weight, inputs, rearranged[64:], outputs[64:]
    pointers = [tensor.data_ptr() for tensor in tensors]
    kernel()(*pointers, rows, width, 32)
    for memory in (rearranged, outputs):
        assert torch.equal(memory[:64], guard)
        assert torch.equal(memory[-64:], guard)
    products = outputs[64:-64].view(whole, width)[:rows]
    torch.testing.assert_close(products, layer(inputs).detach())


@needs_kernel
def test_layers_are_replaced_within_only():
    model = nn.Sequential(make_layer(16, 16), nn.ReLU(), make_layer(17, 16))
    hooked = make_layer(16, 16)
    hooked.forward = lambda inputs: inputs
    half = make_layer(16, 16).to(torch.bfloat16)
    model.extend([hooked, half])
    replaced = [True, False, False, True, False]
    with contextlib.suppress(KeyError), few_row_linears(model):
        assert ["forward" in vars(layer) for layer in model] == replaced
        assert torch.equal(hooked(torch.ones(3)), torch.ones(3))
        raise KeyError
    assert ["forward" in vars(layer) for layer in model] == [False, False, False, True, False]


@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_on_other_processors(capability):
    """The kernel for shorter registers gives the same; without any, torch's layers do."""
    program = f"""
import torch
torch.backends.cpu.get_cpu_capability = lambda: {capability!r}
from src.metrics.cpu_linear import few_row_linears
layer, inputs = torch.nn.Linear(40, 23), torch.randn(7, 40)
with torch.inference_mode(), few_row_linears(layer):
    outputs = layer(inputs)
exact = inputs.double() @ layer.weight.double().T + layer.bias.double()
assert (outputs - exact).abs().max() < 1e-5
"""
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
