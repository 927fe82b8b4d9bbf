"""A parameter piece by piece: where the selected elements of each lie, and how to reach them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wagle import devices
from wagle.optim.bitmask import BitMask

CPU_CHUNK = 1 << 21  # elements; outweighs the cost of a call, and bounds temporary memory
WIDE_CHUNK = 1 << 24  # for GPUs and for tensors without a mask: bounds temporary memory


@dataclass(frozen=True, slots=True)
class ParameterChunk:
    """Elements ``start:stop`` of a flat parameter, and where their packed state lies.

    Where a mask, 0110 1001 from the first element on, is cut into two chunks of four, the second is
    ``ParameterChunk(start=4, stop=8, packed=slice(2, 4), mask)``: its positions are 0 and 3, and
    its state are the elements 2 and 3 of the parameter's packed vectors, of four elements.
    """

    start: int
    stop: int
    packed: slice
    mask: BitMask | None  # of the whole parameter; None: everything is selected

    def positions(self) -> torch.Tensor | None:
        """int64 positions of the selected elements within the chunk; None: all of them."""
        if self.mask is None:
            return None
        return self.mask.positions(self.start, self.stop, self.packed.stop - self.packed.start)

    def gather(self, flat: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """The selected elements of a flat tensor; a view of it where all are selected."""
        part = flat[self.start : self.stop]
        return part if positions is None else part.index_select(0, positions)

    def scatter(
        self, flat: torch.Tensor, positions: torch.Tensor | None, values: torch.Tensor
    ) -> None:
        """Write the selected elements of a flat tensor."""
        part = flat[self.start : self.stop]
        if positions is None:
            part.copy_(values)
        else:
            part.scatter_(0, positions, values.to(part.dtype))


def cut(parameter: torch.Tensor, mask: BitMask | None) -> tuple[ParameterChunk, ...]:
    """The chunks of a parameter that have a selected element.

    Args:
        mask: of its elements in row-major order, on its device; ``None``: all are selected.
    """
    size = CPU_CHUNK if devices.on_cpu(parameter) and mask is not None else WIDE_CHUNK
    chunks, selected = [], 0
    for start in range(0, parameter.numel(), size):
        stop = min(start + size, parameter.numel())
        count = stop - start if mask is None else int(mask.flat(start, stop).count_nonzero())
        if count:
            chunks.append(ParameterChunk(start, stop, slice(selected, selected + count), mask))
        selected += count
    return tuple(chunks)


def multiply_by_mask(tensor: torch.Tensor, mask: BitMask) -> None:
    """Set what the mask does not select to zero, in place, unpacking a chunk of it at a time.

    Args:
        tensor: contiguous, of the mask's shape and on its device.
    """
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), WIDE_CHUNK):
        flat[start : start + WIDE_CHUNK].mul_(mask.flat(start, start + WIDE_CHUNK))
