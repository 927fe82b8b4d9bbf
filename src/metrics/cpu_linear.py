"""Linear layers applied to few rows on a CPU, compiled by numba at their first use.

While a batch of answers grows by a token each, every weight is used for a few dozen rows only.
General matrix products first rearrange the weights for reuse, which then takes longer than the
product. Here the weights are read once, where they are, while those that follow are fetched.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import carray, cfunc, types
from numba.extending import intrinsic
from torch import nn

from src.intrinsics import call_llvm, prefetch

MOST_ROWS = 48  # for more, general matrix products are as fast
TILE_ROWS = 3
# Floats in a register. A tile's sums are kept in registers: 3 rows of 8 outputs take 24 of the 32
# of AVX-512, 3 rows of 4 outputs 12 of the 16 of AVX2.
LANES = {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 0)
OUTPUTS = LANES // 2


@contextmanager
def few_row_linears(model: nn.Module) -> Iterator[None]:
    """Within it, the model's linear layers are faster for few rows; gradients are not recorded.

    Layers that are not of float32 on a CPU with the instructions needed stay as they are, and so
    do those whose ``forward`` somebody has already replaced. What is computed for a row does not
    depend on the other rows as long as there are from ``TILE_ROWS`` to ``MOST_ROWS`` of them.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and _is_suitable(m)]
    for layer in layers:
        layer.forward = functools.partial(_apply, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_suitable(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        LANES > 0
        and type(weight) is nn.Parameter  # not one that is a part of a distributed tensor
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and layer.in_features % LANES == 0
        and layer.out_features >= OUTPUTS
        and "forward" not in vars(layer)
        and _compile() is not None
    )


def _apply(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """What ``layer`` gives for ``(..., in features)`` inputs."""
    rows = inputs.numel() // layer.in_features
    if not TILE_ROWS <= rows <= MOST_ROWS or inputs.dtype != torch.float32:
        return nn.functional.linear(inputs, layer.weight, layer.bias)
    inputs = inputs.contiguous()
    outputs = inputs.new_empty(*inputs.shape[:-1], layer.out_features)
    pointers = (tensor.data_ptr() for tensor in (layer.weight, inputs, outputs))
    _compile()(*pointers, rows, layer.out_features, layer.in_features)
    return outputs if layer.bias is None else outputs.add_(layer.bias)


@functools.cache
def _compile() -> Callable[[int, int, int, int, int, int], None] | None:
    """The product, run by torch's own team of threads; None where torch brings no GNU OpenMP.

    Other threads would fight with torch's, which wait for their next work without sleeping.

    Returns:
        A function of the addresses of weight ``(width, depth)``, inputs ``(rows, depth)`` and
        outputs ``(rows, width)``, all float32 and contiguous, and of rows, width and depth.
    """
    libraries = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))
    if not libraries:
        return None
    openmp = ctypes.CDLL(str(libraries[0]))
    thread_number, thread_count = openmp.omp_get_thread_num, openmp.omp_get_num_threads
    for function in (thread_number, thread_count):
        function.argtypes, function.restype = [], ctypes.c_int
    run = openmp.GOMP_parallel
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    run.restype = None

    @cfunc(types.void(types.voidptr))
    def work(arguments: int) -> None:
        """This thread's share of the outputs."""
        weight, inputs, outputs, rows, width, depth = carray(arguments, 6, types.int64)
        tiles = (width + OUTPUTS - 1) // OUTPUTS
        number, count = thread_number(), thread_count()
        for tile in range(tiles * number // count, tiles * (number + 1) // count):
            column = min(OUTPUTS * tile, width - OUTPUTS)  # the last tiles may overlap others
            at = weight + 4 * column * depth
            following = at + 4 * OUTPUTS * depth
            for tile_row in range(0, rows, TILE_ROWS):
                row = min(tile_row, rows - TILE_ROWS)
                source = inputs + 4 * row * depth
                target = outputs + 4 * (row * width + column)
                ahead = following + 4 * tile_row // TILE_ROWS * depth
                _multiply_tile(at, source, target, depth, width, ahead)

    arguments_type = ctypes.c_int64 * 6

    def multiply(*arguments: int) -> None:
        packed = arguments_type(*arguments)
        run(work.address, ctypes.byref(packed), torch.get_num_threads(), 0)

    return multiply


_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)


@intrinsic
def _multiply_tile(
    _context: Any, weight: Any, inputs: Any, outputs: Any, depth: Any, width: Any, ahead: Any
) -> tuple[Any, Callable]:
    """Dot products of ``TILE_ROWS`` rows of the inputs with ``OUTPUTS`` rows of the weight.

    All arguments are int64: addresses of the first elements, the length of input and weight rows,
    that of output rows, and an address from which to fetch ``depth`` floats for later.
    """

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Any) -> ir.Value:
        _generate_tile(builder, *values)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 6), generate


def _generate_tile(
    builder: ir.IRBuilder,
    weight: ir.Value,
    inputs: ir.Value,
    outputs: ir.Value,
    depth: ir.Value,
    width: ir.Value,
    ahead: ir.Value,
) -> None:
    weight, inputs, outputs, ahead = (
        builder.inttoptr(address, _FLOAT.as_pointer())
        for address in (weight, inputs, outputs, ahead)
    )
    before = builder.block
    loop, after = builder.append_basic_block(), builder.append_basic_block()
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(_LONG)
    sums = [builder.phi(_FLOATS) for _ in range(TILE_ROWS * OUTPUTS)]

    def load(base: ir.Value, row: int) -> ir.Value:
        place = builder.gep(base, [builder.add(builder.mul(_LONG(row), depth), k)])
        return builder.load(builder.bitcast(place, _FLOATS.as_pointer()), align=4)

    weights = [load(weight, output) for output in range(OUTPUTS)]
    values = [load(inputs, row) for row in range(TILE_ROWS)]
    added = [
        call_llvm(builder, f"llvm.fma.v{LANES}f32", _FLOATS, *pair, total)
        for pair, total in zip(itertools.product(values, weights), sums, strict=True)
    ]
    prefetch(builder, builder.gep(ahead, [k]))
    following = builder.add(k, _LONG(LANES))
    k.add_incoming(_LONG(0), before)
    k.add_incoming(following, loop)
    for total, new in zip(sums, added, strict=True):
        total.add_incoming(ir.Constant(_FLOATS, [0.0] * LANES), before)
        total.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
    builder.position_at_end(after)
    for row in range(TILE_ROWS):
        parts = added[row * OUTPUTS : (row + 1) * OUTPUTS]
        while len(parts) > 1:
            parts = [_add_neighbours(builder, *parts[i : i + 2]) for i in range(0, len(parts), 2)]
        products = _add_neighbours(builder, parts[0])
        place = builder.gep(outputs, [builder.mul(_LONG(row), width)])
        builder.store(products, builder.bitcast(place, products.type.as_pointer()), align=4)


def _add_neighbours(
    builder: ir.IRBuilder, left: ir.Value, right: ir.Value | None = None
) -> ir.Value:
    """Sums of elements 0 and 1, 2 and 3, ... of two vectors one behind the other, or of one."""
    count = LANES if right is not None else LANES // 2
    right = right or ir.Constant(_FLOATS, ir.Undefined)
    even, odd = (
        builder.shuffle_vector(
            left, right, ir.Constant(ir.VectorType(_INT, count), list(range(first, 2 * count, 2)))
        )
        for first in (0, 1)
    )
    return builder.fadd(even, odd)
