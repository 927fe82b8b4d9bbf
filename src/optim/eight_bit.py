"""An optimizer's moments in 8 bits an element, after Dettmers et al. 2022 (arXiv 2110.02861).

Of every 256 elements the one that is largest in magnitude is kept as it is, in float32, and the
others as the nearest of 256 fixed shares of it, which lie the closer the smaller they are. With
[0.5, -2, 0.002] the scale is -2, the exact shares are -0.25, 1 and -0.001, the nearest of those
that there are -0.2477, 1 and -0.00094, and what is read is [0.4953, -2, 0.0019].

Two things differ from the paper. It scales by the largest magnitude, without the sign; with it the
largest element has the share 1 exactly, and what has been read is written back to the same bits.
And second moments have no share 0: a weight whose second moment is rounded to 0 while the first is
not makes steps of any size (Li et al. 2023, arXiv 2309.01507, section 4.1).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import torch

BLOCK = 256  # elements that share a scale
SMALLEST = 4096  # elements of a vector that is worth it, as in bitsandbytes
_DECADES = 7  # of magnitudes below 1


def shares(*, signed: bool) -> torch.Tensor:
    """All shares, float32, ascending: the paper's dynamic tree quantisation (section 2.2).

    The decade from 10^(e - 7) to 10^(e - 6), e from 0 to 6, is cut into 2^e parts, or where there
    is no sign into 2^(e + 1), and has their middles. 1 is added, and with signs 0.

    Args:
        signed: 256, as many below 0 as between 0 and 1; else 255 above 0.
    """
    found = [0.0, 1.0] if signed else [1.0]
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - _DECADES + 1)).tolist()
        found += middles + [-middle for middle in middles if signed]
    return torch.tensor(sorted(found), dtype=torch.float32)


@functools.cache
def _tables(device: torch.device, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The shares, and what lies half-way between two of them."""
    table = shares(signed=signed)
    return table.to(device), ((table[1:] + table[:-1]) / 2).to(device)


def _blocks(
    vector: torch.Tensor, scales: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of the whole blocks of a vector ``(blocks, 256)`` and of a rest, with their scales."""
    count = len(vector) // BLOCK
    yield vector[: count * BLOCK].view(count, BLOCK), scales[:count, None]
    if len(vector) > count * BLOCK:
        yield vector[count * BLOCK :].view(1, -1), scales[count:, None]


class EightBit:
    """A vector that is read and written in pieces, of floats to those who do.

    Args:
        pieces: slices of the vector that cover it, in order. No other slice is read or written, and
            no two share a block, so that threads may work on different ones.
        dtype: of what is read.
        device: where the codes are.
        signed: whether there may be elements below 0.
    """

    def __init__(
        self, pieces: Iterable[slice], *, dtype: torch.dtype, device: torch.device, signed: bool
    ) -> None:
        self.dtype = dtype
        self.signed = signed
        self._parts = {  # whatever the codes: shares of a scale of 0
            piece.start: (
                torch.zeros(piece.stop - piece.start, dtype=torch.uint8, device=device),
                torch.zeros(-(-(piece.stop - piece.start) // BLOCK), device=device),
            )
            for piece in pieces
        }

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return sum(codes.nbytes + scales.nbytes for codes, scales in self._parts.values())

    def __getitem__(self, piece: slice) -> torch.Tensor:
        """A piece, as a new tensor ``(n,)``."""
        codes, scales = self._parts[piece.start]
        table, _ = _tables(codes.device, self.signed)
        values = table.index_select(0, codes.int())
        for part, scale in _blocks(values, scales):
            part.mul_(scale)
        return values.to(self.dtype)

    def __setitem__(self, piece: slice, values: torch.Tensor) -> None:
        """Replace a piece by the nearest that can be kept."""
        codes, scales = self._parts[piece.start]
        _, borders = _tables(codes.device, self.signed)
        for (part, scale), (own, _) in zip(
            _blocks(values, scales), _blocks(codes, scales), strict=True
        ):
            block = part.float()
            largest = block.gather(1, block.abs().argmax(1, keepdim=True))
            scale.copy_(largest)
            share = block / torch.where(largest == 0, 1.0, largest)
            own.copy_(torch.bucketize(share, borders, out_int32=True))

    @property
    def _pieces(self) -> list[slice]:
        return [slice(start, start + len(codes)) for start, (codes, _) in self._parts.items()]

    def whole(self) -> torch.Tensor:
        """All of it, as a new tensor."""
        return torch.cat([self[piece] for piece in self._pieces])

    def fill(self, values: torch.Tensor) -> None:
        """Replace all of it, as by writing every piece."""
        for piece in self._pieces:
            self[piece] = values[piece]
