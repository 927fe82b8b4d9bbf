"""The cache of gradient sums: whole or not there, and never used when it does not fit."""

from __future__ import annotations

import errno
import json
import os
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from wagle.errors import WagleError
from wagle.unlearn.mask import tensor_file
from wagle.unlearn.mask.tensor_file import TensorFile, cached_tensors

SHAPES = {"a": torch.Size((3, 4)), "empty": torch.Size((0, 2)), "b": torch.Size(())}
VALUES = {"a": torch.arange(12.0).view(3, 4), "empty": torch.empty(0, 2), "b": torch.tensor(2.5)}


def fill(file: TensorFile) -> None:
    for name, tensor in VALUES.items():
        file.write(name, tensor)


def cached(path, fingerprint="right", fill=fill, dtype=torch.float32) -> TensorFile:
    return cached_tensors(path, fingerprint, SHAPES, dtype, fill)


def never(file: TensorFile) -> None:
    raise AssertionError("the cache should have been used")


@pytest.fixture
def path(tmp_path):
    """A file in the cache."""
    path = tmp_path / "cache.safetensors"
    cached(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_are_ordinary_safetensors(tmp_path, dtype):
    path = tmp_path / "cache.safetensors"
    file = cached(path, dtype=dtype)
    again = cached(path, dtype=dtype, fill=never)
    loaded = load_file(path)
    assert file.shapes == again.shapes == SHAPES
    for name, tensor in VALUES.items():
        for found in (file.read(name), again.read(name), loaded[name]):
            assert found.dtype == dtype
            assert torch.equal(found, tensor.to(dtype))


def test_tensors_can_be_added_to_and_start_at_zero(tmp_path):
    def twice(file):
        for _ in range(2):
            file.mapped("a", range(12)).add_(VALUES["a"].flatten().bfloat16())

    file = cached(tmp_path / "cache.safetensors", fill=twice)
    assert torch.equal(file.read("a"), 2 * VALUES["a"])
    assert file.read("b") == 0


def test_another_fingerprint_is_made_anew_with_a_message(path, capsys):
    before = TensorFile(path)
    after = cached(path, "other", fill=lambda file: file.write("b", torch.tensor(-1.0)))
    assert "another model, data or settings: making it anew" in capsys.readouterr().out
    assert after.read("b") == TensorFile(path).read("b") == -1
    assert before.read("b") == 2.5  # whoever still reads the old file reads all of it


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), truncate=st.booleans())
def test_a_damaged_file_is_never_used(tmp_path, capsys, place, bit, truncate):
    path = tmp_path / "cache.safetensors"
    path.unlink(missing_ok=True)
    cached(path)
    content = bytearray(path.read_bytes())
    position = int(place * len(content))
    content[position] ^= 1 << bit
    path.write_bytes(content[:position] if truncate else content)
    capsys.readouterr()
    file = cached(path)
    assert "making it anew" in capsys.readouterr().out
    assert all(torch.equal(file.read(name), tensor) for name, tensor in VALUES.items())


def test_a_failure_leaves_what_was_there(path):
    def interrupt(file):
        fill(file)
        raise KeyboardInterrupt

    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        cached(path, "other", fill=interrupt)
    assert path.read_bytes() == before
    assert [p for p in path.parent.iterdir() if p.suffix != ".lock"] == [path]
    cached(path, fill=never)


def test_a_full_disk_is_noticed_before_anything_is_computed(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_space, raising=False)
    with pytest.raises(WagleError, match=r"cannot be written: No space left.*GiB are needed"):
        cached(tmp_path / "cache.safetensors", fill=never)
    assert [p for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


def test_a_disk_that_cannot_be_read_is_no_crash(path, monkeypatch, capsys):
    def broken(self):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(TensorFile, "_checksum", broken)
        assert not tensor_file._fits(path, "right", {}, torch.float32)
    assert "Input/output error: making it anew" in capsys.readouterr().out


def test_one_makes_and_the_others_wait(tmp_path, capsys):
    path = tmp_path / "cache.safetensors"
    started, go_on, made, found = threading.Event(), threading.Event(), [], []

    def slowly(file):
        made.append(file)
        started.set()
        assert go_on.wait(10)
        fill(file)

    def get():
        found.append(cached(path, fill=slowly).read("a").clone())

    threads = [threading.Thread(target=get) for _ in range(3)]
    threads[0].start()
    assert started.wait(10)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert len(found) == 3
    assert all(torch.equal(each, VALUES["a"]) for each in found)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", (4).to_bytes(8, "little")],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "cache.safetensors"
    path.write_bytes(content)
    with pytest.raises(WagleError, match="damaged"):
        TensorFile(path)


def test_files_of_other_dtypes_are_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "cache.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(WagleError, match="damaged or is no usable"):
        TensorFile(path)
    with pytest.raises(WagleError, match="cannot be read"):
        TensorFile(tmp_path / "missing")
