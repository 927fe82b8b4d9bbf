"""Mask files: the published one-byte-per-weight form and a packed one-bit-per-weight form.

* ``.pt``: a torch-saved dict from parameter name to a bool tensor of the parameter's shape, True
  where the weight is selected; Wanda masks as published are keyed 0, 1, 2, … over the linear layers
  of the decoder blocks instead. Never unpickled beyond plain tensors. Files written here also hold
  the provenance and a checksum, which ``torch.load`` passes over.
* ``.safetensors``: one uint8 tensor of packed bits per parameter; shapes, provenance and a checksum
  are in the header.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from wagle.errors import WagleError
from wagle.loggers.files import replacing
from wagle.loggers.safetensors_file import write_safetensors
from wagle.optim.bitmask import BitMask, Mask
from wagle.terminal import Progress

FORMAT = "wagle mask 1"
SUFFIXES = (".pt", ".safetensors")
_MOST_PROVENANCE = 1 << 20  # bytes
_BLOCK = 1 << 24  # weights or bytes that pass through memory at once
_UNREADABLE = (  # what zipfile and torch raise for damaged archives
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError),
    *(ValueError, KeyError, NotImplementedError, RuntimeError),
)


def save_mask(mask: Mask, path: Path, *, provenance: Mapping[str, str] | None = None) -> None:
    """Write a mask in the form that the file's suffix says; the file appears only complete.

    Args:
        provenance: how the mask was made; kept in the file.

    Raises:
        WagleError: the suffix is neither .pt nor .safetensors, or the file cannot be written.
    """
    _check_suffix(path)
    save = _save_published if path.suffix == ".pt" else _save_packed
    with replacing(path, durable=True) as part:
        save(mask, part, json.dumps(dict(provenance or {})))


def load_mask(
    path: Path,
    shapes: Mapping[str, torch.Size] | None = None,
    linear_names: Sequence[str] = (),
) -> Mask:
    """Read a mask of either form.

    Args:
        shapes: the model's parameters; the mask must have just these names and shapes. ``None``
            skips that check, and the numbers in a published Wanda mask stay names ("0", "1", …).
        linear_names: weights of the decoder blocks' linear layers in module order, for published
            Wanda masks; everything outside those layers is selected, as published.

    Raises:
        WagleError: the file is missing or damaged, holds something else, or does not fit the model.
    """
    _check_present(path)
    if path.suffix == ".pt":
        mask = _load_published(path, shapes, linear_names)
    else:
        mask = _load_packed(path)
    if shapes is not None:
        mask = _fitted(mask, shapes, path)
    return mask


def read_provenance(path: Path) -> dict[str, str]:
    """How a mask was made, as its file says; empty for files of other programs.

    Raises:
        WagleError: the file is missing or damaged, or is no mask.
    """
    _check_present(path)
    if path.suffix == ".safetensors":
        with _open_packed(path) as file:
            return _provenance(_packed_header(file, path)["provenance"], path)
    try:
        with zipfile.ZipFile(path) as archive:
            if _PROVENANCE not in archive.namelist():
                return {}
            if archive.getinfo(_PROVENANCE).file_size > _MOST_PROVENANCE:
                raise ValueError(f"its provenance is longer than {_MOST_PROVENANCE} bytes")
            text = archive.read(_PROVENANCE).decode("utf-8")
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    return _provenance(text, path)


def _damaged(path: Path, why: object) -> WagleError:
    return WagleError(f"{path} is damaged or no mask file: {why}")


def _json(text: str, what: str, path: Path) -> dict[str, Any]:
    """An object that a file holds as JSON."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its {what} cannot be read") from error
    if not isinstance(content, dict):
        raise _damaged(path, f"its {what} should be an object")
    return content


def _provenance(text: str, path: Path) -> dict[str, str]:
    if len(text) > _MOST_PROVENANCE:
        raise _damaged(path, f"its provenance is longer than {_MOST_PROVENANCE} bytes")
    content = _json(text, "provenance", path)
    if not all(isinstance(value, str) for value in content.values()):
        raise _damaged(path, "its provenance should hold texts")
    return content


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise WagleError(f"{path}: a mask file ends in {' or '.join(SUFFIXES)}")


def _check_present(path: Path) -> None:
    _check_suffix(path)
    if not path.is_file():
        raise WagleError(f"there is no mask file {path}")


# A torch-saved file is an archive of a pickle and a record per storage. torch.save wants all bool
# tensors in memory at once, half as much as a 16-bit model; here they pass through block by block.
_PROVENANCE = "mask/provenance.json"
_CHECKSUM = b"xxh3 "  # the archive's comment: this, and the checksum of all that is before it


@dataclass(frozen=True)
class _Storage:
    """Stands in the pickle for the bytes of record ``mask/data/{key}``."""

    key: str
    numel: int


@dataclass(frozen=True)
class _Tensor:
    """Stands in the pickle for a contiguous bool tensor."""

    storage: _Storage
    shape: torch.Size


class _Pickler(pickle.Pickler):
    """Describes tensors and storages as ``torch.save`` does."""

    def persistent_id(self, obj: object) -> tuple[str, type, str, str, int] | None:
        if isinstance(obj, _Storage):
            return ("storage", torch.BoolStorage, obj.key, "cpu", obj.numel)
        return None

    def reducer_override(self, obj: object) -> Any:
        if not isinstance(obj, _Tensor):
            return NotImplemented
        stride = torch.empty(obj.shape, device="meta").stride()
        hooks: OrderedDict[int, object] = OrderedDict()
        arguments = (obj.storage, 0, tuple(obj.shape), stride, False, hooks)
        return torch._utils._rebuild_tensor_v2, arguments  # noqa: SLF001, as in its own files


def _save_published(mask: Mask, path: Path, provenance: str) -> None:
    pickled = BytesIO()
    _Pickler(pickled, protocol=2).dump(
        {
            name: _Tensor(_Storage(str(index), bits.numel), bits.shape)
            for index, (name, bits) in enumerate(mask.items())
        }
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (
            ("mask/data.pkl", pickled.getvalue()),
            ("mask/byteorder", b"little"),
            ("mask/version", b"3\n"),
            (_PROVENANCE, provenance.encode()),
        ):
            archive.writestr(zipfile.ZipInfo(name), content)
        masks = Progress(f"writing {path.stem}", len(mask), "tensor").over(mask.values())
        for index, bits in enumerate(masks):
            entry = zipfile.ZipInfo(f"mask/data/{index}")  # carries no date: same mask, same file
            entry.file_size = bits.numel
            with archive.open(entry, "w") as record:
                for start in range(0, bits.numel, _BLOCK):
                    record.write(bits.flat(start, start + _BLOCK).cpu().numpy().data)
        archive.comment = _CHECKSUM + b"0" * 32
    with path.open("r+b") as file:
        size = path.stat().st_size - 32
        checksum = _hash(file, size)
        file.seek(size)
        file.write(checksum)


def _save_packed(mask: Mask, path: Path, provenance: str) -> None:
    tensors = {name: bits.bits.cpu() for name, bits in mask.items()}
    shapes = json.dumps({name: list(bits.shape) for name, bits in mask.items()})
    header = {"format": FORMAT, "shapes": shapes, "provenance": provenance}
    checksum = _checksum(tensors, shapes, provenance)
    write_safetensors(path, tensors, {**header, "checksum": checksum})


def _load_published(
    path: Path, shapes: Mapping[str, torch.Size] | None, linear_names: Sequence[str]
) -> Mask:
    try:
        _verify(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise WagleError(
            f"{path} holds more than plain tensors and was not loaded, since unpickling can run "
            "arbitrary code; a mask file is a dict of bool tensors"
        ) from error
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict) or not content:
        raise WagleError(f"{path} is no mask: expected a dict of bool tensors")
    outside = {}
    if all(isinstance(key, int) for key in content):
        if shapes is None:
            content = {str(key): content[key] for key in sorted(content)}
        else:
            content = _wanda_names(content, linear_names, path)
            missing = {name: shape for name, shape in shapes.items() if name not in content}
            outside = {name: BitMask.full(shape, True) for name, shape in missing.items()}
    mask = {}
    for name, tensor in content.items():
        if not isinstance(name, str):
            raise WagleError(f"{path} is no mask: {name!r} is not the name of a parameter")
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.bool:
            found = getattr(tensor, "dtype", type(tensor).__name__)
            raise WagleError(f"{path}: the entry {name!r} should be a bool tensor, found {found}")
        mask[name] = BitMask.from_bool(tensor)
    return {**mask, **outside}


def _verify(path: Path) -> None:
    """Read all of an archive and compare its checksums, which torch does not."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        if archive.comment:
            if archive.comment != _CHECKSUM + _hash(file, path.stat().st_size - 32):
                raise ValueError("its checksum is wrong")
            return
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("it is compressed, as torch saves nothing")
        for record in archive.infolist():  # another program's file: each record has a CRC
            with archive.open(record) as content:
                while content.read(_BLOCK):
                    pass


def _hash(file: BinaryIO, size: int) -> bytes:
    """Checksum, in hexadecimal, of the first ``size`` bytes."""
    digest = xxhash.xxh3_128()
    name = Path(file.name).name
    with Progress(f"checking {name}", size, "B", scale=True) as bar:
        for start in range(0, size, _BLOCK):
            digest.update(file.read(min(_BLOCK, size - start)))
            bar.update(min(_BLOCK, size - start))
    return digest.hexdigest().encode()


def _wanda_names(
    content: Mapping[int, torch.Tensor], linear_names: Sequence[str], path: Path
) -> dict[str, torch.Tensor]:
    if sorted(content) != list(range(len(linear_names))):
        raise WagleError(
            f"{path} numbers {len(content)} layers (a published Wanda mask), but the model has "
            f"{len(linear_names)} linear layers in its decoder blocks"
        )
    return {name: content[index] for index, name in enumerate(linear_names)}


def _load_packed(path: Path) -> Mask:
    with _open_packed(path) as file:
        header = _packed_header(file, path)
        try:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    shapes = _json(header["shapes"], "table of shapes", path)
    if shapes.keys() != tensors.keys():
        raise _damaged(path, "its tensors are not those of its table of shapes")
    if _checksum(tensors, header["shapes"], header["provenance"]) != header["checksum"]:
        raise _damaged(path, "its checksum is wrong")
    return {name: _bit_mask(name, tensors[name], shape, path) for name, shape in shapes.items()}


def _bit_mask(name: str, bits: torch.Tensor, shape: Any, path: Path) -> BitMask:
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise _damaged(path, f"the shape of {name} is {str(shape)[:80]}")
    try:
        mask = BitMask(bits, shape)
    except (ValueError, OverflowError, RuntimeError) as error:
        raise _damaged(path, f"{name}: {error}") from error
    if mask.numel % 8 and int(bits[-1]) >> mask.numel % 8:
        raise _damaged(path, f"{name} has bits set behind its last weight")
    return mask


def _open_packed(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _packed_header(file: safe_open, path: Path) -> dict[str, str]:
    header: dict[str, str] = file.metadata() or {}  # type: ignore[no-untyped-call]  # no stub
    if header.get("format") != FORMAT:
        found = f", its format is {header['format']!r}" if "format" in header else ""
        raise WagleError(f"{path} is a safetensors file but no mask of this program{found}")
    if not {"shapes", "provenance", "checksum"} <= set(header):
        raise _damaged(path, "its header is incomplete")
    return header


def _checksum(tensors: Mapping[str, torch.Tensor], shapes: str, provenance: str) -> str:
    """Covers the bits, their names, and what the header says about them."""
    digest = xxhash.xxh3_128()
    digest.update(f"{shapes}\n{provenance}".encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()


def _fitted(mask: Mask, shapes: Mapping[str, torch.Size], path: Path) -> Mask:
    """The mask in the order of ``shapes``, after checking names and shapes."""
    mask = _without_tied_head(mask, shapes, path)
    missing = [name for name in shapes if name not in mask]
    unexpected = [name for name in mask if name not in shapes]
    wrong = [
        f"{name} is {tuple(mask[name].shape)}, the model's is {tuple(shape)}"
        for name, shape in shapes.items()
        if name in mask and mask[name].shape != shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for what, names in (
            ("parameters of the model are missing", missing),
            ("entries are no parameters of the model", unexpected),
            ("shapes differ", wrong),
        )
        if names
    ]
    if problems:
        raise WagleError(f"the mask {path} does not fit the model; " + "; ".join(problems))
    return {name: mask[name] for name in shapes}


def _without_tied_head(mask: Mask, shapes: Mapping[str, torch.Size], path: Path) -> Mask:
    """Drop a head that the model ties to its embedding, if both have the same mask."""
    head = "lm_head.weight"
    if head not in mask or head in shapes:
        return mask
    twins = [n for n, m in mask.items() if n != head and n in shapes and m == mask[head]]
    if not twins:
        raise WagleError(
            f"the mask {path} has an own {head}, which the model ties to its embedding, and their "
            "masks differ"
        )
    return {name: bits for name, bits in mask.items() if name != head}
