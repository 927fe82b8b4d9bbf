"""Attention of single tokens on a CPU.

Of the keys and values it reads what each token sees and no more, as fast as memory gives it.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from src.intrinsics import (
    LANES,
    Arguments,
    Floats,
    Int,
    Kernel,
    Place,
    Thread,
    accumulate,
    each,
    has_kernels,
    shuffle,
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
    (scaling_bits,) = struct.unpack("<i", struct.pack("<f", scaling))
    _kernel(width)(*pointers, *numbers, scaling_bits, *rows, *lengths)
    return outputs


@functools.cache
def _kernel(width: int) -> Kernel:
    """Attention of heads of this width.

    Its arguments are the addresses of query, keys, values, outputs and room for scores; the numbers
    of tokens, key heads and heads for each of them; the distances between rows and between heads of
    keys and values; a thread's room for one head's scores; the bits of the float32 scaling; then
    ``rows`` and ``lengths`` of :func:`attend`.
    """
    return Kernel(functools.partial(_write, width))


def _write(width: int, arguments: Arguments, thread: Thread) -> None:
    """A thread's share of the tokens' key heads."""
    query, keys, values, outputs, scores = (arguments[i].place() for i in range(5))
    tokens, key_heads, group, row, head, room = (arguments[i] for i in range(5, 11))
    scaling = arguments[11].float_of_bits()
    scores += thread.number * group * room
    own = (tokens * key_heads + thread.count - 1 - thread.number) // thread.count
    with each(0, own) as turn:
        unit = turn * thread.count + thread.number
        token = unit // key_heads
        first = arguments[token + 12] * row + unit % key_heads * head
        length = arguments[token + tokens + 12]
        at = unit * group * width  # of query and outputs
        with each(0, (length + (LANES - 1)) // LANES) as part, each(0, group) as i:
            column = part * LANES
            place = keys + (first + column * width)
            scored = _score(width, query + (at + i * width), place, length - column, scaling)
            (scores + (i * room + column)).store(scored)
        with each(0, group) as i:
            probs = scores + i * room
            total = _exponentiate(probs, length)
            mean = _sum_vectors(width, probs, values + first, length)
            for part, vector in enumerate(mean):
                (outputs + (at + i * width + LANES * part)).store(vector / total)


def _score(width: int, query: Place, keys: Place, left: Int, scaling: Floats) -> Floats:
    """Scaled products of a query with ``LANES`` keys; minus infinity behind those left."""
    places = [keys + (left - 1).at_most(lane) * width for lane in range(LANES)]
    sums: list[Floats | float] = [0.0] * LANES
    for part in range(0, width, LANES):
        factor = (query + part).load()
        sums = [
            (place + part).load().multiply_add(factor, total)
            for place, total in zip(places, sums, strict=True)
        ]
    while len(sums) > 1:
        sums = [_add_neighbours(*pair) for pair in zip(sums[::2], sums[1::2], strict=True)]
    return (sums[0] * scaling).first(left, -math.inf)


def _add_neighbours(left: Floats, right: Floats) -> Floats:
    """Sums of elements 0 and 1, 2 and 3, ... of two vectors one behind the other."""
    even, odd = (shuffle(left, right, range(first, 2 * LANES, 2)) for first in (0, 1))
    return even + odd


def _exponentiate(scores: Place, count: Int) -> Floats:
    """Replace scores by the exponential of their distance to the largest.

    Args:
        scores: minus infinities fill the last vector.

    Returns:
        Their sum, in each element.
    """

    def larger(k: Int, values: Sequence[Floats]) -> list[Floats]:
        return [values[0].at_least((scores + k).load())]

    (top,) = accumulate(count, LANES, [-math.inf], larger)
    top = top.reduced("fmax")

    def add(k: Int, values: Sequence[Floats]) -> list[Floats]:
        power = _exp((scores + k).load() - top)
        (scores + k).store(power)
        return [values[0] + power]

    (total,) = accumulate(count, LANES, [0.0], add)
    return total.reduced("fadd", 0.0)


def _exp(x: Floats) -> Floats:
    """Exponentials of numbers up to 0, to about one unit in the last place.

    exp(x) = 2^n exp(x - n ln 2) with n = round(x / ln 2), and Taylor's series up to the seventh
    power. Below the smallest normal number results are that.
    """
    x = x.at_least(-87.0)
    n = (x * (1 / math.log(2))).rounded()
    high = 355 / 512  # ln 2 in two parts, of which n times the first is exact
    rest = n.multiply_add(-high, x)
    rest = n.multiply_add(high - math.log(2), rest)
    series = x.constant(1 / math.factorial(7))
    for power in range(6, -1, -1):
        series = series.multiply_add(rest, 1 / math.factorial(power))
    return series * n.power_of_two()


def _sum_vectors(width: int, weights: Place, vectors: Place, count: Int) -> list[Floats]:
    """The sum of vectors of this width times their weights."""

    def add(k: Int, sums: Sequence[Floats]) -> list[Floats]:
        weight, place = (weights + k).load_repeated(), vectors + k * width
        return [
            (place + LANES * part).load().multiply_add(weight, total)
            for part, total in enumerate(sums)
        ]

    return accumulate(count, 1, [0.0] * (width // LANES), add)
