"""Run folders as they are read: what is finished, what is damaged, what is somebody else's."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from wagle.commands import report
from wagle.errors import WagleError
from wagle.loggers import JsonLogger
from wagle.loggers.run_folder import is_finished, read_manifest, read_result_file
from wagle.metrics.tofu_files import load_results
from wagle.reporting.runs import find_run_folders, read_run, read_runs

CONFIG = {
    "overall": {"model_name": "m", "seed": 0},
    "unlearn": {"use_lora": False, "mask_path": None, "score_type": "wagle"},
}
RESULTS = {"task": "tofu", "method": "GA+FT", "density": 1.0, "seed": 0, "UE Avg": 0.25}
MANIFEST = {"seconds": {"train": 1.0}, "fingerprints": {}}


def write_run(folder: Path, fingerprint: str = "x", *, finished: bool = True) -> Path:
    logger = JsonLogger(folder)
    assert logger.start(CONFIG, fingerprint) is None
    logger.log_step({"step": 1, "loss": 2.0})
    logger.save("tofu.json", {"forget": {"acc": 0.5}})
    if finished:
        logger.finish(RESULTS, MANIFEST)
    else:
        logger.fail(OSError("disk full"), MANIFEST)
    return folder


def test_unfinished_damaged_and_foreign_folders_are_left_out_with_a_note_each(tmp_path, capsys):
    good = write_run(tmp_path / "good")
    failed = write_run(tmp_path / "failed", finished=False)
    empty = write_run(tmp_path / "empty")
    (empty / "manifest.json").write_text("")
    changed = write_run(tmp_path / "changed")
    results = changed / "results.json"
    results.write_text(results.read_text().replace("0.25", "0.95"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "table.md").write_text("a file beside the runs")
    runs = read_runs(find_run_folders(sorted(tmp_path.glob("[!.]*"))))
    assert [run.folder for run in runs] == [good]
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 5
    for name in ("changed/results.json has been changed", "empty/manifest.json cannot be read"):
        assert sum(name in note for note in notes) == 1
    assert any(f"{failed} is not finished: failed: OSError: disk full" in note for note in notes)
    assert any("foreign is no run folder" in note for note in notes)
    with pytest.raises(WagleError, match="none of these folders holds a finished run"):
        read_runs([failed, empty])


def test_a_run_whose_process_died_says_so(tmp_path):
    logger = JsonLogger(tmp_path / "a")
    logger.start(CONFIG, "x")
    with pytest.raises(WagleError, match="not finished: running"):
        read_run(tmp_path / "a")
    logger._lock.release()  # as the system does when the process ends
    with pytest.raises(WagleError, match="its process has ended without a word"):
        read_run(tmp_path / "a")
    assert not is_finished(tmp_path / "a")


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "results.json", "log.json"])
def test_no_flipped_bit_goes_unseen(tmp_path, name):
    path = write_run(tmp_path / "a") / name
    content = path.read_bytes()
    generator = random.Random(name)
    for _ in range(60):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(changed))
        if name == "manifest.json" and _same_json(content, bytes(changed)):
            continue  # a changed blank
        with pytest.raises(WagleError, match=name):
            read_run(tmp_path / "a")
    path.write_bytes(content)
    assert read_run(tmp_path / "a").results == RESULTS


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "{}", "[" * 10**5, "\ud800"])
@pytest.mark.parametrize("name", ["config.json", "manifest.json", "results.json"])
def test_json_that_is_no_run_names_its_file(tmp_path, name, content):
    folder = write_run(tmp_path / "a")
    manifest = read_manifest(folder)
    del manifest["documents"]  # as older runs left it
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(WagleError, match=name):
        read_run(folder)


def test_runs_are_listed_with_what_became_of_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a[/red]"))
    write_run(Path("runs/b"), finished=False)
    assert report.main(["runs", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("runs/a[/red]")
    assert "GradDiff, ρ = 1, seed 0" in lines[0]
    assert "UE Avg 0.250" in lines[0]
    assert "failed: OSError: disk full" in lines[1]
    assert not Path("report.html").exists()


def test_a_result_file_is_checked_wherever_it_is_read(tmp_path):
    path = write_run(tmp_path / "a") / "tofu.json"
    assert read_result_file(path) == {"forget": {"acc": 0.5}}
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(WagleError, match="has been changed"):
        load_results(path)
    copy = tmp_path / "copy.json"
    copy.write_text(path.read_text())  # on its own it can be anybody's
    assert read_result_file(copy) == {"forget": {"acc": 0.6}}
