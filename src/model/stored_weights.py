"""A model folder's weights as they lie in its files: bits, without a model around them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from wagle.errors import WagleError
from wagle.model.folder import check_model_folder, weight_files

_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}
_BITS: dict[int, type[np.integer]] = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}


class Stored(NamedTuple):
    """Where a tensor lies.

    Attributes:
        path: of its file.
        offset: bytes before it.
    """

    path: Path
    offset: int
    shape: torch.Size
    dtype: torch.dtype


class StoredWeights:
    """The tensors of a model folder, mapped from its safetensors files when they are asked for.

    Args:
        folder: of the model; whole, or in parts with an index.

    Attributes:
        folder: as given.
        tensors: where each lies, by name, in alphabetic order.

    Raises:
        WagleError: it is no folder of a model, or its weights are in files of another kind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise WagleError(f"there is no model folder {folder}")
        check_model_folder(folder)
        found: dict[str, Stored] = {}
        for path in weight_files(folder):
            if path.suffix != ".safetensors":
                raise WagleError(
                    f"{path} is no safetensors file; load the model and save it with "
                    "save_pretrained, which writes one"
                )
            found |= _tensors(path)
        self.tensors = dict(sorted(found.items()))

    def bits(self, name: str) -> torch.Tensor:
        """The bits of a tensor as flat integers of its elements' size, mapped from the file.

        A bfloat16 tensor ``(2, 3)`` is int16 ``(6,)``. What is written to it stays in memory.
        """
        return self._map(name, "c")

    def writable(self, name: str) -> torch.Tensor:
        """As :meth:`bits`; what is written to it is written to the file."""
        return self._map(name, "r+")

    def _map(self, name: str, mode: Literal["c", "r+"]) -> torch.Tensor:
        path, offset, shape, dtype = self.tensors[name]
        kind = _BITS[dtype.itemsize]
        if math.prod(shape) == 0:
            return torch.from_numpy(np.empty(0, kind))
        return torch.from_numpy(np.memmap(path, kind, mode, offset, (math.prod(shape),)))


def _tensors(path: Path) -> dict[str, Stored]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))  # the folder's check has read it already
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise WagleError(f"{path}: {name} is of the kind {entry['dtype']}, not of {_KINDS}")
        start = 8 + length + entry["data_offsets"][0]
        dtype = _DTYPES[entry["dtype"]]
        found[name] = Stored(path, start, torch.Size(entry["shape"]), dtype)
    return found


_KINDS = ", ".join(_DTYPES)
