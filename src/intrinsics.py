"""Instructions of LLVM for functions that numba compiles."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

_INT = ir.IntType(32)


def call_llvm(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call a function of LLVM, and return its result of this type."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def prefetch(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Ask for the memory around an address, which may lie behind an array, for reading soon."""
    hints = (_INT(0), _INT(3), _INT(1))  # data, to be read, into all caches
    call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, *hints)
