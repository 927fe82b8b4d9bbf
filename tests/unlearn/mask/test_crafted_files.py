"""Mask files and caches that were made to do harm, or come from elsewhere: one message each."""

from __future__ import annotations

import json
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from wagle.errors import WagleError
from wagle.optim.bitmask import BitMask
from wagle.unlearn.mask import file as mask_file
from wagle.unlearn.mask.file import load_mask, read_provenance, save_mask
from wagle.unlearn.mask.tensor_file import cached_tensors

GOOD = {"shapes": '{"w": [3]}', "provenance": "{}"}
DEEP = "[" * 100_000 + "]" * 100_000


def packed(path, header, bits=(7,), names=("w",), checksum=None):
    """A file with a right checksum, whatever else it says."""
    tensors = {name: torch.tensor(bits, dtype=torch.uint8) for name in names}
    right = mask_file._checksum(tensors, header["shapes"], header["provenance"])
    metadata = {"format": mask_file.FORMAT, "checksum": checksum or right, **header}
    save_file(tensors, path, metadata)


HEADERS = {
    "bits behind the last weight": ({}, (255,)),
    "strings for a shape": ({"shapes": '{"w": ["3"]}'}, (7,)),
    "null for a shape": ({"shapes": '{"w": null}'}, (7,)),
    "null within a shape": ({"shapes": '{"w": [null]}'}, (7,)),
    "floats for a shape": ({"shapes": '{"w": [3.0]}'}, (7,)),
    "true for a shape": ({"shapes": '{"w": [true]}'}, (1,)),
    "a negative shape": ({"shapes": '{"w": [-3]}'}, (7,)),
    "two negative numbers": ({"shapes": '{"w": [-1, -3]}'}, (7,)),
    "a huge shape": ({"shapes": '{"w": [99999999999999999999999]}'}, (7,)),
    "too large a shape": ({"shapes": '{"w": [300]}'}, (7,)),
    "a list of shapes": ({"shapes": '[["w", [3]]]'}, (7,)),
    "shapes that are no JSON": ({"shapes": "{w: 3}"}, (7,)),
    "shapes nested deeply": ({"shapes": '{"w": ' + DEEP + "}"}, (7,)),
    "another name": ({"shapes": '{"v": [3]}'}, (7,)),
    "a name more": ({"shapes": '{"w": [3], "v": [3]}'}, (7,)),
    "no names": ({"shapes": "{}"}, (7,)),
}


@pytest.mark.parametrize("case", HEADERS)
def test_damaged_headers_of_masks_are_refused(tmp_path, case):
    changes, bits = HEADERS[case]
    path = tmp_path / "x_0.8.safetensors"
    packed(path, GOOD | changes, bits)
    with pytest.raises(WagleError, match="is damaged or no mask file: "):
        load_mask(path)


def test_the_same_header_undamaged_is_read(tmp_path):
    packed(tmp_path / "x_0.8.safetensors", GOOD)
    assert load_mask(tmp_path / "x_0.8.safetensors") == {"w": BitMask.full((3,), True)}


PROVENANCES = {
    "a list": "[1]",
    "a number": "1",
    "no JSON": "{",
    "nested deeply": DEEP,
    "numbers within": '{"mu": 1}',
    "too long": '{"a": "' + "x" * (1 << 21) + '"}',
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("case", PROVENANCES)
def test_provenance_that_is_none_is_refused(tmp_path, case, suffix):
    path = tmp_path / f"x_0.8{suffix}"
    if suffix == ".pt":
        save_mask({"w": BitMask.full((3,), True)}, path)
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "new.pt", "w") as new:
            for record in old.infolist():
                content = old.read(record)
                mine = record.filename == mask_file._PROVENANCE
                new.writestr(record.filename, PROVENANCES[case] if mine else content)
        (tmp_path / "new.pt").replace(path)
    else:
        packed(path, GOOD | {"provenance": PROVENANCES[case]})
    with pytest.raises(WagleError, match="is damaged or no mask file: its provenance"):
        read_provenance(path)


def test_compressed_archives_are_refused_unread(tmp_path):
    """A few kilobytes that would become a gigabyte."""
    path = tmp_path / "x_0.8.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("mask/data/0", "w") as record:
            for _ in range(64):
                record.write(bytes(1 << 20))
        archive.writestr(mask_file._PROVENANCE, " " * (1 << 22))
    with pytest.raises(WagleError, match="it is compressed"):
        load_mask(path)
    with pytest.raises(WagleError, match="its provenance is longer than"):
        read_provenance(path)


# --------------------------------------------------------------------------------------- caches


SHAPES = {"a": torch.Size([2, 3]), "b": torch.Size([4])}


def make_cache(path, capsys):
    def fill(file):
        for index, name in enumerate(SHAPES, start=1):
            file.write(name, torch.full(SHAPES[name], float(index)))

    file = cached_tensors(path, "of this", SHAPES, torch.float32, fill)
    return {name: file.read(name).clone() for name in SHAPES}, capsys.readouterr().out


def rewrite(path, change, shuffle=None):
    """Change the header of a cache and make its checksum right again."""
    import xxhash

    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    change(header)
    header["__metadata__"]["checksum"] = "0" * 32
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = struct.pack("<Q", len(text)) + text
    digest = xxhash.xxh3_128(start)
    if data:
        digest.update(xxhash.xxh3_128_digest(data))
    path.write_bytes(start.replace(b"0" * 32, digest.hexdigest().encode(), 1) + data)


def exchange(header):
    header["a"], header["b"] = header["b"], header["a"]


CHANGES = {
    "another dtype": lambda h: h["a"].update(dtype="F64"),
    "an unknown dtype": lambda h: h["a"].update(dtype="Q7"),
    "no shape": lambda h: h["a"].update(shape=[]),
    "another shape": lambda h: h["a"].update(shape=[3, 2]),
    "a negative shape": lambda h: h["a"].update(shape=[-2, -3]),
    "a shape of texts": lambda h: h["a"].update(shape=["2", "3"]),
    "overlapping offsets": lambda h: h["b"].update(data_offsets=[0, 16]),
    "offsets of texts": lambda h: h["b"].update(data_offsets=["24", "40"]),
    "one offset": lambda h: h["b"].update(data_offsets=[24]),
    "a tensor less": lambda h: h.pop("b"),
    "another name": lambda h: h.update(c=h.pop("b")),
    "exchanged tensors": exchange,
    "an entry that is a list": lambda h: h.update(a=[1]),
    "a number for metadata": lambda h: h["__metadata__"].update(fingerprint=1),
}


@pytest.mark.parametrize("case", CHANGES)
def test_caches_that_do_not_fit_are_made_anew(tmp_path, case, capsys):
    path = tmp_path / "m.forget_gradients.safetensors"
    right, _ = make_cache(path, capsys)
    rewrite(path, CHANGES[case])
    again, said = make_cache(path, capsys)
    assert "making it anew" in said
    assert all(torch.equal(again[name], right[name]) for name in SHAPES)


def test_an_unchanged_cache_is_used(tmp_path, capsys):
    path = tmp_path / "m.forget_gradients.safetensors"
    make_cache(path, capsys)
    rewrite(path, lambda header: None)
    assert "making it anew" not in make_cache(path, capsys)[1]


@pytest.mark.parametrize("metadata", [None, [1], "text", {"fingerprint": "of this"}])
def test_metadata_of_another_kind_is_no_use(tmp_path, capsys, metadata):
    path = tmp_path / "m.forget_gradients.safetensors"
    make_cache(path, capsys)
    text = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    assert "making it anew" in make_cache(path, capsys)[1]
