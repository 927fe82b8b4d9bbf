"""Linear layers applied to a few dozen rows on a CPU, compiled by numba at their first use.

While a batch of answers grows by a token each, every weight is used for a few dozen rows only.
General matrix products first rearrange the weights for reuse, which then takes as long as a good
part of the product. Here the weights are read where they are, while those that follow are fetched,
and it is the rows, far fewer, that are rearranged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from llvmlite import ir
from numba import carray, cfunc, types
from torch import nn

from src.intrinsics import (
    LANES,
    LONG,
    constant,
    element,
    has_kernels,
    instructions,
    load,
    loop,
    multiply_add,
    prefetch,
    repeat,
    shuffle,
    smaller,
    store,
    torch_threads,
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
    address, run, pointer = _compile().address, torch_threads().run, weight.data_ptr()

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.numel() // depth
        if not LEAST_ROWS <= rows <= MOST_ROWS or inputs.dtype != torch.float32:
            return nn.functional.linear(inputs, weight, bias)
        inputs = inputs.contiguous()
        whole = -(-rows // LANES) * LANES  # the last vector of rows is computed whole
        room = inputs.new_empty(whole * (depth + width))
        start = room.data_ptr()
        end = start + 4 * whole * width
        run(address, (pointer, inputs.data_ptr(), end, start, rows, width, depth))
        outputs = room[: rows * width].view(*inputs.shape[:-1], width)
        return outputs if bias is None else outputs.add_(bias)

    return forward


@functools.cache
def _compile() -> Any:
    """The product, to be run in each of torch's threads.

    Its arguments are the addresses of weight ``(width, depth)``, inputs ``(rows, depth)``, room for
    the rearranged inputs, and outputs ``(rows, width)``, all float32 and contiguous and the last
    two with rows up to a multiple of ``LANES``; and rows, width and depth.
    """
    threads = torch_threads()
    thread_number, thread_count, wait = threads.number, threads.count, threads.wait
    multiply_3, multiply_2, multiply_1 = (_make_multiply_tile(n) for n in (VECTORS, 2, 1))

    @cfunc(types.void(types.voidptr))
    def work(arguments: int) -> None:
        """This thread's share of rearranging, then of the outputs."""
        weight, inputs, rearranged, outputs, rows, width, depth = carray(arguments, 7, types.int64)
        number, count = thread_number(), thread_count()
        vectors = (rows + LANES - 1) // LANES
        blocks = (vectors + VECTORS - 1) // VECTORS  # block b: vectors v b / n to v (b + 1) / n
        parts = depth // LANES
        for part in range(parts * number // count, parts * (number + 1) // count):
            for block in range(blocks):
                first = vectors * block // blocks
                end = vectors * (block + 1) // blocks
                for vector in range(first, end):
                    source = LANES * (vector * depth + part)
                    target = first * depth + part * LANES * (end - first) + vector - first
                    _transpose_tile(
                        inputs + 4 * source,
                        rearranged + 4 * LANES * target,
                        depth,
                        rows - LANES * vector,
                        LANES * (end - first),
                    )
        wait()
        tiles = (width + OUTPUTS - 1) // OUTPUTS
        chunks = (blocks + CHUNK - 1) // CHUNK
        units = chunks * tiles
        for unit in range(units * number // count, units * (number + 1) // count):
            chunk = unit // tiles
            column = min(unit % tiles * OUTPUTS, width - OUTPUTS)  # the last tiles may overlap
            at = weight + 4 * column * depth
            ahead = at + 4 * OUTPUTS * depth
            for block in range(blocks * chunk // chunks, blocks * (chunk + 1) // chunks):
                first = vectors * block // blocks
                size = vectors * (block + 1) // blocks - first
                source = rearranged + 4 * LANES * first * depth
                target = outputs + 4 * (LANES * first * width + column)
                if size == 1:
                    multiply_1(at, source, target, depth, width, ahead)
                elif size == 2:
                    multiply_2(at, source, target, depth, width, ahead)
                else:
                    multiply_3(at, source, target, depth, width, ahead)
                ahead = at  # has been fetched

    return work


@instructions(*[types.int64] * 5)
def _transpose_tile(
    builder: ir.IRBuilder,
    source: ir.Value,
    target: ir.Value,
    depth: ir.Value,
    rows: ir.Value,
    step: ir.Value,
) -> None:
    """Transpose ``LANES`` columns of as many rows, the last of ``rows`` again if there are fewer.

    Arguments: addresses of the first elements, the length of rows of the source, how many there
    are, and the distance in floats between rows of the target.
    """
    last = builder.sub(rows, LONG(1))
    vectors = []
    for row in map(LONG, range(LANES)):
        existing = smaller(builder, row, last)
        place = element(builder, source, builder.mul(existing, depth))
        vectors.append(load(builder, place))
    for row, vector in enumerate(_interleave(builder, vectors, LANES)):
        store(builder, vector, element(builder, target, builder.mul(LONG(row), step)))


def _make_multiply_tile(vectors: int) -> Callable[[int, int, int, int, int, int], None]:
    @instructions(*[types.int64] * 6)
    def multiply_tile(
        builder: ir.IRBuilder,
        weight: ir.Value,
        inputs: ir.Value,
        outputs: ir.Value,
        depth: ir.Value,
        width: ir.Value,
        ahead: ir.Value,
    ) -> None:
        """Dot products of ``vectors * LANES`` rows with ``OUTPUTS`` rows of the weight.

        Arguments: addresses of the first elements (inputs are ``(depth, rows)``), the length of
        weight rows and of output rows, and an address from which to fetch a tile's weights for
        later.
        """

        def add(start: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
            sums = list(sums)
            for turn in range(UNROLLED):
                k = builder.add(start, LONG(turn))
                row = builder.mul(k, LONG(vectors * LANES))
                values = [
                    load(builder, element(builder, inputs, builder.add(row, LONG(LANES * i))))
                    for i in range(vectors)
                ]
                for output in range(OUTPUTS):
                    place = builder.add(builder.mul(LONG(output), depth), k)
                    factor = repeat(builder, builder.load(element(builder, weight, place), align=4))
                    for number, value in enumerate(values, start=vectors * output):
                        sums[number] = multiply_add(builder, value, factor, sums[number])
            for line in range(0, OUTPUTS * UNROLLED, 16):
                place = builder.add(builder.mul(start, LONG(OUTPUTS)), LONG(line))
                prefetch(builder, element(builder, ahead, place))
            return sums

        totals = loop(builder, depth, UNROLLED, [constant(0.0)] * (OUTPUTS * vectors), add)
        for vector in range(vectors):
            for pair, both in enumerate(_interleave(builder, totals[vector::vectors], OUTPUTS)):
                for half in range(2):
                    row = LONG(LANES * vector + 2 * pair + half)
                    indices = list(range(half * OUTPUTS, (half + 1) * OUTPUTS))
                    products = shuffle(builder, both, both, indices)
                    store(builder, products, element(builder, outputs, builder.mul(row, width)))

    return multiply_tile


def _interleave(builder: ir.IRBuilder, vectors: list[ir.Value], count: int) -> list[ir.Value]:
    """The transpose of ``(count, LANES)``, as ``count`` vectors one behind the other.

    ``count`` is a power of two. A perfect shuffle of all elements rotates the bits of their places
    by one; as many as ``count`` has bits exchange row and column.
    """
    half = count // 2
    order = [LANES * (i % 2) + i // 2 for i in range(2 * LANES)]
    for _ in range(count.bit_length() - 1):
        pairs = zip(vectors[:half], vectors[half:], strict=True)
        vectors = [
            shuffle(builder, *pair, indices)
            for pair in pairs
            for indices in (order[:LANES], order[LANES:])
        ]
    return vectors
