"""Attention of single tokens on a CPU, compiled by numba at its first use.

Of the keys and values it reads what each token sees and no more, as fast as memory gives it.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from llvmlite import ir
from numba import carray, cfunc, types
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from src.intrinsics import (
    FLOATS,
    INT,
    LANES,
    LONG,
    call_llvm,
    constant,
    element,
    has_kernels,
    instructions,
    load,
    loop,
    multiply_add,
    repeat,
    shuffle,
    smaller,
    store,
    torch_threads,
)

MOST_VECTORS = 16  # of a head's width, to be kept in registers
_NAME = "single_tokens"  # of our attention among transformers'


class CannotAttendError(ValueError):
    """The model computes attention in a way that :func:`attend` does not."""


def may_attend(model: PreTrainedModel) -> bool:
    """Whether :func:`single_token_attention` is worth trying."""
    return (
        has_kernels()
        and model.device.type == "cpu"
        and model.dtype == torch.float32
        and model.config._attn_implementation == "sdpa"
    )


@contextmanager
def single_token_attention(
    model: PreTrainedModel, mask: torch.Tensor, rows: Sequence[int], lengths: Sequence[int]
) -> Iterator[None]:
    """Within it, the model reads batches of single tokens, and attends by :func:`attend`.

    Args:
        mask: what the model is given as its mask; that it comes here shows that nothing else is to
            be hidden.

    Raises:
        CannotAttendError: (within) the model needs another kind of attention.
    """

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        special = any(options.get(name) is not None for name in ("position_bias", "softcap"))
        if attention_mask is not mask or special or not _can_attend(query, keys, values):
            raise CannotAttendError
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        return attend(query, keys, values, rows, lengths, scaling), None

    configured = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[_NAME] = attention
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = configured
        del ALL_ATTENTION_FUNCTIONS[_NAME]


def _can_attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    width = query.shape[-1]
    return (
        query.shape[2] == 1
        and all(tensor.dtype == torch.float32 for tensor in (query, keys, values))
        and keys.shape == values.shape
        and keys.stride() == values.stride()
        and keys.stride()[2:] == (width, 1)
        and width % LANES == 0
        and width <= MOST_VECTORS * LANES
    )


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: Sequence[int],
    lengths: Sequence[int],
    scaling: float,
) -> torch.Tensor:
    """Softmax attention of single tokens, each to the first keys and values of a row.

    Args:
        query: ``(tokens, heads, 1, width)``, float32.
        keys, values: ``(rows, key heads, columns, width)``, each for as many heads of the query.
        rows: the row that each token attends to.
        lengths: how many columns of it each token sees, at least one.
        scaling: of the products of queries and keys.

    Returns:
        float32 ``(tokens, 1, heads, width)``.
    """
    tokens, heads, _, width = query.shape
    group = heads // keys.shape[1]
    query = query.contiguous()
    outputs = query.new_empty(tokens, 1, heads, width)
    room = -(-max(lengths) // LANES) * LANES
    scores = query.new_empty(torch.get_num_threads(), group, room)
    pointers = [tensor.data_ptr() for tensor in (query, keys, values, outputs, scores)]
    numbers = [tokens, keys.shape[1], group, *keys.stride()[:2], room]
    (scaling_bits,) = struct.unpack("<q", struct.pack("<d", scaling))
    arguments = [*pointers, *numbers, scaling_bits, *rows, *lengths]
    torch_threads().run(_compile(width).address, arguments)
    return outputs


@functools.cache
def _compile(width: int) -> Any:
    """Attention of heads of this width, to be run in each of torch's threads."""
    threads = torch_threads()
    thread_number, thread_count = threads.number, threads.count
    score, accumulate = _make_score(width), _make_accumulate(width)

    @cfunc(types.void(types.voidptr))
    def work(arguments: int) -> None:
        """This thread's share of the tokens' key heads."""
        numbers = carray(arguments, 11, types.int64)
        query, keys, values, outputs, scores = numbers[:5]
        tokens, key_heads, group, row, head, room = numbers[5:]
        scaling = carray(arguments, 12, types.float64)[11]
        rows = carray(arguments, 12 + tokens, types.int64)[12:]
        lengths = carray(arguments, 12 + 2 * tokens, types.int64)[12 + tokens :]
        number, count = thread_number(), thread_count()
        scores += 4 * number * group * room
        for unit in range(number, tokens * key_heads, count):
            token = unit // key_heads
            first = 4 * (rows[token] * row + unit % key_heads * head)
            length = lengths[token]
            at = 4 * unit * group * width  # of query and outputs
            for column in range(0, length, LANES):
                place = keys + first + 4 * column * width
                for i in range(group):
                    target = scores + 4 * (i * room + column)
                    score(query + at + 4 * i * width, place, target, length - column, scaling)
            for i in range(group):
                probs = scores + 4 * i * room
                total = _exponentiate(probs, length)
                target = outputs + at + 4 * i * width
                accumulate(probs, values + first, target, length, total)

    return work


def _make_score(width: int) -> Callable[[int, int, int, int, float], None]:
    @instructions(*[types.int64] * 4, types.float64)
    def score(
        builder: ir.IRBuilder,
        query: ir.Value,
        keys: ir.Value,
        scores: ir.Value,
        left: ir.Value,
        scaling: ir.Value,
    ) -> None:
        """Scaled products of a query with ``LANES`` keys; minus infinity behind those left.

        The first three arguments are addresses.
        """
        last = builder.sub(left, LONG(1))
        starts = []
        for lane in map(LONG, range(LANES)):
            starts.append(builder.mul(smaller(builder, lane, last), LONG(width)))
        sums = [constant(0.0)] * LANES
        for part in map(LONG, range(0, width, LANES)):
            factor = load(builder, element(builder, query, part))
            for lane, start in enumerate(starts):
                place = element(builder, keys, builder.add(start, part))
                sums[lane] = multiply_add(builder, load(builder, place), factor, sums[lane])
        while len(sums) > 1:
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [_add_neighbours(builder, *pair) for pair in pairs]
        scale = repeat(builder, builder.fptrunc(scaling, FLOATS.element))
        lanes = ir.Constant(ir.VectorType(INT, LANES), list(range(LANES)))
        exists = builder.icmp_signed("<", lanes, repeat(builder, builder.trunc(left, INT)))
        scaled = builder.fmul(sums[0], scale)
        hidden = builder.select(exists, scaled, constant(-math.inf))
        store(builder, hidden, element(builder, scores, LONG(0)))

    return score


def _add_neighbours(builder: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    """Sums of elements 0 and 1, 2 and 3, ... of two vectors one behind the other."""
    even, odd = (shuffle(builder, left, right, range(first, 2 * LANES, 2)) for first in (0, 1))
    return builder.fadd(even, odd)


@instructions(types.int64, types.int64, result=types.float32)
def _exponentiate(builder: ir.IRBuilder, scores: ir.Value, count: ir.Value) -> ir.Value:
    """Replace scores by the exponential of their distance to the largest; return the sum.

    Arguments: an address, and how many there are; minus infinities fill the last vector.
    """
    kind = f"v{LANES}f32"

    def larger(k: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        new = load(builder, element(builder, scores, k))
        return [call_llvm(builder, f"llvm.maxnum.{kind}", FLOATS, values[0], new)]

    (top,) = loop(builder, count, LANES, [constant(-math.inf)], larger)
    top = call_llvm(builder, f"llvm.vector.reduce.fmax.{kind}", FLOATS.element, top)
    top = repeat(builder, top)

    def add(k: ir.Value, values: Sequence[ir.Value]) -> list[ir.Value]:
        place = element(builder, scores, k)
        power = _exp(builder, builder.fsub(load(builder, place), top))
        store(builder, power, place)
        return [builder.fadd(values[0], power)]

    (total,) = loop(builder, count, LANES, [constant(0.0)], add)
    name = f"llvm.vector.reduce.fadd.{kind}"
    return call_llvm(builder, name, FLOATS.element, FLOATS.element(0.0), total)


def _exp(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Exponentials of numbers up to 0, to about one unit in the last place.

    exp(x) = 2^n exp(x - n ln 2) with n = round(x / ln 2), and Taylor's series up to the seventh
    power. Below the smallest normal number results are that.
    """
    kind = f"v{LANES}f32"
    x = call_llvm(builder, f"llvm.maxnum.{kind}", FLOATS, x, constant(-87.0))
    n = call_llvm(builder, f"llvm.rint.{kind}", FLOATS, builder.fmul(x, constant(1 / math.log(2))))
    high = 355 / 512  # ln 2 in two parts, of which n times the first is exact
    rest = multiply_add(builder, n, constant(-high), x)
    rest = multiply_add(builder, n, constant(high - math.log(2)), rest)
    series = constant(1 / math.factorial(7))
    for power in range(6, -1, -1):
        series = multiply_add(builder, series, rest, constant(1 / math.factorial(power)))
    integers = ir.VectorType(INT, LANES)
    exponent = builder.add(builder.fptosi(n, integers), ir.Constant(integers, [127] * LANES))
    shift = ir.Constant(integers, [23] * LANES)
    return builder.fmul(series, builder.bitcast(builder.shl(exponent, shift), FLOATS))


def _make_accumulate(width: int) -> Callable[[int, int, int, int, float], None]:
    @instructions(*[types.int64] * 4, types.float32)
    def accumulate(
        builder: ir.IRBuilder,
        weights: ir.Value,
        values: ir.Value,
        outputs: ir.Value,
        count: ir.Value,
        total: ir.Value,
    ) -> None:
        """The mean of vectors, weighted by weights whose total is known.

        The first three arguments are addresses.
        """
        parts = [LONG(part) for part in range(0, width, LANES)]

        def add(k: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
            weight = builder.load(element(builder, weights, k), align=4)
            factor, start = repeat(builder, weight), builder.mul(k, LONG(width))
            new = [
                load(builder, element(builder, values, builder.add(start, part))) for part in parts
            ]
            pairs = zip(new, sums, strict=True)
            return [multiply_add(builder, value, factor, before) for value, before in pairs]

        sums = loop(builder, count, 1, [constant(0.0)] * len(parts), add)
        divisor = repeat(builder, total)
        for part, value in zip(parts, sums, strict=True):
            store(builder, builder.fdiv(value, divisor), element(builder, outputs, part))

    return accumulate
