"""Attention of few tokens a row against float64, and where it stays torch's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from src.intrinsics import LANES, torch_threads
from src.metrics.cpu_attention import attend, can_attend, few_token_attention
from tests.test_generation import MODELS
from tests.test_likelihood import build

needs_kernel = pytest.mark.skipif(
    LANES == 0 or torch_threads() is None,
    reason="this processor or this torch lacks what the kernel needs",
)


def exact(query, keys, values, lengths, scaling):
    """By the definition, in float64; ``(rows, queries, heads, width)``."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (t.double().repeat_interleave(group, dim=1) for t in (keys, values))
    scores = query.double() @ keys.transpose(2, 3) * scaling
    seen = torch.tensor(lengths)[:, None] + torch.arange(query.shape[2])
    hidden = torch.arange(keys.shape[2]) >= seen[:, None, :, None]
    return (scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ values).transpose(1, 2)


def make_inputs(rows, heads, key_heads, width, queries, size, spread=1.0):
    """Keys and values are parts of larger buffers, whose other places hold no numbers."""
    torch.manual_seed(0)
    query = torch.randn(rows, heads, queries, width) * spread
    lengths = torch.randint(1, size - queries + 2, (rows,)).tolist()
    buffers = [torch.randn(rows + 2, key_heads, size + 5, width) for _ in range(2)]
    for buffer in buffers:
        for row, length in enumerate(lengths):
            buffer[row, :, length + queries - 1 :] = torch.nan
        buffer[rows:] = torch.nan
    return query, *(buffer[:rows, :, :size] for buffer in buffers), lengths


@needs_kernel
@pytest.mark.parametrize(
    ("rows", "heads", "key_heads", "width"), [(5, 9, 3, 64), (1, 2, 2, 16), (7, 8, 1, 128)]
)
@pytest.mark.parametrize("queries", [1, 2, 9])
@pytest.mark.parametrize("size", [9, 16, 17, 100])
def test_attention_is_that_of_float64(rows, heads, key_heads, width, queries, size):
    query, keys, values, lengths = make_inputs(rows, heads, key_heads, width, queries, size)
    assert can_attend(query, keys, values)
    outputs = attend(query, keys, values, lengths, 0.2)
    finite = (torch.nan_to_num(tensor) for tensor in (keys, values))
    expected = exact(query, *finite, lengths, 0.2)
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-5, atol=1e-5)


@needs_kernel
def test_far_apart_scores():
    """Exponentials of large distances vanish, and none overflows."""
    query, keys, values, lengths = make_inputs(4, 2, 2, 32, 1, 40, spread=100.0)
    outputs = attend(query, keys, values, lengths, 1.0)
    finite = (torch.nan_to_num(tensor) for tensor in (keys, values))
    expected = exact(query, *finite, lengths, 1.0)
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-4, atol=1e-4)


def test_what_it_does_not_take():
    query, keys, values, _ = make_inputs(2, 4, 2, 16, 1, 20)
    assert not can_attend(query.bfloat16(), keys.bfloat16(), values.bfloat16())
    assert not can_attend(query, keys, values[..., :8])
    assert not can_attend(query[..., :7], keys[..., :7], values[..., :7])
    assert not can_attend(query.expand(-1, -1, 40, -1), keys, values)
    assert not can_attend(query, keys.transpose(0, 1), values)


def test_only_the_mask_given_is_taken_for_it_and_settings_come_back():
    """With another mask the model attends as that says."""
    model = build(MODELS["wide heads"])
    ids = torch.arange(5)[None]
    mask, other = (torch.zeros(1, 1, 5, 5) for _ in range(2))
    other.masked_fill_(torch.ones(5, 5).triu(1).bool(), torch.finfo(torch.float32).min)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=other).logits
        with few_token_attention(model, mask, [1]):
            assert model.config._attn_implementation != "sdpa"
            shown = model(input_ids=ids, attention_mask=mask).logits
            kept = model(input_ids=ids, attention_mask=other).logits
    assert model.config._attn_implementation == "sdpa"
    assert "few_tokens" not in ALL_ATTENTION_FUNCTIONS
    assert torch.equal(kept, expected)
    if LANES and torch_threads():  # the lengths say that each query sees what is before it
        torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_on_other_processors(capability):
    """The kernel for shorter registers gives the same; others have none."""
    program = f"""
import torch
torch.backends.cpu.get_cpu_capability = lambda: {capability!r}
from src.intrinsics import LANES, torch_threads
from tests.test_cpu_attention import attend, can_attend, exact, make_inputs
query, keys, values, lengths = make_inputs(3, 6, 2, 24, 2, 21)
takes = can_attend(query, keys, values)
assert takes == (LANES == 8 and torch_threads() is not None)
if takes:
    outputs = attend(query, keys, values, lengths, 0.3)
    expected = exact(query, torch.nan_to_num(keys), torch.nan_to_num(values), lengths, 0.3)
    assert (outputs - expected).abs().max() < 1e-5
"""
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
