"""A safetensors file that is written and read tensor by tensor, and a cache made of such files.

The safetensors library serialises a whole dict at once, which would hold every tensor twice. Sums
of gradients are as large as the model, so here the header is written first and each tensor's bytes
are a memory-mapped region that exists only while it is being used.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
import xxhash

from wagle import ranks
from wagle.errors import WagleError
from wagle.loggers.files import locked, replacing
from wagle.optim.threads import ordered_map
from wagle.terminal import Progress, say

_DTYPES: dict[str, type[np.floating[Any]]] = {"F32": np.float32, "F64": np.float64}
_NAMES = {torch.float32: "F32", torch.float64: "F64"}
_UNUSABLE = (  # what headers of other kinds raise
    *(struct.error, ValueError, KeyError, TypeError, AttributeError),
    *(RecursionError, OverflowError, MemoryError, RuntimeError),
)
_UNKNOWN = "0" * 32  # stands for the checksum while there is none, and while one is computed
_BLOCK = 1 << 20  # bytes hashed at once, while they are in a core's cache


class TensorFile:
    """Named float tensors in one safetensors file.

    The file stays open: what is read belongs to it even if its name is given to another meanwhile.

    Attributes:
        path: the file.
        metadata: the header's string-to-string metadata.
        shapes: shape of every tensor by name, in file order.
    """

    def __init__(self, path: Path) -> None:
        """Open an existing file.

        Raises:
            WagleError: the file cannot be read, is truncated, or is no safetensors file of floats.
        """
        try:
            self._open(path, path.open("rb"))
        except OSError as error:
            raise WagleError(f"{path} cannot be read: {error.strerror}") from error

    @classmethod
    def writable(cls, path: Path) -> TensorFile:
        """Open a file that :meth:`create` has made, to write to it."""
        opened = cls.__new__(cls)
        opened._open(path, path.open("r+b"))  # noqa: SLF001, its own
        return opened

    def _open(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        size = os.fstat(file.fileno()).st_size
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            if not isinstance(self.metadata, dict):
                raise ValueError("its metadata is no object")
            self._data = 8 + length
            self.shapes: dict[str, torch.Size] = {}
            self._entries: dict[str, tuple[type[np.floating[Any]], int]] = {}
            end = self._data
            for name, entry in header.items():
                dtype, shape = _DTYPES[entry["dtype"]], torch.Size(entry["shape"])
                start, stop = entry["data_offsets"]
                length = math.prod(shape) * np.dtype(dtype).itemsize
                if min(shape, default=0) < 0 or (start, stop) != (end - self._data, start + length):
                    raise ValueError(f"{name} does not lie where it should")
                self.shapes[name], self._entries[name] = shape, (dtype, end)
                end += length
        except _UNUSABLE as error:
            raise WagleError(f"{path} is damaged or is no usable safetensors file") from error
        if size != end:
            raise WagleError(f"{path} is damaged: it has {size} bytes where {end} are expected")

    @classmethod
    def create(
        cls,
        path: Path,
        shapes: Mapping[str, torch.Size],
        dtype: torch.dtype,
        metadata: Mapping[str, str],
    ) -> TensorFile:
        """Make a file of zeros, to be filled and then sealed.

        Its disk space is taken at once where the system can do so: a mapped file that runs out of
        space later would end the process without a message.

        Raises:
            WagleError: the file cannot be made, for example for want of space.
        """
        header: dict[str, object] = {"__metadata__": {**metadata, "checksum": _UNKNOWN}}
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
        size = 8 + len(text) + offset
        try:
            with path.open("wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                file.truncate(size)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise WagleError(
                f"{path} cannot be written: {error.strerror}; {size / 2**30:.2f} GiB are needed"
            ) from error
        return cls.writable(path)

    def holds(self, dtype: torch.dtype) -> bool:
        """Whether every tensor is of this dtype."""
        return all(found is _DTYPES[_NAMES[dtype]] for found, _ in self._entries.values())

    def read(self, name: str) -> torch.Tensor:
        """The tensor, mapped from the file for as long as it is referenced; do not write to it."""
        return self._map(name, "c")

    def write(self, name: str, tensor: torch.Tensor, start: int = 0) -> None:
        """Store the elements of a tensor, from ``start`` of the flat one on.

        Raises:
            OSError: they cannot be written.
        """
        dtype, offset = self._entries[name]
        content = tensor.detach().to("cpu", getattr(torch, dtype.__name__)).reshape(-1).numpy()
        left, place = content.view(np.uint8).data, offset + start * content.itemsize
        while left:  # what the system takes at once is limited
            count = os.pwrite(self._file.fileno(), left, place)
            left, place = left[count:], place + count

    def mapped(self, name: str, part: range) -> torch.Tensor:
        """Elements of the flat tensor; what is written to them is written to the file."""
        return self._map(name, "r+").view(-1)[part.start : part.stop]

    def seal(self) -> None:
        """Give the finished file its checksum.

        Raises:
            WagleError: the file cannot be read or written.
        """
        try:
            checksum = self._checksum()
            self._file.seek(self._header().index(_UNKNOWN.encode()))
            self._file.write(checksum.encode())
            self._file.flush()
        except OSError as error:
            raise WagleError(f"{self.path} cannot be written: {error.strerror}") from error
        self.metadata["checksum"] = checksum

    def verify(self) -> None:
        """Read all of the file and compare its checksum.

        Raises:
            WagleError: the file is damaged or cannot be read.
        """
        try:
            whole = self._checksum() == self.metadata.get("checksum")
        except OSError as error:
            raise WagleError(f"{self.path} cannot be read: {error.strerror}") from error
        if not whole:
            raise WagleError(f"{self.path} is damaged: its checksum is wrong")

    def _header(self) -> bytes:
        self._file.seek(0)
        return self._file.read(self._data)

    def _checksum(self) -> str:
        """Covers every byte but the checksum's own."""
        known = self.metadata.get("checksum", _UNKNOWN)
        header = self._header().replace(known.encode(), _UNKNOWN.encode(), 1)
        descriptor = self._file.fileno()

        def of_block(start: int) -> bytes:
            return xxhash.xxh3_128_digest(os.pread(descriptor, _BLOCK, start))

        digest = xxhash.xxh3_128(header)
        blocks = range(self._data, os.fstat(descriptor).st_size, _BLOCK)
        with Progress(f"checking {self.path.name}", len(blocks), "MiB") as bar:
            for part in ordered_map(of_block, blocks):
                digest.update(part)
                bar.update()
        return digest.hexdigest()

    def _map(self, name: str, mode: Literal["c", "r+"]) -> torch.Tensor:
        dtype, offset = self._entries[name]
        shape = self.shapes[name]
        if math.prod(shape) == 0:
            return torch.from_numpy(np.empty(shape, dtype))
        array = np.memmap(self._file, dtype=dtype, mode=mode, offset=offset, shape=tuple(shape))
        return torch.from_numpy(array)


def cached_tensors(
    path: Path,
    fingerprint: str,
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    fill: Callable[[TensorFile], None],
    lock_timeout: float | None = None,
) -> TensorFile:
    """A file's tensors as they are stored, or, where they do not fit or are damaged, made anew.

    Says which. Of several runs that want the same file, one makes it and the others wait. All
    processes of a run fill it together; the first of them looks after the file.

    Args:
        path: final name of the file; it appears only complete.
        fingerprint: of everything that the tensors depend on.
        shapes, dtype: of the tensors.
        fill: writes the tensors, each process its part; what they leave out is zero.
        lock_timeout: seconds to wait for another process; ``None`` sets no limit.

    Raises:
        WagleError: the file cannot be made.
    """
    with ranks.first_in(lambda: locked(path, lock_timeout)):
        if ranks.first(lambda: _fits(path, fingerprint, shapes, dtype)):
            file = TensorFile(path)
        else:
            with filling(path, shapes, dtype, {"fingerprint": fingerprint}) as file:
                fill(file)
        if ranks.is_first():
            with suppress(OSError):
                unfinished(path).unlink()
        return file


@contextmanager
def filling(
    path: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype, metadata: Mapping[str, str]
) -> Iterator[TensorFile]:
    """A new file of zeros for all processes to write to; it has its name at the end of the block.

    Raises:
        WagleError: it cannot be made or written.
    """

    def create(part: Path) -> None:
        TensorFile.create(part, shapes, dtype, metadata)

    with ranks.first_in(lambda: replacing(path, durable=True)) as part:
        ranks.first(lambda: create(part))
        file = TensorFile.writable(part)
        file.path = path
        yield file
        ranks.everyone(None)  # each has written its part
        ranks.first(file.seal)


def unfinished(path: Path) -> Path:
    """Where ``fill`` may keep what it has made of a cached file so far; gone when that is there."""
    return path.with_name(f"{path.name}.unfinished")


def _fits(
    path: Path, fingerprint: str, shapes: Mapping[str, torch.Size], dtype: torch.dtype
) -> bool:
    """Whether the file can be used; says it, or why not."""
    if not path.is_file():
        return False
    try:
        file = TensorFile(path)
        if file.metadata.get("fingerprint") != fingerprint:
            say(f"{path} was made from another model, data or settings: making it anew")
            return False
        file.verify()
        if file.shapes != dict(shapes) or not file.holds(dtype):
            raise WagleError(f"{path} holds other tensors than it should")
    except WagleError as error:
        say(f"{error}: making it anew")
        return False
    say(f"using {path}")
    return True
