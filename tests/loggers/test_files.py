"""Files that are complete or not there."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wagle.errors import WagleError
from wagle.loggers import files
from wagle.loggers.files import (
    is_part,
    read_object,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def interrupted(writing: AbstractContextManager[Path], error: Exception) -> None:
    """Write something, then fail."""
    with writing as part:
        (part / "file" if part.is_dir() else part).write_text("half")
        raise error


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield
    os.umask(old)


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.fixture
def synced(monkeypatch) -> list[str]:
    """What is forced to the disk, in order, and what is renamed."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def watched_replace(source, target):
        done.append(f"renamed to {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    return done


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new folder" / "a.json"
    with replacing(path) as part:
        assert part.parent == path.parent
        assert re.fullmatch(rf"a\.json\.{os.getpid()}\.[0-9a-f]+\.partial", part.name)
        assert is_part(part)
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.json"]


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(ZeroDivisionError):
        interrupted(replacing(path), ZeroDivisionError())
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert path.read_text() == '{\n  "old": 1\n}\n'
    assert names(tmp_path) == ["a.json"]


def test_a_refusal_of_the_system_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WagleError, match=r"file/a\.json cannot be written: .*/file is no folder"):
        write_text(tmp_path / "file" / "a.json", "")
    with pytest.raises(WagleError, match=r"a\.json cannot be written: No space left"):
        interrupted(replacing(tmp_path / "a.json"), OSError(28, "No space left on device"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(WagleError, match="folder cannot be written: Is a directory"):
        write_text(tmp_path / "folder", "")
    assert names(tmp_path) == ["file", "folder"]


def test_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "table.csv"
    texts = [str(number) * 1000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(path, text), texts * 20))
    assert path.read_text() in texts
    assert names(tmp_path) == ["table.csv"]


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("n" * 255, "ü" * 127):
        write_text(tmp_path / name, "content")
        assert (tmp_path / name).read_text() == "content"


def test_modes_are_those_of_the_umask(tmp_path, umask):
    with replacing(tmp_path / "a.safetensors") as part:
        save_file({"a": torch.zeros(1)}, part)
        part.chmod(0o600)
    assert mode(tmp_path / "a.safetensors") == 0o640
    with replacing_folder(tmp_path / "model") as part:
        (part / "weights").touch(0o600)
        (part / "more").mkdir()
        (part / "more" / "weights").touch(0o600)
    assert mode(tmp_path / "model") == 0o750
    assert mode(tmp_path / "model" / "weights") == 0o640
    assert mode(tmp_path / "model" / "more" / "weights") == 0o640


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files: Linux only")
def test_what_took_long_is_on_the_disk_before_it_has_its_name(tmp_path, synced):
    with replacing(tmp_path / "mask.pt", durable=True) as file:
        file.write_text("content")
    assert synced == [file.name, "renamed to mask.pt", tmp_path.name]
    synced.clear()
    with replacing_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("content")
    assert synced == ["weights", folder.name, "renamed to model", tmp_path.name]
    synced.clear()
    write_text(tmp_path / "log.json", "content")
    assert synced == ["renamed to log.json"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for content in ("old", "new"):
        with replacing_folder(tmp_path / "model") as part:
            (part / content).touch()
    assert names(tmp_path / "model") == ["new"]
    with pytest.raises(ZeroDivisionError):
        interrupted(replacing_folder(tmp_path / "model"), ZeroDivisionError())
    assert names(tmp_path / "model") == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_signal_while_a_folder_is_replaced_loses_neither(tmp_path, monkeypatch):
    with replacing_folder(tmp_path / "model") as part:
        (part / "old").touch()
    rename, signals = Path.rename, [KeyboardInterrupt()]

    def signalled(path, target):
        rename(path, target)
        if signals:
            raise signals.pop()

    monkeypatch.setattr(Path, "rename", signalled)
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "model") as part:
        (part / "new").touch()
    assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["model"]


def test_parts_of_dead_processes_are_removed_and_no_others(tmp_path, dead, monkeypatch):
    living, host = os.getppid(), files._HOST
    other = "0" * 6 if host != "0" * 6 else "1" * 6
    kept = [
        f"m.pt.{living}.{host}00112233.partial",
        f"m.pt.{dead}.{other}00112233.partial",  # of another host that shares the folder
        f"m.pt.{dead}.partial",
        f"{dead}.{host}00112233.partial",
        f"m.pt.{dead}.{host}00112233.partial.pt",
        "m.pt.partial",
    ]
    gone = [
        f"m.pt.{dead}.{host}00112233.partial",
        f"m.pt.{os.getpid()}.{host}00112233.partial",  # a process of this number, before
        f"m.pt.{10**30}.{host}00112233.partial",
    ]
    for name in [*kept, *gone]:
        (tmp_path / name).write_text("half")
    folder = tmp_path / f"model.{dead}.{host}44556677.partial"
    folder.mkdir()
    (folder / "weights").touch()
    with replacing(tmp_path / "b.json"):
        monkeypatch.setattr(files, "_swept", set())
        write_text(tmp_path / "a.json", "")  # the part of b.json stays
    assert names(tmp_path) == sorted(["a.json", "b.json", *kept])


def test_a_killed_writer_leaves_no_final_name_and_the_next_one_cleans_up(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from wagle.loggers.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "mask.pt"
    subprocess.run([sys.executable, "-c", program, path], check=False)
    (left,) = tmp_path.iterdir()
    assert is_part(left)
    write_text(path, "whole")
    assert names(tmp_path) == ["mask.pt"]


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "holds no JSON object"), ("{", "cannot be read as JSON")]
)
def test_a_file_that_holds_no_object_is_named(tmp_path, text, message):
    path = tmp_path / "attack.json"
    path.write_text(text)
    with pytest.raises(WagleError, match=rf"attack\.json {message}"):
        read_object(path)
