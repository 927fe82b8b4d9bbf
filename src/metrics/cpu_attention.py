"""Attention of one or few new tokens a row on a CPU, compiled by numba at its first use.

Of the keys and values it reads what each row has and no more, as fast as memory gives it.
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
from numba.extending import intrinsic
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from src.intrinsics import (
    FLOATS,
    INT,
    LANES,
    LONG,
    call_llvm,
    constant,
    element,
    load,
    loop,
    multiply_add,
    prefetch,
    repeat,
    shuffle,
    store,
    torch_threads,
)

MOST_TOKENS = 16  # of a row; with more it is the arithmetic that takes the time
MOST_VECTORS = 16  # of a head's width, to be kept in registers
_NAME = "few_tokens"  # of our attention among transformers'


@contextmanager
def few_token_attention(
    model: PreTrainedModel, mask: torch.Tensor, lengths: Sequence[int]
) -> Iterator[None]:
    """Within it, the model attends by :func:`attend` where it has this mask and few queries a row.

    Args:
        mask: one that shows to each row's first query the first ``lengths`` of its keys, and to
            each further query one more.
    """
    configured = model.config._attn_implementation
    if configured != "sdpa":
        yield
        return

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        special = any(options.get(name) is not None for name in ("position_bias", "softcap"))
        if attention_mask is not mask or special or not can_attend(query, keys, values):
            return sdpa_attention_forward(module, query, keys, values, attention_mask, **options)
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        return attend(query, keys, values, lengths, scaling), None

    ALL_ATTENTION_FUNCTIONS[_NAME] = attention
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = configured
        del ALL_ATTENTION_FUNCTIONS[_NAME]


def can_attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether :func:`attend` takes these (tensors as there)."""
    width = query.shape[-1]
    return (
        LANES > 0
        and query.shape[2] <= MOST_TOKENS
        and query.device.type == "cpu"
        and all(tensor.dtype == torch.float32 for tensor in (query, keys, values))
        and keys.shape == values.shape
        and keys.stride() == values.stride()
        and keys.stride()[2:] == (width, 1)
        and width % LANES == 0
        and width <= MOST_VECTORS * LANES
        and torch_threads() is not None
    )


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lengths: Sequence[int],
    scaling: float,
) -> torch.Tensor:
    """Softmax attention of each row's queries to the first of its keys and values.

    Args:
        query: ``(rows, heads, queries, width)``, float32.
        keys, values: ``(rows, key heads, tokens, width)``, each for as many heads of the query.
        lengths: how many tokens each row's first query sees, at least one; each further query sees
            one more.
        scaling: of the products of queries and keys.

    Returns:
        float32 ``(rows, queries, heads, width)``.
    """
    rows, heads, queries, width = query.shape
    group = heads // keys.shape[1]
    query = query.contiguous()
    outputs = query.new_empty(rows, queries, heads, width)
    room = -(-(max(lengths) + queries - 1) // LANES) * LANES
    scores = query.new_empty(torch.get_num_threads(), group * queries, room)
    pointers = [tensor.data_ptr() for tensor in (query, keys, values, outputs, scores)]
    numbers = [rows, keys.shape[1], group, queries, *keys.stride()[:2], room]
    (scaling_bits,) = struct.unpack("<q", struct.pack("<d", scaling))
    torch_threads().run(_compile(width).address, [*pointers, *numbers, scaling_bits, *lengths])
    return outputs


@functools.cache
def _compile(width: int) -> Any:
    """Attention of heads of this width, to be run in each of torch's threads."""
    threads = torch_threads()
    thread_number, thread_count = threads.number, threads.count
    score, accumulate = _make_score(width), _make_accumulate(width)

    @cfunc(types.void(types.voidptr))
    def work(arguments: int) -> None:
        """This thread's share of the rows' key heads."""
        numbers = carray(arguments, 12, types.int64)
        query, keys, values, outputs, scores = numbers[:5]
        rows, key_heads, group, queries, row, head, room = numbers[5:]
        scaling = carray(arguments, 13, types.float64)[12]
        lengths = carray(arguments, 13 + rows, types.int64)[13:]
        number, count = thread_number(), thread_count()
        scores += 4 * number * group * queries * room
        for unit in range(
            rows * key_heads * number // count, rows * key_heads * (number + 1) // count
        ):
            number_of_row, key_head = unit // key_heads, unit % key_heads
            first = 4 * (number_of_row * row + key_head * head)
            length = lengths[number_of_row]
            nxt = unit + 1
            jump = 4 * (nxt // key_heads * row + nxt % key_heads * head) - first
            at = query + 4 * unit * group * queries * width
            for token in range(0, length + queries - 1, LANES):
                place = keys + first + 4 * token * width
                for i in range(group * queries):
                    left = length + i % queries - token
                    if left > 0:
                        target = scores + 4 * (i * room + token)
                        score(
                            at + 4 * i * width, place, target, left, scaling, jump if i == 0 else 0
                        )
            for i in range(group * queries):
                probs = scores + 4 * i * room
                seen = length + i % queries
                total = _exponentiate(probs, seen)
                output = (number_of_row * queries + i % queries) * key_heads + key_head
                target = outputs + 4 * (output * group + i // queries) * width
                accumulate(probs, values + first, target, seen, total)

    return work


def _make_score(width: int) -> Callable[[int, int, int, int, float], None]:
    @intrinsic
    def score(
        _context: Any, query: Any, keys: Any, scores: Any, left: Any, scaling: Any, ahead: Any
    ) -> tuple[Any, Callable]:
        """Scaled products of a query with ``LANES`` keys; minus infinity behind those left.

        All but the last argument are int64, of which the first three addresses.
        """

        def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Any) -> ir.Value:
            query, keys, scores, left, scaling, ahead = values
            last = builder.sub(left, LONG(1))
            starts = []
            for lane in map(LONG, range(LANES)):
                existing = builder.select(builder.icmp_signed("<", lane, last), lane, last)
                starts.append(builder.mul(existing, LONG(width)))
            sums = [constant(0.0)] * LANES
            for part in map(LONG, range(0, width, LANES)):
                factor = load(builder, element(builder, query, part))
                for lane, start in enumerate(starts):
                    place = element(builder, keys, builder.add(start, part))
                    prefetch(
                        builder,
                        element(builder, builder.add(keys, ahead), builder.add(start, part)),
                    )
                    sums[lane] = multiply_add(builder, load(builder, place), factor, sums[lane])
            while len(sums) > 1:
                pairs = zip(sums[::2], sums[1::2], strict=True)
                sums = [_add_neighbours(builder, *pair) for pair in pairs]
            scale = repeat(builder, builder.fptrunc(scaling, FLOATS.element))
            lanes = ir.Constant(ir.VectorType(INT, LANES), list(range(LANES)))
            many = builder.insert_element(lanes, builder.trunc(left, INT), INT(0))
            exists = builder.icmp_signed("<", lanes, shuffle(builder, many, many, [0] * LANES))
            scaled = builder.fmul(sums[0], scale)
            hidden = builder.select(exists, scaled, constant(-math.inf))
            store(builder, hidden, element(builder, scores, LONG(0)))
            return context.get_dummy_value()

        return types.none(*[types.int64] * 4, types.float64, types.int64), generate

    return score


def _add_neighbours(builder: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    """Sums of elements 0 and 1, 2 and 3, ... of two vectors one behind the other."""
    even, odd = (shuffle(builder, left, right, range(first, 2 * LANES, 2)) for first in (0, 1))
    return builder.fadd(even, odd)


@intrinsic
def _exponentiate(_context: Any, scores: Any, count: Any) -> tuple[Any, Callable]:
    """Replace scores by the exponential of their distance to the largest; return the sum.

    Both are int64: an address, and how many there are; minus infinities fill the last vector.
    """

    def generate(_context: Any, builder: ir.IRBuilder, _: Any, values: Any) -> ir.Value:
        scores, count = values
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

    return types.float32(types.int64, types.int64), generate


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
    @intrinsic
    def accumulate(
        _context: Any, weights: Any, values: Any, outputs: Any, count: Any, total: Any
    ) -> tuple[Any, Callable]:
        """The mean of vectors, weighted by weights whose total is known.

        All but the last argument are int64, of which the first three addresses.
        """

        def generate(context: Any, builder: ir.IRBuilder, _: Any, arguments: Any) -> ir.Value:
            weights, values, outputs, count, total = arguments
            parts = [LONG(part) for part in range(0, width, LANES)]

            def add(k: ir.Value, sums: Sequence[ir.Value]) -> list[ir.Value]:
                weight = builder.load(element(builder, weights, k), align=4)
                factor, start = repeat(builder, weight), builder.mul(k, LONG(width))
                new = [
                    load(builder, element(builder, values, builder.add(start, part)))
                    for part in parts
                ]
                pairs = zip(new, sums, strict=True)
                return [multiply_add(builder, value, factor, before) for value, before in pairs]

            sums = loop(builder, count, 1, [constant(0.0)] * len(parts), add)
            divisor = repeat(builder, total)
            for part, value in zip(parts, sums, strict=True):
                store(builder, builder.fdiv(value, divisor), element(builder, outputs, part))
            return context.get_dummy_value()

        return types.none(*[types.int64] * 4, types.float32), generate

    return accumulate
