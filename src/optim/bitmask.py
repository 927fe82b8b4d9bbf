"""A boolean tensor stored at one bit per element."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from wagle import devices


class BitMask:
    """Boolean tensor of any shape, held as ``ceil(numel / 8)`` bytes.

    Element ``i`` (row-major) is bit ``i % 8`` (least significant first) of byte ``i // 8``; the
    unused high bits of the last byte are zero. A mask of shape (2, 5) whose elements 0, 3 and 9 are
    True, for example, is the two bytes 0b00001001 and 0b00000010.

    Attributes:
        bits: uint8 tensor ``(ceil(numel / 8),)``, on any device.
        shape: shape of the boolean tensor.

    Raises:
        ValueError: if ``bits`` is not a uint8 vector of the length that ``shape`` requires.
    """

    __slots__ = ("bits", "shape")

    def __init__(self, bits: torch.Tensor, shape: Sequence[int]) -> None:
        self.shape = torch.Size(shape)
        if bits.dtype != torch.uint8 or bits.shape != ((self.numel + 7) // 8,):
            raise ValueError(
                f"a mask of shape {tuple(self.shape)} needs {(self.numel + 7) // 8} uint8 bytes, "
                f"got {tuple(bits.shape)} of {bits.dtype}"
            )
        self.bits = bits

    @property
    def numel(self) -> int:
        """Number of boolean elements."""
        return math.prod(self.shape)

    @classmethod
    def full(cls, shape: Sequence[int], value: bool) -> BitMask:
        """Mask of the given shape on the CPU with every element equal to ``value``."""
        numel = math.prod(shape)
        bits = torch.from_numpy(np.zeros((numel + 7) // 8, np.uint8))  # no memory until written
        if value:
            bits.fill_(255)
            if numel % 8:
                bits[-1] = (1 << numel % 8) - 1
        return cls(bits, shape)

    @classmethod
    def from_bool(cls, tensor: torch.Tensor) -> BitMask:
        """Pack a bool tensor; the bits stay on the tensor's device.

        Raises:
            TypeError: if the tensor is not of dtype bool.
        """
        if tensor.dtype != torch.bool:
            raise TypeError(f"a mask is a bool tensor, got {tensor.dtype}")
        return cls(pack_bits(tensor.reshape(-1)), tensor.shape)

    def to_bool(self) -> torch.Tensor:
        """Unpacked bool tensor of ``shape``, on the device of ``bits``."""
        return unpack_bits(self.bits, self.numel).view(self.shape)

    def flat(self, start: int, stop: int) -> torch.Tensor:
        """Unpacked elements ``start:stop`` in row-major order; ``start`` is a multiple of 8."""
        if start % 8:
            raise ValueError(f"start must be a multiple of 8, got {start}")
        stop = min(stop, self.numel)
        return unpack_bits(self.bits[start // 8 : (stop + 7) // 8], stop - start)

    def part(self, start: int, stop: int) -> BitMask:
        """Elements ``start:stop`` in row-major order, as a mask of one dimension."""
        first = start - start % 8
        return BitMask.from_bool(self.flat(first, stop)[start - first :])

    def positions(self, start: int, stop: int, count: int) -> torch.Tensor:
        """int64 positions of the True elements of ``start:stop``, counted from ``start``.

        Args:
            count: how many they are; an accelerator, which knows, is not waited for.
        """
        flags = self.flat(start, stop)
        if devices.on_cpu(flags):  # numpy's is several times faster than torch's
            return torch.from_numpy(np.flatnonzero(flags.numpy()))
        return torch.nonzero_static(flags, size=count).squeeze(1)

    def count(self) -> int:
        """Number of True elements."""
        if devices.on_cpu(self.bits):
            return int(np.bitwise_count(self.bits.numpy()).sum(dtype=np.int64))
        counts = torch.bincount(self.bits, minlength=256).cpu().numpy()
        return int(counts @ _ONES_IN_BYTE)

    def to(self, device: torch.device | str) -> BitMask:
        """The same mask with its bits on ``device``."""
        return BitMask(self.bits.to(device), self.shape)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BitMask)
            and self.shape == other.shape
            and torch.equal(self.bits, other.bits)
        )

    __hash__ = None  # type: ignore[assignment]  # how Python says it: the storage is mutable

    def __repr__(self) -> str:
        return f"BitMask(shape={tuple(self.shape)}, selected={self.count()}/{self.numel})"


Mask = dict[str, BitMask]
"""A weight mask: parameter name (as in ``named_parameters()``) -> selected weights."""

_ONES_IN_BYTE = np.array([byte.bit_count() for byte in range(256)])


def pack_bits(flat: torch.Tensor) -> torch.Tensor:
    """Pack a flat bool tensor ``(n,)`` into uint8 ``(ceil(n / 8),)``, first element lowest."""
    if devices.on_cpu(flat):  # numpy's kernel is vectorised, torch has none
        return torch.from_numpy(np.packbits(flat.contiguous().numpy(), bitorder="little"))
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=flat.device)
    return (padded << shifts).sum(dim=1, dtype=torch.uint8)


def unpack_bits(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Undo :func:`pack_bits`: the first ``count`` elements as a flat bool tensor."""
    if devices.on_cpu(bits):
        unpacked = np.unpackbits(bits.contiguous().numpy(), count=count, bitorder="little")
        return torch.from_numpy(unpacked).view(torch.bool)
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> shifts) & 1).view(-1)[:count].bool()
