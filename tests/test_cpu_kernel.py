"""The compiled AdamW against torch's, and its ways of compressing against numpy's indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from src.optim import cpu_kernel
from src.optim.bitmask import BitMask, pack_bits
from src.optim.cpu_kernel import BLOCK
from src.optim.masked_adamw import MaskedAdamW
from src.optim.packed import CPU_CHUNK

SIZES = [1, 7, 8, 13, BLOCK - 1, BLOCK, BLOCK + 3, 3 * BLOCK + 8, CPU_CHUNK + BLOCK + 5]


def make_flags(pattern: str, size: int) -> torch.Tensor:
    """Flags that select a share of the elements, or whole bytes and no others."""
    if pattern == "bytes":  # 24 selected, 8 frozen, and so on; the first, whatever the size
        return torch.arange(size) % 32 < 24
    if pattern == "blocks":  # every other block is empty
        return torch.arange(size) % (2 * BLOCK) < BLOCK
    flags = torch.rand(size, generator=torch.Generator().manual_seed(size)) < float(pattern)
    flags[-1] = True
    return flags


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pattern", ["0.02", "0.5", "0.97", "bytes", "blocks"])
def test_the_kernel_moves_selected_weights_as_torch_does(size, pattern):
    generator = torch.Generator().manual_seed(1)
    flags = make_flags(pattern, size)
    guard = 16  # elements behind the weights, which must not change
    weights = torch.randn(size + guard, generator=generator)
    dense = torch.nn.Parameter(weights.clone())
    start = weights.clone()
    count = int(flags.sum())
    average, square = torch.zeros(count + guard), torch.zeros(count + guard)
    optimizer = torch.optim.AdamW(
        [dense], lr=1e-2, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, fused=True
    )
    for step in range(1, 21):
        gradients = torch.randn(size + guard, generator=generator)
        dense.grad = gradients.clone()
        optimizer.step()
        cpu_kernel.adamw(
            weights[:size].numpy(),
            gradients[:size].numpy(),
            pack_bits(flags).numpy(),
            average[:count].numpy(),
            square[:count].numpy(),
            float(step),
            *(1e-2, 0.8, 0.99, 1e-6, 0.1),
        )
    state = optimizer.state[dense]
    torch.testing.assert_close(weights[:size][flags], dense[:size][flags], rtol=1e-6, atol=1e-6)
    expected = state["exp_avg"][:size][flags]
    torch.testing.assert_close(average[:count], expected, rtol=1e-6, atol=1e-6)
    expected = state["exp_avg_sq"][:size][flags]
    torch.testing.assert_close(square[:count], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(weights[:size][~flags], start[:size][~flags])
    assert torch.equal(weights[size:], start[size:])
    assert not average[count:].any()
    assert not square[count:].any()


@pytest.mark.parametrize("way", ["table", "instruction"])
def test_every_word_compresses_and_expands(way):
    compress = getattr(cpu_kernel, f"compress_by_{way}")
    expand = getattr(cpu_kernel, f"expand_by_{way}")

    @njit
    def run(source, word, packed, target):
        counted = compress(source, 8, word, packed, 3)
        return counted, expand(packed, 3, word, target, 8)

    source = np.arange(1, 41, dtype=np.float32)
    for word in [*range(256), *range(256, 1 << 16, 251), (1 << 16) - 1]:
        chosen = 8 + np.flatnonzero([word >> k & 1 for k in range(16)])
        packed, target = np.zeros(24, np.float32), np.zeros(40, np.float32)
        assert run(source, np.uint16(word), packed, target) == (len(chosen), len(chosen))
        np.testing.assert_array_equal(packed[3 : 3 + len(chosen)], source[chosen])
        assert not packed[:3].any()
        assert not packed[19:].any()
        expected = np.zeros(40, np.float32)
        expected[chosen] = source[chosen]
        np.testing.assert_array_equal(target, expected)


def test_the_number_of_threads_changes_no_bit():
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        generator = torch.Generator().manual_seed(2)
        parameter = torch.nn.Parameter(torch.randn(5 * CPU_CHUNK + 77, generator=generator))
        flags = torch.rand(parameter.shape, generator=generator) < 0.4
        optimizer = MaskedAdamW([parameter], masks={parameter: BitMask.from_bool(flags)})
        try:
            torch.set_num_threads(count)
            for _ in range(3):
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                optimizer.step()
        finally:
            torch.set_num_threads(threads)
        results.append(parameter)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_gradients_that_are_not_contiguous_are_read_in_order():
    gradient = torch.randn(64, 33, generator=torch.Generator().manual_seed(3))
    flags = torch.rand(33, 64, generator=torch.Generator().manual_seed(4)) < 0.5
    moved = []
    for given in (gradient.T, gradient.T.contiguous()):
        parameter = torch.nn.Parameter(torch.ones(33, 64))
        parameter.grad = given
        MaskedAdamW([parameter], masks={parameter: BitMask.from_bool(flags)}, lr=0.1).step()
        moved.append(parameter)
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], torch.ones(33, 64))
