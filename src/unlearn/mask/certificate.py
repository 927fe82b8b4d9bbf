"""What says that a masked run has left the unselected weights alone, bit for bit.

SHA-256 over all unselected weights, before and after. It can be checked by anyone who has the two
models and the mask, and by nothing else: neither data nor code of the run are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from wagle.optim.bitmask import BitMask, Mask
from wagle.optim.threads import ordered_map

CHUNK = 1 << 20
"""Weights that are hashed at once; part of what a digest means."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Bits = Callable[[str], torch.Tensor]
"""Gives the bits of a parameter by its name: flat integers of its elements' size."""


@dataclass(frozen=True)
class Certificate:
    """Digests of the unselected weights (:func:`frozen_digest`).

    Attributes:
        frozen: how many weights are not selected.
        before, after: their digest.
    """

    frozen: int
    before: str
    after: str

    @property
    def holds(self) -> bool:
        """Whether no unselected weight has changed."""
        return self.before == self.after

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        digests = {"before": self.before, "after": self.after}
        return {"sha256_of_unselected": digests, "unselected": self.frozen, "holds": self.holds}


def frozen_count(mask: Mask) -> int:
    """How many weights a mask does not select."""
    return sum(bits.numel - bits.count() for bits in mask.values())


def model_bits(model: torch.nn.Module) -> Bits:
    """The parameters of a model in memory, for :func:`frozen_digest`."""
    parameters = dict(model.named_parameters())

    def bits(name: str) -> torch.Tensor:
        weights = parameters[name].detach()
        return weights.reshape(-1).view(_INTEGERS[weights.dtype.itemsize])

    return bits


def frozen_digest(bits: Bits, mask: Mask, dtypes: Mapping[str, torch.dtype]) -> str:
    """SHA-256, in hex, over the weights that a mask does not select.

    Of what? Of a line ``NAME DTYPE SHAPE`` for every parameter, in alphabetic order, followed by
    the SHA-256 digests of its chunks of 2²⁰ weights in row-major order, little-endian, with zeros
    in place of the selected ones. Of the weights 1.0, 2.0, 3.0 in float32, of which the second is
    selected, the only chunk is ``0000803f 00000000 00004040``.

    Args:
        bits: gives a parameter's weights.
        mask: over all parameters.
        dtypes: of the parameters.
    """
    digest = hashlib.sha256()

    def chunks() -> Iterator[tuple[torch.Tensor, BitMask | None, int]]:
        for name in sorted(mask):
            selected = mask[name]
            yield from parts(bits(name), selected)

    def parts(
        flat: torch.Tensor, selected: BitMask
    ) -> Iterator[tuple[torch.Tensor, BitMask | None, int]]:
        shown = selected if selected.count() else None
        for start in range(0, len(flat), CHUNK):
            yield flat[start : start + CHUNK], shown, start

    hashed = ordered_map(_chunk_digest, chunks())
    for name in sorted(mask):
        shape = "×".join(map(str, mask[name].shape)) or "scalar"
        digest.update(f"{name} {str(dtypes[name]).removeprefix('torch.')} {shape}\n".encode())
        for _ in range(0, mask[name].numel, CHUNK):
            digest.update(next(hashed))
    return digest.hexdigest()


def _chunk_digest(chunk: tuple[torch.Tensor, BitMask | None, int]) -> bytes:
    weights, selected, start = chunk
    weights = weights.to("cpu")
    if selected is not None:
        chosen = selected.flat(start, start + len(weights)).to("cpu")
        weights = weights.masked_fill(chosen, 0)
    return hashlib.sha256(weights.contiguous().numpy().data).digest()
