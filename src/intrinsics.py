"""Code for CPUs, written instruction by instruction, and torch's threads to run it in.

numba would make the same of Python, but takes a second for it in every process. Code for numba
shares the first functions.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from numba.core import cgutils

# Floats in a register.
LANES = {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 0)
FLOAT, INT, LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(FLOAT, LANES)
_FLOATS_NAME = f"v{LANES}f32"  # in the names of LLVM's functions


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """What torch's threads come from; None where that is not GNU's OpenMP.

    Other threads would fight with them: they wait for their next work without sleeping.
    """
    libraries = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))
    return ctypes.CDLL(str(libraries[0])) if libraries else None


def has_kernels() -> bool:
    """Whether code with these registers and threads can run here."""
    return LANES > 0 and _openmp() is not None


def call_llvm(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call a function of LLVM, and return its result of this type."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def prefetch(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Ask for the memory around an address, which may lie behind an array, for reading soon."""
    hints = (INT(0), INT(3), INT(1))  # data, to be read, into all caches
    call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, *hints)


@dataclass(frozen=True)
class Value:
    """What code computes. Operators write the instructions that compute more from it.

    Where another value is needed, a number of Python is a constant of the same type.
    """

    builder: ir.IRBuilder
    raw: ir.Value
    prefix: ClassVar[str]  # of the names of instructions for such values

    def constant(self, number: float) -> Self:
        """The number as a value of the same type, in a vector as each element."""
        return type(self)(self.builder, _raw(number, self.raw.type))

    def __add__(self, other: Self | float) -> Self:
        return self._compute("add", other)

    def __sub__(self, other: Self | float) -> Self:
        return self._compute("sub", other)

    def __mul__(self, other: Self | float) -> Self:
        return self._compute("mul", other)

    def _compute(self, name: str, other: Self | float) -> Self:
        instruction = getattr(self.builder, self.prefix + name)
        return type(self)(self.builder, instruction(self.raw, _raw(other, self.raw.type)))

    def _call(self, name: str, *others: Self | float) -> Self:
        kind = self.raw.type
        arguments = [_raw(value, kind) for value in (self, *others)]
        return type(self)(self.builder, call_llvm(self.builder, name, kind, *arguments))


def _raw(value: Value | float, kind: ir.Type) -> ir.Value:
    """A value, or a number of Python as a constant of this type."""
    if isinstance(value, Value):
        return value.raw
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


class Int(Value):
    """An int64; those that are divided are not negative."""

    prefix = ""

    def __floordiv__(self, other: Int | int) -> Int:
        return self._compute("udiv", other)

    def __mod__(self, other: Int | int) -> Int:
        return self._compute("urem", other)

    def at_most(self, other: Int | int) -> Int:
        """The smaller of the two."""
        return self._call("llvm.smin.i64", other)

    def equals(self, other: Int | int) -> ir.Value:
        """A condition."""
        return self.builder.icmp_signed("==", self.raw, _raw(other, LONG))

    def float_of_bits(self) -> Floats:
        """The float32 that its lower half is, ``LANES`` times."""
        bits = self.builder.trunc(self.raw, INT)
        return _repeat(self.builder, self.builder.bitcast(bits, FLOAT))

    def place(self) -> Place:
        """Where this address is."""
        return Place(self.builder, self.builder.inttoptr(self.raw, FLOAT.as_pointer()))


class Floats(Value):
    """As many float32 as a register holds, ``LANES``."""

    prefix = "f"

    def __truediv__(self, other: Floats | float) -> Floats:
        return self._compute("div", other)

    def at_least(self, other: Floats | float) -> Floats:
        """The larger of the two, element by element."""
        return self._call(f"llvm.maxnum.{_FLOATS_NAME}", other)

    def rounded(self) -> Floats:
        """The nearest integers."""
        return self._call(f"llvm.rint.{_FLOATS_NAME}")

    def multiply_add(self, factor: Floats | float, summand: Floats | float) -> Floats:
        """``self * factor + summand``, rounded once."""
        return self._call(f"llvm.fma.{_FLOATS_NAME}", factor, summand)

    def first(self, count: Int, filler: float) -> Floats:
        """The first elements; others are the filler."""
        lanes = ir.Constant(_FLOATS, list(range(LANES)))
        most = _repeat(self.builder, self.builder.sitofp(count.raw, FLOAT))
        among = self.builder.fcmp_ordered("<", lanes, most.raw)
        return choose(among, self, self.constant(filler))

    def power_of_two(self) -> Floats:
        """Two to the power of integers from -126 to 127."""
        integers = ir.VectorType(INT, LANES)
        exponent = self.builder.fptosi(self.raw, integers)
        biased = self.builder.add(exponent, ir.Constant(integers, [127] * LANES))
        bits = self.builder.shl(biased, ir.Constant(integers, [23] * LANES))
        return Floats(self.builder, self.builder.bitcast(bits, _FLOATS))

    def reduced(self, name: str, *start: float) -> Floats:
        """What LLVM's reduction of this name makes of a start, if it has one, and the elements.

        Each element of the result is that.
        """
        name = f"llvm.vector.reduce.{name}.{_FLOATS_NAME}"
        arguments = (*map(FLOAT, start), self.raw)
        return _repeat(self.builder, call_llvm(self.builder, name, FLOAT, *arguments))


@dataclass(frozen=True)
class Place:
    """Where a float32 is in memory. Others are so many places behind it."""

    builder: ir.IRBuilder
    raw: ir.Value

    def __add__(self, count: Int | int) -> Place:
        return Place(self.builder, self.builder.gep(self.raw, [_raw(count, LONG)]))

    def load(self) -> Floats:
        """``LANES`` floats from here on."""
        place = self.builder.bitcast(self.raw, _FLOATS.as_pointer())
        return Floats(self.builder, self.builder.load(place, align=4))

    def load_repeated(self) -> Floats:
        """The float here, ``LANES`` times."""
        return _repeat(self.builder, self.builder.load(self.raw, align=4))

    def store(self, values: Floats) -> None:
        """Write floats from here on."""
        place = self.builder.bitcast(self.raw, values.raw.type.as_pointer())
        self.builder.store(values.raw, place, align=4)

    def prefetch(self) -> None:
        """Ask for the memory around here for reading soon."""
        prefetch(self.builder, self.raw)


def _repeat(builder: ir.IRBuilder, number: ir.Value) -> Floats:
    """This float ``LANES`` times."""
    vector = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, INT(0))
    values = Floats(builder, vector)
    return shuffle(values, values, [0] * LANES)


def shuffle(left: Floats, right: Floats, indices: Sequence[int]) -> Floats:
    """These elements of two vectors, one behind the other."""
    order = ir.Constant(ir.VectorType(INT, len(indices)), list(indices))
    return Floats(left.builder, left.builder.shuffle_vector(left.raw, right.raw, order))


Chosen = TypeVar("Chosen", Int, Floats, Place)


def choose(condition: ir.Value, this: Chosen, other: Chosen) -> Chosen:
    """One of two values; of vectors, element by element if the condition is one too."""
    return type(this)(this.builder, this.builder.select(condition, this.raw, other.raw))


@contextmanager
def each(start: Int | int, end: Int) -> Iterator[Int]:
    """What is written within it is run for every number from ``start`` to below ``end``."""
    with cgutils.for_range(end.builder, end.raw, _raw(start, LONG)) as loop:
        yield Int(end.builder, loop.index)


def accumulate(
    end: Int,
    step: int,
    initial: Sequence[float],
    body: Callable[[Int, Sequence[Floats]], Sequence[Floats]],
) -> list[Floats]:
    """Run the body for 0, ``step``, ... below ``end``, but at least once.

    Args:
        initial: what the values are before, each in all elements.
        body: makes new values of the counter and the values so far.

    Returns:
        The last values.
    """
    builder = end.builder
    before = builder.block
    inside, after = builder.append_basic_block(), builder.append_basic_block()
    builder.branch(inside)
    builder.position_at_end(inside)
    counter = Int(builder, builder.phi(LONG))
    values = [Floats(builder, builder.phi(_FLOATS)) for _ in initial]
    results = list(body(counter, values))
    following = counter + step
    for phi, first, later in zip(
        (counter, *values), (0, *initial), (following, *results), strict=True
    ):
        phi.raw.add_incoming(phi.constant(first).raw, before)
        phi.raw.add_incoming(later.raw, builder.block)
    builder.cbranch(builder.icmp_signed("<", following.raw, end.raw), inside, after)
    builder.position_at_end(after)
    return results


@dataclass(frozen=True)
class Arguments:
    """The int64 that a kernel is given."""

    builder: ir.IRBuilder
    raw: ir.Value

    def __getitem__(self, index: Int | int) -> Int:
        place = self.builder.gep(self.raw, [_raw(index, LONG)])
        return Int(self.builder, self.builder.load(place))


@dataclass(frozen=True)
class Thread:
    """Which of ``count`` threads code runs in."""

    number: Int
    count: Int

    def share(self, total: Int) -> AbstractContextManager[Int]:
        """:func:`each` of the numbers below ``total`` that are this thread's part of them."""
        return each(total * self.number // self.count, total * (self.number + 1) // self.count)

    def wait(self) -> None:
        """Until all threads have come here."""
        _call_openmp(self.number.builder, "GOMP_barrier", ir.VoidType())


def _call_openmp(builder: ir.IRBuilder, name: str, result: ir.Type) -> ir.Value:
    address = ctypes.cast(getattr(_openmp(), name), ctypes.c_void_p).value
    pointer = ir.FunctionType(result, []).as_pointer()
    return builder.call(builder.inttoptr(LONG(address), pointer), [])


class Kernel:
    """Code that is run in each of torch's threads.

    Args:
        write: writes it.
    """

    def __init__(self, write: Callable[[Arguments, Thread], None]) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(),
            features=llvm.get_host_cpu_features().flatten(),
            opt=3,
        )
        module = ir.Module()
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        kind = ir.FunctionType(ir.VoidType(), [LONG.as_pointer()])
        function = ir.Function(module, kind, "kernel")
        builder = ir.IRBuilder(function.append_basic_block())
        number, count = (
            Int(builder, builder.zext(_call_openmp(builder, name, INT), LONG))
            for name in ("omp_get_thread_num", "omp_get_num_threads")
        )
        write(Arguments(builder, function.args[0]), Thread(number, count))
        builder.ret_void()
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
        self._address = self._engine.get_function_address("kernel")
        self._parallel = _openmp().GOMP_parallel
        self._parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None

    def __call__(self, *arguments: int) -> None:
        """Run it with these int64."""
        packed = (ctypes.c_int64 * len(arguments))(*arguments)
        self._parallel(self._address, ctypes.byref(packed), torch.get_num_threads(), 0)
