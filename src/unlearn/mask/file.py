"""Mask files: the published one-byte-per-weight form and a packed one-bit-per-weight form.

* ``.pt``: a torch-saved dict from parameter name to a bool tensor of the parameter's shape, True
  where the weight is selected; Wanda masks as published are keyed 0, 1, 2, … over the linear layers
  of the decoder blocks instead. Never unpickled beyond plain tensors.
* ``.safetensors``: one uint8 tensor of packed bits per parameter; shapes, provenance and a checksum
  are in the header.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from src.errors import WagleError
from src.optim.bitmask import BitMask, Mask

FORMAT = "wagle mask 1"
_UNREADABLE = (  # what zipfile and torch raise for damaged archives
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError),
    *(ValueError, KeyError, NotImplementedError, RuntimeError),
)


def save_mask(mask: Mask, path: Path, *, provenance: Mapping[str, str] | None = None) -> None:
    """Write a mask in the form that the file's suffix says; the file appears only complete.

    Args:
        provenance: how the mask was made; kept in the packed form's header.

    Raises:
        WagleError: the suffix is neither .pt nor .safetensors.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        if path.suffix == ".pt":
            torch.save({name: bits.to_bool().cpu() for name, bits in mask.items()}, partial)
        elif path.suffix == ".safetensors":
            tensors = {name: bits.bits.cpu() for name, bits in mask.items()}
            shapes = json.dumps({name: list(bits.shape) for name, bits in mask.items()})
            origin = json.dumps(dict(provenance or {}))
            checksum = _checksum(tensors, shapes, origin)
            header = {"format": FORMAT, "shapes": shapes, "provenance": origin}
            save_file(tensors, partial, {**header, "checksum": checksum})
        else:
            raise WagleError(f"{path}: a mask file ends in .pt or .safetensors")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_mask(
    path: Path,
    shapes: Mapping[str, torch.Size] | None = None,
    linear_names: Sequence[str] = (),
) -> Mask:
    """Read a mask of either form.

    Args:
        shapes: the model's parameters; the mask must have just these names and shapes. ``None``
            skips that check.
        linear_names: weights of the decoder blocks' linear layers in module order, for published
            Wanda masks; everything outside those layers is selected, as published.

    Raises:
        WagleError: the file is damaged, holds something else, or does not fit the model.
    """
    if path.suffix == ".pt":
        mask = _load_published(path, shapes, linear_names)
    elif path.suffix == ".safetensors":
        mask = _load_packed(path)
    else:
        raise WagleError(f"{path}: a mask file ends in .pt or .safetensors")
    if shapes is not None:
        mask = _fitted(mask, shapes, path)
    return mask


def read_provenance(path: Path) -> dict[str, str]:
    """How a packed mask was made; empty for the published form, which does not say."""
    if path.suffix != ".safetensors":
        return {}
    with _open_packed(path) as file:
        return json.loads(_packed_header(file, path)["provenance"])


def _load_published(
    path: Path, shapes: Mapping[str, torch.Size] | None, linear_names: Sequence[str]
) -> Mask:
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not check the CRCs
            damaged = archive.testzip()
        if damaged is not None:
            raise WagleError(f"{path} is damaged: the checksum of {damaged} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise WagleError(
            f"{path} holds more than plain tensors and was not loaded, since unpickling can run "
            "arbitrary code; a mask file is a dict of bool tensors"
        ) from error
    except _UNREADABLE as error:
        raise WagleError(f"{path} is damaged or is no torch-saved file: {error}") from error
    if not isinstance(content, dict) or not content:
        raise WagleError(f"{path} is no mask: expected a dict of bool tensors")
    if all(isinstance(key, int) for key in content):
        content = _wanda_names(content, linear_names, path)
        missing = {} if shapes is None else {n: s for n, s in shapes.items() if n not in content}
        outside = {name: BitMask.full(shape, True) for name, shape in missing.items()}
    else:
        outside = {}
    mask = {}
    for name, tensor in content.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.bool:
            found = getattr(tensor, "dtype", type(tensor).__name__)
            raise WagleError(f"{path}: the entry {name!r} should be a bool tensor, found {found}")
        mask[name] = BitMask.from_bool(tensor)
    return {**mask, **outside}


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
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _checksum(tensors, header["shapes"], header["provenance"]) != header["checksum"]:
        raise WagleError(f"{path} is damaged: its checksum is wrong")
    shapes = json.loads(header["shapes"])
    return {name: BitMask(tensors[name], shape) for name, shape in shapes.items()}


def _open_packed(path: Path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WagleError(f"{path} is damaged or is no safetensors file: {error}") from error


def _packed_header(file, path: Path) -> dict[str, str]:
    header = file.metadata() or {}
    if header.get("format") != FORMAT:
        raise WagleError(f"{path} is a safetensors file but no mask of this program")
    if not {"shapes", "provenance", "checksum"} <= set(header):
        raise WagleError(f"{path} is damaged: its header is incomplete")
    return header


def _checksum(tensors: Mapping[str, torch.Tensor], shapes: str, provenance: str) -> str:
    """Covers the bits, their names, and what the header says about them."""
    digest = xxhash.xxh3_128()
    digest.update(f"{shapes}\n{provenance}".encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy())
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
