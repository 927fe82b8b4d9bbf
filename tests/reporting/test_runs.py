"""Run folders as they are read: what is finished, what is damaged, what is somebody else's."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest

from wagle.commands import report, runs
from wagle.errors import ConfigError, WagleError
from wagle.loggers import JsonLogger
from wagle.loggers.run_folder import is_finished, read_manifest, read_result_file
from wagle.metrics.tofu_files import load_results
from wagle.reporting.listing import frame_of
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
    found = read_runs(find_run_folders(sorted(tmp_path.glob("[!.]*"))))
    assert [run.folder for run in found] == [good]
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


def finish(folder: Path, seed: int, lr: float, score: float) -> Path:
    """A finished run whose questions have a row each."""
    logger = JsonLogger(folder)
    logger.start(
        {
            "overall": {"model_name": "m", "seed": seed},
            "unlearn": {**CONFIG["unlearn"], "lr": lr, "task_name": "tofu"},
            "evaluation": {"protocol": "corrected", "attacks": ["zlib"]},
        },
        f"{seed}",
    )
    rows = [
        {"question": "Who?", "answer": "Ann", "generated": said, "rougeL_score": score, "loss": [1]}
        for said in ("Ann", "Bob")  # the same question twice
    ]
    logger.save("tofu.json", {"forget": {"rows": rows}, "retain": {"rows": rows[:1]}})
    logger.finish({**RESULTS, "seed": seed, "UE Avg": score, "UT Avg": 0.5}, MANIFEST)
    return folder


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """Runs of every kind below one folder, and one that is none."""
    monkeypatch.chdir(tmp_path)
    finish(Path("runs/a[/red]"), 0, 1e-5, 0.25)
    finish(Path("runs/b"), 1, 2e-5, 0.75)
    write_run(Path("runs/failed"), finished=False)
    logger = JsonLogger(Path("runs/killed"))
    logger.start(CONFIG, "x")
    logger._lock.release()  # as the system does when the process ends
    results = write_run(Path("runs/changed")) / "results.json"
    results.write_text(results.read_text().replace("0.25", "0.95"))
    write_run(Path("runs/empty")).joinpath("manifest.json").write_text("")
    Path("foreign").mkdir()
    return tmp_path


FOUND = ("a[/red]", "b", "changed", "empty", "failed", "killed")
STATES = ("finished", "finished", "damaged", "damaged", "failed", "killed")


@pytest.mark.parametrize(
    "command",
    [lambda *given: report.main([*given, "--list"]), lambda *given: runs.main(["ls", *given])],
)
def test_runs_are_listed_with_what_became_of_them(folders, capsys, command):
    assert command("runs", "foreign") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["started", "status", "run", "ρ", "seed", "numbers", "version", "folder"]
    assert [line.split()[-1] for line in lines] == [*(f"runs/{name}" for name in FOUND), "foreign"]
    states = (*STATES, "foreign")
    assert all(state in line.split() for state, line in zip(states, lines, strict=True))
    assert "GradDiff  1  0     UE Avg 0.25  UT Avg 0.5" in lines[0]
    assert "results.json has been changed since the run wrote it" in lines[2]
    assert "OSError: disk full" in lines[4]
    assert "its process has ended without a word" in lines[5]
    assert "is no run folder" in lines[6]
    assert not Path("report.html").exists()


def test_a_data_frame_has_a_row_for_each_run(folders):
    frame = frame_of(["runs", "foreign"])
    assert list(frame["status"]) == [*STATES, "foreign"]
    first, second = frame.iloc[0], frame.iloc[1]
    assert (first["unlearn.lr"], second["unlearn.lr"]) == (1e-5, 2e-5)
    assert (first["method"], first["mask"], first["seed"]) == ("GradDiff", "Dense", 0)
    assert (first["UE Avg"], first["seconds train"]) == (0.25, 1.0)
    assert json.loads(first["evaluation.attacks"]) == ["zlib"]
    assert frame["UE Avg"].isna().sum() == 5  # nothing of what is not finished, or damaged
    assert "disk full" in frame["reason"][4]
    with pytest.raises(ConfigError, match="there is no folder nowhere"):
        frame_of(["nowhere"])


@pytest.mark.parametrize("name", ["runs.csv", "runs.parquet"])
def test_frames_are_exported(folders, name, capsys):
    read = pd.read_csv if name.endswith("csv") else pd.read_parquet
    assert runs.main(["ls", "runs", "--export", name]) == 0
    noted = capsys.readouterr().err.splitlines()
    assert [note.split(": ")[1:3] for note in noted] == [
        [f"runs/{name}", status]
        for name, status in zip(FOUND, STATES, strict=True)
        if status != "finished"
    ]
    assert list(read(name)["UE Avg"].dropna()) == [0.25, 0.75]
    assert runs.main(["ls", "runs", "--rows", "--export", name]) == 0
    frame = read(name)
    assert list(frame["set"]) == ["forget", "forget", "retain"] * 2
    assert list(frame["generated"]) == ["Ann", "Bob", "Ann"] * 2
    assert list(frame["rougeL_score"]) == [0.25] * 3 + [0.75] * 3
    assert list(frame["seed"]) == [0] * 3 + [1] * 3
    assert set(frame["loss"]) == {"[1]"}


def test_what_cannot_be_exported(folders):
    with pytest.raises(ConfigError, match=r"ends in \.parquet or \.csv, not runs\.xlsx"):
        runs.main(["ls", "runs", "--export", "runs.xlsx"])
    with pytest.raises(ConfigError, match="--rows is about --export"):
        runs.main(["ls", "runs", "--rows"])
    with pytest.raises(ConfigError, match="there is no folder nowhere"):
        runs.main(["ls", "nowhere"])
    with pytest.raises(ConfigError, match="two or more"):
        runs.main(["compare", "runs/b"])


def test_a_run_is_shown_and_compared(folders, capsys):
    assert runs.main(["show", "runs/b"]) == 0
    said = capsys.readouterr().out
    assert "status: finished" in said
    assert "unlearn.lr" in said
    assert "unlearn.use_lora" not in said  # the default
    assert "0.7500" in said
    assert runs.main(["compare", "runs/a[/red]", "runs/b", "runs/failed"]) == 0
    said = capsys.readouterr().out
    assert "C: runs/failed (failed: OSError: disk full)" in said
    lines = [line.strip("│ ").split() for line in said.splitlines()]
    assert ["unlearn.lr", "│", "1e-05", "│", "2e-05", "│", "–"] in lines
    assert ["UE", "Avg", "│", "0.25", "│", "0.75", "│", "–"] in lines
    assert "overall.model_name" not in said  # the same in all


def test_a_result_file_is_checked_wherever_it_is_read(tmp_path):
    path = write_run(tmp_path / "a") / "tofu.json"
    assert read_result_file(path) == {"forget": {"acc": 0.5}}
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(WagleError, match="has been changed"):
        load_results(path)
    copy = tmp_path / "copy.json"
    copy.write_text(path.read_text())  # on its own it can be anybody's
    assert read_result_file(copy) == {"forget": {"acc": 0.6}}
