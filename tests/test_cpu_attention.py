"""Attention of single tokens against float64, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from src.intrinsics import has_kernels
from src.metrics.cpu_attention import (
    CannotAttendError,
    attend,
    may_attend,
    single_token_attention,
)
from tests.test_generation import MODELS
from tests.test_likelihood import build

needs_kernel = pytest.mark.skipif(
    not has_kernels(), reason="this processor or this torch lacks what the kernel needs"
)


def exact(query, keys, values, rows, lengths, scaling):
    """By the definition, in float64; ``(tokens, 1, heads, width)``."""
    group = query.shape[1] // keys.shape[1]
    outputs = []
    for token, row, length in zip(query.double(), rows, lengths, strict=True):
        seen = (t[row, :, :length].double().repeat_interleave(group, dim=0) for t in (keys, values))
        own_keys, own_values = seen
        probs = (token @ own_keys.transpose(1, 2) * scaling).softmax(dim=-1)
        outputs.append((probs @ own_values).transpose(0, 1))
    return torch.stack(outputs)


def make_inputs(tokens, heads, key_heads, width, size, spread=1.0):
    """Keys and values are parts of larger buffers; what no token sees is no number."""
    torch.manual_seed(0)
    query = torch.randn(tokens, heads, 1, width) * spread
    rows = torch.randint(0, 4, (tokens,)).tolist()
    lengths = torch.randint(1, size + 1, (tokens,)).tolist()
    buffers = [torch.randn(4, key_heads, size + 5, width) for _ in range(2)]
    for row in range(4):
        longest = max((n for r, n in zip(rows, lengths, strict=True) if r == row), default=0)
        for buffer in buffers:
            buffer[row, :, longest:] = torch.nan
    return query, *(buffer[:, :, :size] for buffer in buffers), rows, lengths


@needs_kernel
@pytest.mark.parametrize(
    ("tokens", "heads", "key_heads", "width"), [(5, 9, 3, 64), (1, 2, 2, 16), (7, 8, 1, 128)]
)
@pytest.mark.parametrize("size", [1, 16, 17, 100])
def test_attention_is_that_of_float64(tokens, heads, key_heads, width, size):
    inputs = make_inputs(tokens, heads, key_heads, width, size)
    outputs = attend(*inputs, 0.2).double()
    torch.testing.assert_close(outputs, exact(*inputs, 0.2), rtol=1e-5, atol=1e-5)


@needs_kernel
def test_far_apart_scores():
    """Exponentials of large distances vanish, and none overflows."""
    inputs = make_inputs(4, 2, 2, 32, 40, spread=100.0)
    outputs = attend(*inputs, 1.0).double()
    torch.testing.assert_close(outputs, exact(*inputs, 1.0), rtol=1e-4, atol=1e-4)


def test_which_models_may():
    assert not may_attend(build(MODELS["gemma2"]))  # its attention is not sdpa
    assert not may_attend(build(MODELS["llama"]).bfloat16())
    assert may_attend(build(MODELS["llama"])) == has_kernels()


@needs_kernel
@torch.inference_mode()
def test_what_it_does_not_do_is_refused_and_settings_come_back():
    ids = torch.tensor([[3], [4]])
    masks = [torch.zeros(2, 1, 1, 1) for _ in range(2)]
    cases = [
        ("wide heads", ids, masks[1]),  # a mask that it knows nothing of
        ("wide heads", ids.T, masks[0]),  # several tokens
        ("llama", ids, masks[0]),  # narrow heads
    ]
    for name, inputs, mask in cases:
        model = build(MODELS[name])
        with (
            pytest.raises(CannotAttendError),
            single_token_attention(model, masks[0], [0, 1], [1, 1]),
        ):
            model(input_ids=inputs, attention_mask=mask)
        assert model.config._attn_implementation == "sdpa"
        assert "single_tokens" not in ALL_ATTENTION_FUNCTIONS


@needs_kernel
@torch.inference_mode()
def test_a_model_attends_with_it():
    """Single tokens that see themselves alone."""
    model = build(MODELS["wide heads"])
    ids, mask = torch.tensor([[3], [4]]), torch.zeros(2, 1, 1, 1)
    expected = model(input_ids=ids).logits
    with single_token_attention(model, mask, [0, 1], [1, 1]):
        logits = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_on_other_processors(capability):
    """The kernel for shorter registers gives the same; others have none."""
    program = f"""
import torch
torch.backends.cpu.get_cpu_capability = lambda: {capability!r}
from src.intrinsics import LANES, has_kernels
from tests.test_cpu_attention import MODELS, attend, build, exact, make_inputs, may_attend
takes = LANES == 8 and has_kernels()
assert may_attend(build(MODELS["llama"])) == takes
if takes:
    inputs = make_inputs(3, 6, 2, 24, 21)
    assert (attend(*inputs, 0.3) - exact(*inputs, 0.3)).abs().max() < 1e-5
"""
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
