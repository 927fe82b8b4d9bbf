"""Configurations in fragments: several files, and files that extend others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from wagle.config import Config, FineTuneConfig, UnlearnConfig, load_config
from wagle.errors import ConfigError
from wagle.shipped import CHECKOUT as ROOT

RECORDED = json.loads((ROOT / "tests/fixtures/shipped_configs.json").read_text())
"""The keys that there were when every shipped file named its own, and, by file, the SHA-256 of what
these keys amounted to."""


def load(*argv: str, kind=UnlearnConfig) -> Config:
    return load_config(argv, kind, prog="p.py", description="d")


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, content) -> str:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
        return name

    return write


def error(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*argv)
    return str(caught.value)


@pytest.mark.parametrize("name", RECORDED["files"])
def test_shipped_files_mean_what_they_meant_when_they_were_whole(name):
    program = "fine_tune" if "/fine_tune" in name else "unlearn"
    kind = FineTuneConfig if program == "fine_tune" else UnlearnConfig
    config = load("-C", str(ROOT / "configs" / name), kind=kind)
    values = {key: config[key] for key in RECORDED["keys"][program]}
    if values.get("unlearn.RMU.layer", 7) is None:
        values["unlearn.RMU.layer"] = 7  # the default, before it followed from the model
    content = json.dumps(values, sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest()[:16] == RECORDED["files"][name]


def test_no_shipped_file_is_a_copy():
    for path in (ROOT / "configs").glob("*/*+WAGLE.json"):
        content = json.loads(path.read_text())
        assert set(content) == {"extends", "unlearn", "logger"}, path
        assert set(content["unlearn"]) == {"mask_path"}, path


@pytest.mark.parametrize(
    ("task", "method"),
    [("tofu", "PO"), ("wmdp", "NPO"), ("copyright", "PO"), ("toxic", "GradDiff"), ("demo", "NPO")],
)
def test_base_method_and_mask_go_together(task, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # shipped files are found from anywhere
    parts = [f"configs/{task}/base.json", f"configs/methods/{method}.json"]
    argv = [word for part in (*parts, "configs/masks/wagle.json") for word in ("-C", part)]
    config = load(*argv, "--unlearn.mask_ratio", "0.4")
    assert config.method_params["gamma"] == 1.0
    seed, evaluation = config["overall.seed"], "tofu" if task == "demo" else task
    mask = f"mask/{evaluation}_wagle_mu0.000001_seed{seed}_0.4.pt"
    assert config["unlearn.mask_path"] == mask
    assert config.notices == []
    assert config.files == [*parts, "configs/masks/wagle.json"]


def test_a_file_gives_what_the_files_that_it_extends_give(write):
    write("parts/base.json", {"overall": {"model_name": "m", "seed": 1}, "unlearn": {"lr": 1e-3}})
    write("parts/npo.yaml", "unlearn: {unlearn_method: NPO, lr: 1e-4, NPO: {beta: 0.2}}\n")
    write("parts/both.json", {"extends": ["base.json", "npo.yaml"], "unlearn": {"NPO+FT.beta": 3}})
    name = write("mine.json", {"extends": "parts/both.json", "overall": {"seed": None}})
    config = load("-C", name)
    assert config["overall.model_name"] == "m"
    assert config["overall.seed"] == 0  # null restores the default, as everywhere
    assert config["unlearn.lr"] == 1e-4
    assert config.method_params["beta"] == 3.0
    assert [Path(file).name for file in config.files] == [
        *("base.json", "npo.yaml", "both.json", "mine.json"),
    ]
    assert load("-C", name, "--unlearn.lr", "5")["unlearn.lr"] == 5
    later = write("later.json", {"unlearn": {"lr": 7}})
    assert load("-C", name, "-C", later)["unlearn.lr"] == 7
    assert load("-C", later, "-C", name)["unlearn.lr"] == 1e-4
    assert config.replace({"overall.seed": 3}).files == config.files


def test_extended_files_are_found_beside_the_file_then_from_here_then_among_the_shipped(write):
    write("a/base.json", {"overall": {"model_name": "beside"}})
    write("base.json", {"overall": {"model_name": "here"}})
    assert load("-C", write("a/c.json", {"extends": "base.json"}))["overall.model_name"] == "beside"
    assert load("-C", write("b/c.json", {"extends": "base.json"}))["overall.model_name"] == "here"
    shipped = write("d.json", {"extends": "configs/demo/GradDiff.json"})
    assert load("-C", shipped)["overall.model_name"] == "files/models/demo_llama"


def test_a_file_may_be_extended_by_several(write):
    write("base.json", {"overall": {"model_name": "m", "seed": 1}})
    write("a.json", {"extends": "base.json", "overall": {"seed": 2}})
    write("b.json", {"extends": "base.json", "unlearn": {"lr": 3}})
    config = load("-C", write("c.json", {"extends": ["a.json", "b.json"]}))
    assert config["overall.seed"] == 1  # b says base, and comes later
    assert config.files == ["base.json", "a.json", "b.json", "c.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"extends": "c.json"}, "in a circle: "),
        ({"extends": "back.json"}, "in a circle: "),
        ({"extends": "no.json"}, "c.json extends no.json, and there is no such configuration"),
        ({"extends": "broken.json"}, "broken.json cannot be read"),
        ({"extends": 5}, '"extends" takes the name of a file, or a list of them'),
        ({"extends": ["base.json", None]}, '"extends" takes the name of a file'),
        ({"extends": {"file": "base.json"}}, '"extends" takes the name of a file'),
        ({"extends": "x" * 300}, '"extends" takes the name of a file'),
        ({"extends": "a\0b"}, '"extends" takes the name of a file'),
        ({"extends": "."}, "it is no ordinary file"),
        ({"extends": "wrong.json"}, "wrong.json"),
        ({"unlearn": {"extends": "base.json"}}, "unknown key"),
        ({"extends": "far0.json"}, "more than 10 of them"),
    ],
)
def test_files_that_cannot_be_extended(write, content, message):
    write("base.json", {"overall": {"model_name": "m"}})
    write("back.json", {"extends": ["base.json", "./c.json"]})
    write("broken.json", "{")
    write("wrong.json", {"overall": {"seed": "x", "model_name": "m"}})
    for number in range(11):
        write(f"far{number}.json", {"extends": f"far{number + 1}.json"})
    write("far11.json", {})
    assert message in error("-C", write("c.json", content))


def test_many_ways_to_one_file_are_one_reading(write):
    write("0.json", {"overall": {"model_name": "m"}})
    for number in range(1, 10):  # 100 ** 9 ways
        write(f"{number}.json", {"extends": [f"{number - 1}.json"] * 100})
    assert len(load("-C", "9.json").files) == 10
