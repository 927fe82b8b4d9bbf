"""Strict configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from src.config import FINE_TUNE_KEYS, UNLEARN_KEYS, load_config, mask_ratio
from src.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*/*.json"))
MODEL = ["--overall.model_name", "m"]


def load(*argv, keys=UNLEARN_KEYS):
    return load_config([*MODEL, *argv], keys=keys, prog="p.py", description="d")


def error(*argv, **options):
    with pytest.raises(ConfigError) as caught:
        load(*argv, **options)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write(content, name="c.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_shipped_configurations_load(path):
    keys = FINE_TUNE_KEYS if path.stem.startswith("fine_tune") else UNLEARN_KEYS
    load_config(["--config_file", str(path)], keys=keys, prog="p.py", description="d")


def test_paper_configurations_have_the_published_values():
    config = load("-C", str(ROOT / "configs/tofu/NPO+WAGLE.json"))
    expected = {
        "unlearn.unlearn_method": "NPO+FT",
        "unlearn.lr": 1e-5,
        "unlearn.weight_decay": 0.1,
        "unlearn.max_steps": 400,
        "unlearn.mu": 1e-6,
        "unlearn.mask_path": "mask/tofu_0.95.pt",
        "unlearn.mask_enforcement": "gradient",
        "unlearn.master_weights": False,
        "evaluation.protocol": "published",
        "overall.seed": 1,
        "dataset.dataset_seed": 1000,
        "dataset.forget_ratio": 400.0,
    }
    assert {key: config[key] for key in expected} == expected
    assert config.method_params == {"gamma": 1.0, "beta": 0.1}


def test_command_line_beats_later_file_beats_earlier_file_beats_default(write):
    first = write({"unlearn": {"lr": 1e-3, "num_epochs": 3}, "overall": {"seed": 1}}, "a.json")
    second = write("unlearn:\n  num_epochs: 4\n  mu: 1.0e-6\n", "b.yaml")
    config = load("--config-file", first, "-C", second, "--overall.seed=7")
    assert config["unlearn.lr"] == 1e-3
    assert config["unlearn.num_epochs"] == 4
    assert config["unlearn.mu"] == 1e-6
    assert config["overall.seed"] == 7
    assert config["dataset.batch_size"] == 16


def test_unknown_keys_name_the_nearest_known_one(write):
    path = write({"unlearn": {"weigth_decay": 0.1}})
    text = error("-C", path, "--evaluation.lr", "1")
    assert "unlearn.weight_decay?" in text
    assert "c.json" in text
    assert "unlearn.lr?" in text


def test_all_problems_are_reported_at_once():
    text = error("--unlearn.lr", "fast", "--overall.seed", "-1", "--overall.dtype", "int8")
    for part in ("unlearn.lr", "fast", "overall.seed", "-1", "overall.dtype", "int8", "bfloat16"):
        assert part in text
    with pytest.raises(ConfigError, match=r"overall\.model_name +is required"):
        load_config([], prog="p.py", description="d")


def test_environment_variables_play_no_part(monkeypatch):
    monkeypatch.setenv("unlearn.lr", "5")
    monkeypatch.setenv("UNLEARN.LR", "5")
    assert load()["unlearn.lr"] == 1e-4


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("1", True), ("false", False), ("0", False)],
)
def test_booleans_mean_what_they_say(text, value, write):
    assert load("--unlearn.sophia", text)["unlearn.sophia"] is value
    path = write({"unlearn": {"sophia": value}})
    assert load("-C", path)["unlearn.sophia"] is value
    assert "true or false" in error("--unlearn.sophia", "maybe")


def test_null_means_not_set(write):
    path = write({"unlearn": {"mask_path": "mask/a_0.5.pt", "lr": None}})
    assert load("-C", path)["unlearn.mask_path"] == "mask/a_0.5.pt"
    assert load("-C", path)["unlearn.lr"] == 1e-4
    assert load("-C", path, "--unlearn.mask_path", "null")["unlearn.mask_path"] is None


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("unlearn.max_steps", "-1", -1),
        ("unlearn.lr", "1e-5", 1e-5),
        ("unlearn.GA+FT.gamma", "-1e-3", -1e-3),
        ("unlearn.num_epochs", "5.0", 5),
        ("evaluation.tasks", "a,b", ["a", "b"]),
        ("unlearn.mask_exclude", "norm", ["norm"]),
    ],
)
def test_values_are_converted(key, text, value):
    assert load(f"--{key}", text)[key] == value
    assert load(f"--{key}={text}")[key] == value


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("unlearn.num_epochs", "5.5"),
        ("unlearn.num_epochs", "0"),
        ("unlearn.lr", "nan"),
        ("unlearn.lr", "inf"),
        ("unlearn.mask_exclude", "biases"),
        ("dataset.forget_dataset_name", "Tofu_forget7"),
    ],
)
def test_values_out_of_range_are_refused(key, text):
    assert key in error(f"--{key}", text)


def test_a_boolean_is_no_number(write):
    assert "unlearn.num_epochs" in error("-C", write({"unlearn": {"num_epochs": True}}))


def test_aliases_stand_for_their_method():
    config = load("--unlearn.unlearn_method", "GradDiff", "--unlearn.GradDiff.gamma", "2")
    assert config["unlearn.unlearn_method"] == "GA+FT"
    assert config.method_params == {"gamma": 2.0}
    assert load("--dataset.forget_dataset_name", "Copyright")["dataset.forget_dataset_name"] == "HP"


def test_sections_of_other_methods_are_accepted():
    config = load("--unlearn.unlearn_method", "GA", "--unlearn.NPO+FT.gamma", "2")
    assert config.method_params == {}


def test_old_unused_keys_are_accepted_and_said_to_be_unused():
    assert load("--unlearn.p", "0.5").notices == ["unlearn.p have no effect"]
    assert load().notices == []


@pytest.mark.parametrize(
    ("path", "ratio"),
    [
        ("mask/tofu_0.8.pt", 0.8),
        ("mask/snip/with_0.95.pt", 0.95),
        ("x_1.0.safetensors", 1.0),
        ("x_1.5.pt", None),
        ("x_0.pt", None),
        ("x.pt", None),
    ],
)
def test_ratio_in_a_mask_path(path, ratio):
    assert mask_ratio(path) == ratio


def test_mask_paths_that_cannot_work():
    assert "carries no ratio" in " ".join(error("--unlearn.mask_path", "mask/x.pt").split())
    assert ".safetensors" in error("--unlearn.mask_path", "mask/x_0.5.bin")
    assert "LoRA" in error("--unlearn.mask_path", "m/x_0.5.pt", "--unlearn.use_lora", "true")


@pytest.mark.parametrize(
    ("path", "score_type"),
    [
        ("mask/tofu_0.8.pt", "wagle"),
        ("mask/snip_advanced/with_0.8.pt", "wagle"),
        ("mask/weight/with_0.8.pt", "magnitude"),
        ("mask/wanda/x_0.8.pt", "wanda"),
    ],
)
def test_score_type_falls_back_to_the_folder(path, score_type):
    assert load("--unlearn.mask_path", path)["unlearn.score_type"] == score_type
    chosen = load("--unlearn.mask_path", path, "--unlearn.score_type", "random")
    assert chosen["unlearn.score_type"] == "random"


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("{", "cannot be read"),
        ('{"a": {"x": 1, "x": 2}}', "the same key twice: x"),
        ("[1]", "one object of sections"),
    ],
)
def test_unusable_files(write, content, pattern):
    assert pattern in error("-C", write(content))
    assert "no configuration file" in error("-C", "missing.json")


def test_command_line_that_makes_no_sense():
    assert "belongs to no option" in error("unlearn.lr", "1")
    assert "needs a value" in error("--unlearn.lr")
    assert "needs a value" in error("--unlearn.lr", "--unlearn.mu", "1")


def test_resolved_configuration_loads_back(write):
    config = load("--unlearn.unlearn_method", "NPO", "--unlearn.mask_path", "mask/a_0.5.pt")
    again = load_config(["-C", write(config.as_dict())], prog="p.py", description="d")
    assert again.as_dict() == config.as_dict()
    assert again.fingerprint() == config.fingerprint()


def test_fingerprint_sees_what_influences_results_only():
    base = load().fingerprint()
    for argv in (
        ["--logger.name", "x"],
        ["--overall.cache_dir", "x"],
        ["--overall.logger", "json"],
    ):
        assert load(*argv).fingerprint() == base
    for argv in (["--unlearn.lr", "1"], ["--overall.seed", "3"], ["--evaluation.limit", "2"]):
        assert load(*argv).fingerprint() != base


def test_help_lists_every_key_within_100_columns(capsys):
    with pytest.raises(SystemExit) as caught:
        load("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(key.name in text for key in UNLEARN_KEYS)
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.parametrize("script", ["unlearn_model.py", "fine_tune.py"])
@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--bad=1", 2)])
def test_mistakes_show_before_anything_heavy_is_imported(script, argument, status):
    program = (
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print('HEAVY', 'torch' in sys.modules))\n"
        f"sys.argv = ['src/exec/{script}', {argument!r}]\n"
        f"runpy.run_path('src/exec/{script}', run_name='__main__')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == status
    assert "HEAVY False" in run.stdout
