"""Instructions of LLVM, and torch's threads, for functions that numba compiles."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Floats in a register.
LANES = {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 0)
FLOAT, INT, LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FLOATS = ir.VectorType(FLOAT, LANES)


@dataclass(frozen=True)
class Threads:
    """The team of threads that torch computes with.

    Others would fight with them: they wait for their next work without sleeping.

    Attributes:
        number, count: for compiled code, which of the team's threads it runs in, and how many
            there are.
        wait: for compiled code, wait until all threads of the team have come here.
    """

    number: Callable[[], int]
    count: Callable[[], int]
    wait: Callable[[], None]
    _run: Callable

    def run(self, address: int, arguments: Sequence[int]) -> None:
        """Run in each thread a compiled function, which is given a pointer to the arguments."""
        packed = (ctypes.c_int64 * len(arguments))(*arguments)
        self._run(address, ctypes.byref(packed), torch.get_num_threads(), 0)


@functools.cache
def torch_threads() -> Threads | None:
    """None where torch does not bring GNU's OpenMP."""
    libraries = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))
    if not libraries:
        return None
    openmp = ctypes.CDLL(str(libraries[0]))
    number, count, wait, run = (
        openmp.omp_get_thread_num,
        openmp.omp_get_num_threads,
        openmp.GOMP_barrier,
        openmp.GOMP_parallel,
    )
    for function in (number, count):
        function.argtypes, function.restype = [], ctypes.c_int
    wait.argtypes, wait.restype = [], None
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    run.restype = None
    return Threads(number, count, wait, run)


def has_kernels() -> bool:
    """Whether code with these registers and threads can run here."""
    return LANES > 0 and torch_threads() is not None


def instructions(
    *kinds: types.Type, result: types.Type = types.none
) -> Callable[[Callable[..., ir.Value | None]], Callable]:
    """Make a function that writes instructions one that compiled code can call.

    Args:
        kinds: of the arguments of the calls. The function decorated takes the builder and their
            values, and returns the value of the result, or None where that is none.
    """

    def decorate(write: Callable[..., ir.Value | None]) -> Callable:
        @functools.wraps(write)  # numba asks for its signature
        def type_call(_context: Any, *_: Any) -> tuple[Any, Callable]:
            def generate(context: Any, builder: ir.IRBuilder, _: Any, values: Any) -> ir.Value:
                value = write(builder, *values)
                return context.get_dummy_value() if value is None else value

            return result(*kinds), generate

        return intrinsic(type_call)

    return decorate


def call_llvm(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call a function of LLVM, and return its result of this type."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def prefetch(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Ask for the memory around an address, which may lie behind an array, for reading soon."""
    hints = (INT(0), INT(3), INT(1))  # data, to be read, into all caches
    call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, *hints)


def smaller(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The smaller of two int64."""
    return call_llvm(builder, "llvm.smin.i64", LONG, a, b)


def element(builder: ir.IRBuilder, address: ir.Value, index: ir.Value) -> ir.Value:
    """Where the float of this index behind an address (int64) is."""
    return builder.gep(builder.inttoptr(address, FLOAT.as_pointer()), [index])


def load(builder: ir.IRBuilder, place: ir.Value) -> ir.Value:
    """The ``LANES`` floats from a place on."""
    return builder.load(builder.bitcast(place, FLOATS.as_pointer()), align=4)


def store(builder: ir.IRBuilder, vector: ir.Value, place: ir.Value) -> None:
    """Write all floats of a vector."""
    builder.store(vector, builder.bitcast(place, vector.type.as_pointer()), align=4)


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, total: ir.Value) -> ir.Value:
    """``a b + total`` of vectors of ``LANES`` floats, rounded once."""
    return call_llvm(builder, f"llvm.fma.v{LANES}f32", FLOATS, a, b, total)


def shuffle(
    builder: ir.IRBuilder, left: ir.Value, right: ir.Value, indices: Sequence[int]
) -> ir.Value:
    """These elements of two vectors, one behind the other."""
    order = ir.Constant(ir.VectorType(INT, len(indices)), list(indices))
    return builder.shuffle_vector(left, right, order)


def repeat(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A vector of ``LANES`` times this number."""
    kind = ir.VectorType(value.type, LANES)
    vector = builder.insert_element(ir.Constant(kind, ir.Undefined), value, INT(0))
    return shuffle(builder, vector, vector, [0] * LANES)


def constant(value: float) -> ir.Constant:
    """A vector of ``LANES`` times this float."""
    return ir.Constant(FLOATS, [value] * LANES)


def loop(
    builder: ir.IRBuilder,
    end: ir.Value,
    step: int,
    initial: Sequence[ir.Value],
    body: Callable[[ir.Value, Sequence[ir.Value]], Sequence[ir.Value]],
) -> list[ir.Value]:
    """Run the body for 0, ``step``, ... below ``end``, but at least once.

    Args:
        body: makes new values of the counter and the values so far.

    Returns:
        The last values.
    """
    before = builder.block
    inside, after = builder.append_basic_block(), builder.append_basic_block()
    builder.branch(inside)
    builder.position_at_end(inside)
    counter = builder.phi(LONG)
    values = [builder.phi(value.type) for value in initial]
    results = list(body(counter, values))
    following = builder.add(counter, LONG(step))
    for phi, first, later in zip(
        (counter, *values), (LONG(0), *initial), (following, *results), strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, end), inside, after)
    builder.position_at_end(after)
    return results
