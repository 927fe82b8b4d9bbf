"""What a request has changed of a model, as a file: put in and taken out again bit for bit.

A masked run changes ρN weights and nothing else. For these a delta holds the positions, packed, and
the exclusive or of the bits before and after: the same operation leads from the one to the other
and back. Of the weights 1.0, 2.0 (``3f800000 40000000``) of which the second became 3.0
(``40400000``), it holds the bit mask 10 and ``00400000``.

Requests whose weights are disjoint can be put in and taken out in any order. Where they share
weights, what a delta finds there must be what it was made from, or nothing is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from wagle.errors import WagleError
from wagle.loggers.files import replacing
from wagle.loggers.safetensors_file import write_safetensors
from wagle.model.stored_weights import StoredWeights
from wagle.optim.bitmask import BitMask, Mask, pack_bits
from wagle.terminal import Progress
from wagle.unlearn.mask.certificate import Bits

FORMAT = "wagle delta 1"
_CHUNK = 1 << 22  # weights that pass through memory at once, a multiple of 8
_XOR, _POSITIONS = "xor:", "positions:"


@dataclass(frozen=True)
class Delta:
    """The changed weights of a model.

    Attributes:
        changed: which, in the tensors that have any, under their names in the files.
        xor: bits before ^ bits after of the changed weights, by tensor, integers ``(changed,)`` of
            the elements' size.
        before, after: SHA-256 of the changed weights (:func:`changed_digest`).
        about: where it comes from, in words.
    """

    changed: Mask
    xor: Mapping[str, torch.Tensor]
    before: str
    after: str
    about: Mapping[str, str]

    @property
    def count(self) -> int:
        """How many weights it changes."""
        return sum(len(part) for part in self.xor.values())


class Frozen(NamedTuple):
    """A tensor in which weights have changed that may not.

    Attributes:
        changed: how many such weights.
    """

    name: str
    changed: int


def check_alike(before: StoredWeights, after: StoredWeights) -> None:
    """Make sure that two folders hold tensors of the same names, shapes and dtypes.

    Raises:
        WagleError: they do not; the message names some.
    """
    kinds = [{n: (t.shape, t.dtype) for n, t in w.tensors.items()} for w in (before, after)]
    first, second = kinds
    odd = sorted(
        name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
    )
    if odd:
        name = odd[0]
        found = [
            f"{tuple(kind[name][0])} {str(kind[name][1]).removeprefix('torch.')}"
            if name in kind
            else "not there"
            for kind in kinds
        ]
        raise WagleError(
            f"{before.folder} and {after.folder} are not of one form: {len(odd)} tensors differ, "
            f"such as {name}: {found[0]} and {found[1]}"
        )


def changed_outside(before: StoredWeights, after: StoredWeights, mask: Mask) -> Iterator[Frozen]:
    """The tensors in which weights differ that a mask leaves out, or does not know.

    Raises:
        WagleError: the folders, or the mask, are not of one model.
    """
    check_alike(before, after)
    check_mask(mask, before)
    names = Progress("comparing", len(before.tensors), "tensor").over(before.tensors)
    for name in names:
        count = 0
        for start, differs, _ in _differences(before, after, name):
            if name in mask:
                differs.logical_and_(~mask[name].flat(start, start + len(differs)))
            count += int(differs.count_nonzero())
        if count:
            yield Frozen(name, count)


def make_delta(
    before: StoredWeights, after: StoredWeights, mask: Mask | None, about: Mapping[str, str]
) -> Delta:
    """What leads from one model to the other.

    Args:
        mask: the weights that may have changed; ``None``: all.

    Raises:
        WagleError: the folders, or the mask, are not of one model; a weight has changed that may
            not; nothing has changed.
    """
    if mask is not None and (outside := list(changed_outside(before, after, mask))):
        raise WagleError(
            f"{sum(t.changed for t in outside):,} weights that the mask leaves out differ between "
            f"{before.folder} and {after.folder}, the first in {outside[0].name}: it is another "
            "run's mask, or the run let them decay (unlearn.mask_enforcement gradient)"
        )
    check_alike(before, after)
    changed, xor = {}, {}
    names = Progress("comparing", len(before.tensors), "tensor").over(before.tensors)
    for name in names:
        bits, values = [], []
        for _, differs, difference in _differences(before, after, name):
            bits.append(pack_bits(differs))
            values.append(difference[differs])
        if sum(map(len, values)):
            changed[name] = BitMask(torch.cat(bits), before.tensors[name].shape)
            xor[name] = torch.cat(values)
    if not changed:
        raise WagleError(f"{before.folder} and {after.folder} hold the same weights")
    first, second = (changed_digest(weights.bits, changed) for weights in (before, after))
    return Delta(changed, xor, first, second, about)


def check_mask(mask: Mask, weights: StoredWeights) -> None:
    """Make sure that a mask names tensors of a model.

    Raises:
        WagleError: it names others, or of other shapes.
    """
    for name, bits in mask.items():
        stored = weights.tensors.get(name)
        if stored is None or stored.shape != bits.shape:
            found = f"is {tuple(stored.shape)} there" if stored else "is not there"
            raise WagleError(
                f"{weights.folder} is not the model of the mask: {name}, {tuple(bits.shape)}, "
                f"{found}"
            )


def _differences(
    before: StoredWeights, after: StoredWeights, name: str
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(start, which elements differ, exclusive or of the bits) of each chunk of a tensor."""
    first, second = before.bits(name), after.bits(name)
    for start in range(0, len(first), _CHUNK):
        part = slice(start, start + _CHUNK)
        difference = first[part] ^ second[part]
        yield start, difference != 0, difference


def changed_digest(bits: Bits, changed: Mask) -> str:
    """SHA-256, in hex, of the names and, in row-major order, the bits of some weights."""
    digest = hashlib.sha256()
    for name in sorted(changed):
        digest.update(f"{name}\n".encode())
        flat = bits(name)
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK]
            chosen = changed[name].flat(start, start + len(part)).to(flat.device)
            digest.update(part[chosen].cpu().numpy().data)
    return digest.hexdigest()


def apply_delta(delta: Delta, bits: Bits, *, revert: bool = False) -> None:
    """Put a delta into a model, or take it out again; no other weight is written.

    Args:
        bits: gives the weights of a model, to be changed in place: ``StoredWeights.writable`` of
            one in files, :func:`wagle.unlearn.mask.certificate.model_bits` of one in memory.

    Raises:
        WagleError: the weights that it changes are not as it wants them. Nothing is changed then.
    """
    wanted = {name: (part.dtype, delta.changed[name].numel) for name, part in delta.xor.items()}
    try:
        alike = all((bits(n).dtype, len(bits(n))) == form for n, form in wanted.items())
    except KeyError as error:
        raise WagleError(f"{_named(delta)} is of another model: {error} is not there") from error
    start = delta.after if revert else delta.before
    if not alike or changed_digest(bits, delta.changed) != start:
        verb, when = ("taken out", "after") if revert else ("put in", "before")
        later = "; take out first what was put in later" if revert else ""
        raise WagleError(
            f"{_named(delta)} cannot be {verb}: the {delta.count:,} weights that it changes are "
            f"not what they were {when} its request{later}"
        )
    for name in Progress("writing", len(delta.xor), "tensor").over(delta.xor):
        flat, done, xor = bits(name), 0, delta.xor[name]
        for first in range(0, len(flat), _CHUNK):
            part = flat[first : first + _CHUNK]
            chosen = delta.changed[name].flat(first, first + len(part))
            stop = done + int(chosen.count_nonzero())
            part[chosen.to(flat.device)] ^= xor[done:stop].to(flat.device)
            done = stop


def shared(first: Delta, second: Delta) -> int:
    """How many weights two deltas both change."""
    return sum(
        BitMask(bits.bits & second.changed[name].bits, bits.shape).count()
        for name, bits in first.changed.items()
        if name in second.changed
    )


def _named(delta: Delta) -> str:
    return f"the delta {delta.about.get('path', 'of ' + delta.about.get('after', 'a request'))}"


def save_delta(delta: Delta, path: Path) -> None:
    """Write a delta; the file appears only complete.

    Raises:
        WagleError: it cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, bits in delta.changed.items():
        tensors[_POSITIONS + name] = bits.bits
        tensors[_XOR + name] = delta.xor[name]
    header = {
        "format": FORMAT,
        "shapes": json.dumps({name: list(bits.shape) for name, bits in delta.changed.items()}),
        "before": delta.before,
        "after": delta.after,
        "about": json.dumps(dict(delta.about)),
    }
    with replacing(path, durable=True) as part:
        write_safetensors(part, tensors, {**header, "checksum": _checksum(header, tensors)})


def load_delta(path: Path) -> Delta:
    """Read a delta.

    Raises:
        WagleError: the file is missing or damaged, or holds something else.
    """
    if not path.is_file():
        raise WagleError(f"there is no delta {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise WagleError(f"{path} is no delta of this program")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = header.pop("checksum")
        if checksum != _checksum(header, tensors):
            raise WagleError(f"{path} is damaged: its checksum is wrong")
        shapes, about = json.loads(header["shapes"]), json.loads(header["about"])
        changed = {n: BitMask(tensors[_POSITIONS + n], shape) for n, shape in shapes.items()}
        xor = {name: tensors[_XOR + name] for name in shapes}
        return Delta(changed, xor, header["before"], header["after"], {**about, "path": str(path)})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WagleError(f"{path} is damaged or no delta: {error}") from error


def _checksum(header: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    digest = xxhash.xxh3_128(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
