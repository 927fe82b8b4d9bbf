"""A safetensors file that is written and read tensor by tensor.

The safetensors library serialises a whole dict at once, which would hold every tensor twice. Sums
of gradients are as large as the model, so here the header is written first and each tensor's bytes
are a memory-mapped region that exists only while it is being used.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from src.errors import WagleError

_DTYPES = {"F32": np.float32, "F64": np.float64}
_NAMES = {torch.float32: "F32", torch.float64: "F64"}


class TensorFile:
    """Named float tensors in one safetensors file; see :meth:`create` and :meth:`open`.

    Attributes:
        path: the file.
        metadata: the header's string-to-string metadata.
    """

    def __init__(self, path: Path) -> None:
        """Open an existing file.

        Raises:
            WagleError: the file is truncated or is not a safetensors file.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > path.stat().st_size:
                    raise ValueError("the header is longer than the file")
                header = json.loads(file.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self._entries = {
                name: (
                    _DTYPES[e["dtype"]],
                    torch.Size(e["shape"]),
                    8 + length + e["data_offsets"][0],
                )
                for name, e in header.items()
            }
            size = 8 + length + max((e["data_offsets"][1] for e in header.values()), default=0)
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise WagleError(f"{path} is not a usable safetensors file: {error}") from error
        if path.stat().st_size != size:
            raise WagleError(f"{path} has {path.stat().st_size} bytes where {size} are expected")

    @classmethod
    def create(
        cls,
        path: Path,
        shapes: Mapping[str, torch.Size],
        dtype: torch.dtype,
        metadata: Mapping[str, str],
    ) -> TensorFile:
        """Make a file of zeros; the disk blocks are taken when tensors are written."""
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        offset = 0
        for name, shape in shapes.items():
            end = offset + math.prod(shape) * dtype.itemsize
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + offset)
        return cls(path)

    def shapes(self) -> dict[str, torch.Size]:
        """Names and shapes in file order."""
        return {name: shape for name, (_, shape, _) in self._entries.items()}

    def read(self, name: str) -> torch.Tensor:
        """The tensor, mapped from the file for as long as it is referenced; do not write to it."""
        return self._map(name, "c")

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Store a tensor of the declared shape."""
        self._map(name, "r+").copy_(tensor)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add to the stored tensor."""
        self._map(name, "r+").add_(tensor.to("cpu"))

    def move_to(self, path: Path) -> None:
        """Give the finished file its final name, atomically."""
        os.replace(self.path, path)
        self.path = path

    def _map(self, name: str, mode: str) -> torch.Tensor:
        dtype, shape, offset = self._entries[name]
        if math.prod(shape) == 0:
            return torch.empty(shape)
        array = np.memmap(self.path, dtype=dtype, mode=mode, offset=offset, shape=tuple(shape))
        return torch.from_numpy(array)
