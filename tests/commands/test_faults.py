"""Disks that are full, refuse to rename, or lose what is on them, in the middle of a run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from wagle.commands import unlearn
from wagle.errors import WagleError
from wagle.loggers import files
from wagle.loggers.json_logger import JsonLogger
from wagle.model.unlearn import Unlearn
from wagle.pace import Pace

QUICK = {
    "unlearn.task_name": "none",
    "unlearn.max_steps": 4,
    "unlearn.save_steps": 1,
    "unlearn.mask_path": "mask/tiny_0.4.pt",
}
resource = pytest.importorskip("resource", reason="limits of the size of files: POSIX only")


@pytest.fixture
def limited():
    """A function that forbids files of more than so many bytes, or of none."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def made(folder: Path) -> dict[str, bytes]:
    """What a run has made, but for what says when."""
    paths = [*folder.glob("mask/*.pt"), *folder.glob("runs/a/checkpoints/*.safetensors")]
    paths += folder.glob("runs/a/results.json")
    return {path.name: path.read_bytes() for path in paths}


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".partial" in path.name]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A function that runs a command undisturbed, once, and gives what it makes."""
    found = {}

    def run(options, tmp_path):
        if not found:
            unlearn.main(options(QUICK))
            found.update(made(tmp_path))
            shutil.rmtree(tmp_path / "runs")
            shutil.rmtree(tmp_path / "mask")
        assert len(found) == 3
        return found

    return run


def test_a_run_that_a_full_disk_has_ended_goes_on_when_there_is_room(
    tmp_path, options, straight, limited, capsys
):
    """First the sums of gradients do not fit, then neither checkpoints nor the model."""
    expected, command = straight(options, tmp_path), options(QUICK)
    limited(20_000)
    with pytest.raises(WagleError, match=r"gradients\.safetensors.*cannot be written"):
        unlearn.main(command)
    assert parts(tmp_path) == []
    assert made(tmp_path) == {}
    limited(None)
    with pytest.MonkeyPatch.context() as patched:
        prepare = Unlearn.prepare_mask

        def then_full(self):
            prepare(self)
            limited(20_000)

        patched.setattr(Unlearn, "prepare_mask", then_full)
        with pytest.raises(WagleError, match=r"checkpoints cannot be written: .*"):
            unlearn.main(command)
    limited(None)
    assert "no checkpoint after step 3" in capsys.readouterr().out
    assert parts(tmp_path) == []
    assert list(made(tmp_path)) == ["tiny_0.4.pt"]
    assert unlearn.main(command) == 0
    assert made(tmp_path) == expected


def test_where_nothing_can_be_renamed_over_a_run_ends_all_the_same(
    tmp_path, options, straight, monkeypatch
):
    expected = straight(options, tmp_path)
    replace = os.replace

    def refusing(source, target):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    monkeypatch.setattr(Pace, "due", lambda self: True)
    assert unlearn.main(options(QUICK)) == 0
    assert made(tmp_path) == expected
    assert parts(tmp_path) == []


def test_what_vanishes_while_it_is_used_is_not_missed(tmp_path, options, straight, monkeypatch):
    """Cache, sums, mask and checkpoints are removed after the first step."""
    expected = straight(options, tmp_path)
    log_step = JsonLogger.log_step

    def removing(self, entry):
        if entry["step"] == 1:
            mask = tmp_path / "mask" / "tiny_0.4.pt"
            mask.rename(tmp_path / mask.name)
            for folder in (tmp_path / "mask", tmp_path / ".cache", self.folder / "training"):
                shutil.rmtree(folder, ignore_errors=True)
        log_step(self, entry)

    monkeypatch.setattr(JsonLogger, "log_step", removing)
    assert unlearn.main(options(QUICK)) == 0
    assert {**made(tmp_path), "tiny_0.4.pt": (tmp_path / "tiny_0.4.pt").read_bytes()} == expected


def test_what_cannot_take_a_name_leaves_what_has_it(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    files.write_json(path, "earlier")

    def refusing(source, target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source)

    monkeypatch.setattr(os, "replace", refusing)
    with pytest.raises(WagleError, match=r"results\.json cannot be written"):
        files.write_json(path, "new")
    assert json.loads(path.read_text()) == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_may_not_be_written_to_ends_a_run_before_anything_is_computed(
    tmp_path, options, monkeypatch
):
    touch = Path.touch

    def forbidden(self, *args, **kwargs):
        if self.absolute().parent == tmp_path / "mask":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        touch(self, *args, **kwargs)

    monkeypatch.setattr(Path, "touch", forbidden)
    monkeypatch.setattr("wagle.unlearn.mask.gradients.token_losses", None)
    with pytest.raises(WagleError, match=r"mask/.* cannot be written: Permission denied"):
        unlearn.main(options(QUICK))
    assert made(tmp_path) == {}
