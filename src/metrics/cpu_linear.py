"""Linear layers applied to a few dozen rows on a CPU.

While a batch of answers grows by a token each, every weight is used for a few dozen rows only.
General matrix products first rearrange the weights for reuse, which then takes as long as a good
part of the product. Here the weights are read where they are, while those that follow are fetched,
and it is the rows, far fewer, that are rearranged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from src.intrinsics import (
    LANES,
    Arguments,
    Floats,
    Int,
    Kernel,
    Place,
    Thread,
    accumulate,
    choose,
    each,
    has_kernels,
    shuffle,
)

# Outside of these numbers of rows, general products are as fast: vectors or matrices.
LEAST_ROWS, MOST_ROWS = 5, 288
# A register holds an output of LANES rows. A tile's sums are kept in registers: 8 outputs of 3
# vectors of rows take 24 of the 32 of AVX-512, 4 outputs of 3 take 12 of the 16 of AVX2.
OUTPUTS = LANES // 2
VECTORS = 3
UNROLLED = 2
CHUNK = 3  # how many tiles use weights before they leave the processor's nearest cache


@contextmanager
def few_row_linears(model: nn.Module) -> Iterator[None]:
    """Within it, the model's linear layers are faster for few rows; gradients are not recorded.

    Layers that are not of float32 on a CPU with the instructions needed stay as they are, and so
    do those whose ``forward`` somebody has already replaced. What is computed for a row does not
    depend on the other rows as long as there are from ``LEAST_ROWS`` to ``MOST_ROWS`` of them.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and _is_suitable(m)]
    for layer in layers:
        layer.forward = _make_forward(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_suitable(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        has_kernels()
        and type(weight) is nn.Parameter  # not one that is a part of a distributed tensor
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and layer.in_features % LANES == 0
        and layer.out_features >= OUTPUTS
        and "forward" not in vars(layer)
    )


def _make_forward(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the layer makes of ``(..., in features)`` inputs."""
    # Small layers take as long as a module takes to look up its parameters a few times.
    weight, bias, depth, width = layer.weight, layer.bias, layer.in_features, layer.out_features
    multiply, pointer = kernel(), weight.data_ptr()

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.numel() // depth
        if not LEAST_ROWS <= rows <= MOST_ROWS or inputs.dtype != torch.float32:
            return nn.functional.linear(inputs, weight, bias)
        inputs = inputs.contiguous()
        whole = -(-rows // LANES) * LANES  # the last vector of rows is computed whole
        room = inputs.new_empty(whole * (depth + width))
        start = room.data_ptr()
        end = start + 4 * whole * width
        multiply(pointer, inputs.data_ptr(), end, start, rows, width, depth)
        outputs = room[: rows * width].view(*inputs.shape[:-1], width)
        return outputs if bias is None else outputs.add_(bias)

    return forward


@functools.cache
def kernel() -> Kernel:
    """The product.

    Its arguments are the addresses of weight ``(width, depth)``, inputs ``(rows, depth)``, room for
    the rearranged inputs, and outputs ``(rows, width)``, all float32 and contiguous and the last
    two with rows up to a multiple of ``LANES``; and rows, width and depth.
    """
    return Kernel(_write)


def _write(arguments: Arguments, thread: Thread) -> None:
    """A thread's share of rearranging, then of the outputs."""
    weight, inputs, rearranged, outputs = (arguments[i].place() for i in range(4))
    rows, width, depth = (arguments[i] for i in range(4, 7))
    vectors = (rows + (LANES - 1)) // LANES
    blocks = (vectors + (VECTORS - 1)) // VECTORS

    def first_vector(block: Int) -> Int:
        return vectors * block // blocks

    with thread.share(depth // LANES) as part, each(0, blocks) as block:
        first, end = first_vector(block), first_vector(block + 1)
        with each(first, end) as vector:
            source = inputs + (vector * depth + part) * LANES
            target = (first * depth + part * LANES * (end - first) + vector - first) * LANES
            left = rows - vector * LANES
            _transpose_tile(source, rearranged + target, depth, left, (end - first) * LANES)
    thread.wait()
    tiles = (width + (OUTPUTS - 1)) // OUTPUTS
    chunks = (blocks + (CHUNK - 1)) // CHUNK
    with thread.share(chunks * tiles) as unit:
        chunk = unit // tiles
        column = (unit % tiles * OUTPUTS).at_most(width - OUTPUTS)  # the last tiles may overlap
        at = weight + column * depth
        start = blocks * chunk // chunks
        with each(start, blocks * (chunk + 1) // chunks) as block:
            first = first_vector(block)
            size = first_vector(block + 1) - first
            source = rearranged + first * depth * LANES
            target = outputs + (first * width * LANES + column)
            # Later blocks use the same weights: the next tile's have been fetched.
            ahead = at + choose(block.equals(start), depth * OUTPUTS, depth.constant(0))
            for vectors_of_block in range(1, VECTORS + 1):
                with block.builder.if_then(size.equals(vectors_of_block)):
                    _multiply_tile(vectors_of_block, at, source, target, depth, width, ahead)


def _transpose_tile(source: Place, target: Place, depth: Int, rows: Int, step: Int) -> None:
    """Transpose ``LANES`` columns of as many rows, the last of ``rows`` again if there are fewer.

    Args:
        depth: the length of rows of the source, and ``rows`` how many there are.
        step: the distance between rows of the target.
    """
    vectors = []
    for row in range(LANES):
        existing = (rows - 1).at_most(row)
        vectors.append((source + existing * depth).load())
    for row, vector in enumerate(_interleave(vectors, LANES)):
        (target + step * row).store(vector)


def _multiply_tile(
    vectors: int,
    weight: Place,
    inputs: Place,
    outputs: Place,
    depth: Int,
    width: Int,
    ahead: Place,
) -> None:
    """Dot products of ``vectors * LANES`` rows with ``OUTPUTS`` rows of the weight.

    Args:
        inputs: those of the rows ``(depth, rows)``.
        depth, width: the length of weight rows and of output rows.
        ahead: from where to fetch a tile's weights for later.
    """

    def add(start: Int, sums: Sequence[Floats]) -> list[Floats]:
        sums = list(sums)
        for turn in range(UNROLLED):
            k = start + turn
            values = [(inputs + (k * vectors + i) * LANES).load() for i in range(vectors)]
            for output in range(OUTPUTS):
                factor = (weight + (depth * output + k)).load_repeated()
                for number, value in enumerate(values, start=vectors * output):
                    sums[number] = value.multiply_add(factor, sums[number])
        for line in range(0, OUTPUTS * UNROLLED, 16):
            (ahead + (start * OUTPUTS + line)).prefetch()
        return sums

    totals = accumulate(depth, UNROLLED, [0.0] * (OUTPUTS * vectors), add)
    for vector in range(vectors):
        for pair, both in enumerate(_interleave(totals[vector::vectors], OUTPUTS)):
            for half in range(2):
                products = shuffle(both, both, range(half * OUTPUTS, (half + 1) * OUTPUTS))
                (outputs + width * (LANES * vector + 2 * pair + half)).store(products)


def _interleave(vectors: list[Floats], count: int) -> list[Floats]:
    """The transpose of ``(count, LANES)``, as ``count`` vectors one behind the other.

    ``count`` is a power of two. A perfect shuffle of all elements rotates the bits of their places
    by one; as many as ``count`` has bits exchange row and column.
    """
    half = count // 2
    order = [LANES * (i % 2) + i // 2 for i in range(2 * LANES)]
    for _ in range(count.bit_length() - 1):
        vectors = [
            shuffle(*pair, indices)
            for pair in zip(vectors[:half], vectors[half:], strict=True)
            for indices in (order[:LANES], order[LANES:])
        ]
    return vectors
