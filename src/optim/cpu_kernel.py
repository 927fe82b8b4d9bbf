"""Operations on selected weights on the CPU, compiled by numba at their first call.

As separate torch operations, finding, gathering, updating and scattering move each selected weight
through memory several times, with int64 positions beside it. Here one pass does all of it. In AdamW
a block of weights stays in the L1 cache meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from src.intrinsics import FLOAT, INT, LANES, call_llvm, prefetch

BLOCK = 2048  # weights; a multiple of 16, small enough for the L1 cache with what belongs to them
AHEAD = 512  # elements from what is read to what is fetched from memory meanwhile

_COUNTS = np.array([byte.bit_count() for byte in range(256)], np.uint8)
# Row b: the set bits of byte b, lowest first.
_SET_BITS = np.zeros((256, 8), np.uint8)
for _byte in range(256):
    _SET_BITS[_byte, : _COUNTS[_byte]] = [k for k in range(8) if _byte >> k & 1]


@njit(nogil=True)
def compress_by_table(
    source: np.ndarray, start: int, word: int, target: np.ndarray, at: int
) -> int:
    """Copy those of ``source[start : start + 16]`` whose bit is set in ``word`` to ``target[at:]``.

    Others of ``target[at : at + 16]`` may be overwritten. The arrays are float32, the word uint16.

    Returns:
        The number of bits that are set.
    """
    count = 0
    for first in range(0, 16, 8):
        byte = np.uint8(word >> first)
        for k in range(_COUNTS[byte]):
            target[at + count + k] = source[start + first + _SET_BITS[byte, k]]
        count += _COUNTS[byte]
    return count


@njit(nogil=True)
def expand_by_table(source: np.ndarray, at: int, word: int, target: np.ndarray, start: int) -> int:
    """Undo a compression: write ``source[at:]`` to the selected of ``target[start : start + 16]``.

    Nothing but these is written; any of ``source[at : at + 16]`` may be read.

    Returns:
        The number of bits that are set.
    """
    count = 0
    for first in range(0, 16, 8):
        byte = np.uint8(word >> first)
        for k in range(_COUNTS[byte]):
            target[start + first + _SET_BITS[byte, k]] = source[at + count + k]
        count += _COUNTS[byte]
    return count


_FLOATS = ir.VectorType(FLOAT, 16)
_FLAGS = ir.VectorType(ir.IntType(1), 16)
_UNDEFINED = ir.Constant(_FLOATS, ir.Undefined)
_ALIGNMENT = INT(4)


@intrinsic
def compress_by_instruction(
    _context: Any, source: types.Array, start: Any, word: Any, target: types.Array, at: Any
) -> tuple[Any, Callable]:
    """What :func:`compress_by_table` does, in the instruction that AVX-512 has for it."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        flags = builder.bitcast(values[2], _FLAGS)
        where = _address(context, builder, signature.args[0], *values[0:2])
        arguments = (where, _ALIGNMENT, flags, _UNDEFINED)  # reads nothing behind the array's end
        loaded = call_llvm(builder, "llvm.masked.load.v16f32.p0", _FLOATS, *arguments)
        ahead = builder.gep(where, [INT(AHEAD // 16)])
        prefetch(builder, ahead)
        name = "llvm.experimental.vector.compress.v16f32"
        packed = call_llvm(builder, name, _FLOATS, loaded, flags, _UNDEFINED)
        builder.store(packed, _address(context, builder, signature.args[3], *values[3:5]), align=4)
        return builder.zext(builder.ctpop(values[2]), context.get_value_type(types.intp))

    return types.intp(source, types.intp, types.uint16, target, types.intp), generate


@intrinsic
def expand_by_instruction(
    _context: Any, source: types.Array, at: Any, word: Any, target: types.Array, start: Any
) -> tuple[Any, Callable]:
    """What :func:`expand_by_table` does, in the instruction that AVX-512 has for it."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        flags = builder.bitcast(values[2], _FLAGS)
        where = _address(context, builder, signature.args[0], *values[0:2])
        name = "llvm.masked.expandload.v16f32"
        spread = call_llvm(builder, name, _FLOATS, where, flags, _UNDEFINED)
        where = _address(context, builder, signature.args[3], *values[3:5])
        arguments = (spread, where, _ALIGNMENT, flags)
        call_llvm(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), *arguments)
        return builder.zext(builder.ctpop(values[2]), context.get_value_type(types.intp))

    return types.intp(source, types.intp, types.uint16, target, types.intp), generate


def _address(
    context: Any, builder: ir.IRBuilder, kind: types.Array, array: ir.Value, index: ir.Value
) -> ir.Value:
    """Pointer to sixteen elements of an array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _FLOATS.as_pointer())


if LANES == 16:
    _compress, _expand = compress_by_instruction, expand_by_instruction
else:  # LLVM would make a branch for each bit of them
    _compress, _expand = compress_by_table, expand_by_table


@njit(nogil=True, error_model="numpy", fastmath={"contract"})
def adamw(
    weights: np.ndarray,
    gradients: np.ndarray,
    bits: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on the selected weights.

    As in ``torch.optim.AdamW(fused=True)`` scalars are computed in float64, elements in float32,
    in the same order up to rounding. Nothing is checked, and the interpreter is not held.

    Args:
        weights: float32 ``(n,)``, contiguous as are all arrays; updated where selected.
        gradients: float32 ``(n,)``.
        bits: uint8 ``(ceil(n / 8),)``, laid out as in ``BitMask``; the unused high bits are zero.
        exp_avg: float32 ``(number of set bits,)``; updated.
        exp_avg_sq: float32 ``(number of set bits,)``; updated.
        step: number of this step, from 1.
    """
    keep = np.float32(1 - lr * weight_decay)
    step_size = np.float32(lr / (1 - beta1**step))
    scale = np.float32(1 / math.sqrt(1 - beta2**step))
    fresh1, decay2, fresh2 = np.float32(1 - beta1), np.float32(beta2), np.float32(1 - beta2)
    epsilon = np.float32(eps)
    w, g = np.empty(BLOCK + 16, np.float32), np.empty(BLOCK + 16, np.float32)
    done = 0
    for start in range(0, bits.size, BLOCK // 8):
        block = bits[start : start + BLOCK // 8]
        count = 0
        for i in range(0, block.size, 2):
            word = _word(block, i)
            _compress(weights, 8 * (start + i), word, w, count)
            count += _compress(gradients, 8 * (start + i), word, g, count)
        m, v = exp_avg[done : done + count], exp_avg_sq[done : done + count]
        for i in range(count):
            m[i] += fresh1 * (g[i] - m[i])
            v[i] = decay2 * v[i] + fresh2 * g[i] * g[i]
            w[i] = keep * w[i] - step_size * m[i] / (math.sqrt(v[i]) * scale + epsilon)
        done += count
        count = 0
        for i in range(0, block.size, 2):
            count += _expand(w, count, _word(block, i), weights, 8 * (start + i))


@njit(nogil=True)
def _word(bits: np.ndarray, i: int) -> int:
    """Bytes ``i`` and ``i + 1`` as a uint16; what lies behind the end counts as zero."""
    high = bits[i + 1] if i + 1 < bits.size else np.uint8(0)
    return np.uint16(bits[i] | high << 8)


@njit(nogil=True)
def exchange(weights: np.ndarray, bits: np.ndarray, packed: np.ndarray) -> None:
    """Swap the selected weights with those in ``packed``, in row-major order.

    Args:
        weights: ``(n,)``, contiguous as are all arrays.
        bits: uint8 ``(ceil(n / 8),)``, laid out as in ``BitMask``; the unused high bits are zero.
        packed: ``(number of set bits,)``, of the weights' dtype.
    """
    done = 0
    for i in range(bits.size):
        byte = bits[i]
        for k in range(_COUNTS[byte]):
            at = 8 * i + _SET_BITS[byte, k]
            weights[at], packed[done + k] = packed[done + k], weights[at]
        done += _COUNTS[byte]
