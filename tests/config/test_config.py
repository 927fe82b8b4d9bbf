"""Strict configuration."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wagle.catalogue import METHODS
from wagle.config import (
    REQUIRED,
    Config,
    DepthConfig,
    FineTuneConfig,
    PlantConfig,
    UnlearnConfig,
    load_config,
    mask_ratio,
    plain_number,
)
from wagle.errors import ConfigError
from wagle.shipped import CHECKOUT as ROOT

FRAGMENTS = ("methods", "masks", "open_unlearning")  # of no use alone, or without files of others
SHIPPED = sorted(p for p in (ROOT / "configs").glob("*/*.json") if p.parent.name not in FRAGMENTS)
BALANCE = {"forget_weight": 1.0, "retain_loss": "nll"}
NPO = {**BALANCE, "length_normalised": True}
RMU = {
    **{"layer": None, "steering_coefficient": 6.5, "alpha": 1200.0, "forget_weight": 1.0},
    **{"retain_loss": "states", "labelled_retain": False, "updated": "feed_forward"},
}
MODEL = ["--overall.model_name", "m"]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Messages are tables; this keeps every cell on one line."""
    monkeypatch.setenv("COLUMNS", "2000")


def load(*argv: str, kind=UnlearnConfig) -> Config:
    return load_config([*MODEL, *argv], kind, prog="p.py", description="d")


def error(*argv: str, kind=UnlearnConfig) -> str:
    """The message of a refused command line, its columns one blank apart."""
    with pytest.raises(ConfigError) as caught:
        load(*argv, kind=kind)
    return " ".join(str(caught.value).split())


@pytest.fixture
def write(tmp_path):
    def write(content, name="c.json"):
        path = tmp_path / name
        path.write_text(
            content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
        )
        return str(path)

    return write


# -------------------------------------------------------------------------- shipped configurations


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_shipped_configurations_load(path):
    kinds = {"fine": FineTuneConfig, "plant": PlantConfig}
    kind = kinds.get(path.stem.partition("_")[0], UnlearnConfig)
    config = load_config(["--config_file", str(path)], kind, prog="p.py", description="d")
    assert config.notices == []


_PUBLISHED = {  # lr, weight decay, mask, max_steps, seed
    "tofu/GradDiff": ("GA+FT", 7e-6, 0.1, "mask/tofu_0.95.pt", -1, 0),
    "tofu/NPO": ("NPO+FT", 1e-5, 0.1, "mask/tofu_0.95.pt", 400, 1),
    "tofu/PO": ("CL+FT", 2e-5, 0.1, "mask/tofu_0.8.pt", -1, 0),
    "wmdp/GradDiff": ("GA+FT", 5e-6, 0.0, "mask/wmdp_0.4.pt", 500, 3),
    "wmdp/NPO": ("NPO+FT", 1e-5, 0.0, "mask/wmdp_0.6.pt", 500, 0),
}


@pytest.mark.parametrize("name", _PUBLISHED)
def test_paper_configurations_have_the_published_values(name):
    method, lr, weight_decay, mask, max_steps, seed = _PUBLISHED[name]
    tofu = name.startswith("tofu")
    model = "locuslab/tofu_ft_llama2-7b" if tofu else "HuggingFaceH4/zephyr-7b-beta"
    root = "unlearn_tofu" if tofu else "unlearn_wmdp_all"
    expected = {
        "overall.model_name": model,
        "overall.logger": "json",
        "overall.seed": seed,
        "unlearn.unlearn_method": method,
        "unlearn.num_epochs": 5,
        "unlearn.lr": lr,
        "unlearn.weight_decay": weight_decay,
        "unlearn.gradient_accumulation_steps": 4,
        "unlearn.max_steps": max_steps,
        "unlearn.task_name": "tofu" if tofu else "wmdp",
        "unlearn.mask_path": mask,
        "unlearn.score_type": "wagle",
        "unlearn.mu": 1e-6,
        "unlearn.sophia": False,
        "unlearn.use_lora": False,
        "unlearn.mask_enforcement": "gradient",
        "unlearn.master_weights": False,
        "unlearn.gradients": "dense",
        "unlearn.max_grad_norm": 1.0,
        "dataset.forget_dataset_name": "Tofu_forget10" if tofu else "WMDPALL",
        "dataset.retain_dataset_name": "Tofu_retain90" if tofu else "WMDPALL",
        "dataset.dataset_seed": 1000,
        "dataset.forget_ratio": 400.0 if tofu else 1.0,
        "dataset.batch_size": 1,
        "evaluation.protocol": "published",
        "logger.json.root": f"files/results/{root}/{name.partition('/')[2]}+WAGLE",
    }
    argv = ["-C", str(ROOT / "configs" / f"{name}+WAGLE.json")]
    masked = load_config(argv, prog="p.py", description="d")
    assert {key: masked[key] for key in expected} == expected
    assert masked.method_params["gamma"] == 1.0

    argv = ["-C", str(ROOT / "configs" / f"{name}.json")]
    dense = load_config(argv, prog="p.py", description="d")
    assert dense["unlearn.mask_path"] is None
    different = {key for key in masked if masked[key] != dense[key]}
    assert different == {"unlearn.mask_path", "logger.json.root"}


def test_a_configuration_of_the_published_code_is_accepted_unchanged(write):
    published = {
        "overall": {"model_name": "m", "logger": "json", "cache_dir": ".cache", "seed": 0},
        "unlearn": {
            "unlearn_method": "GA+FT",
            "num_epochs": 5,
            "lr": 7e-06,
            "weight_decay": 0.1,
            "gradient_accumulation_steps": 4,
            "mask_path": "mask/snip_advanced/with_0.95.pt",
            "task_name": "tofu",
            "sophia": False,
            "sophia_params": {"betas_low": 0.9, "betas_high": 0.95, "rho": 0.03},
            "use_lora": False,
            "p": 0.01,
            "q": 0.01,
            "mu": 1e-06,
            "resume_path": None,
            "max_steps": -1,
            "GA": {},
            "GA+FT": {"gamma": 1.0},
            "GA+KL": {"gamma": 0.3},
            "NPO+FT": {"gamma": 2.0},
            "CL+FT": {"gamma": 1.0},
            "CL+KL": {"gamma": 1.0},
            "KL": {"gamma": 1.0},
            "l1_sparse": {"alpha": 1e-4},
        },
        "dataset": {
            "forget_dataset_name": "Tofu_forget10",
            "retain_dataset_name": "Tofu_retain90",
            "dataset_seed": 1000,
            "forget_ratio": 400,
            "self_retain": False,
            "batch_size": 1,
        },
        "logger": {"json": {"root": "files/results/x"}},
    }
    config = load("-C", write(published))
    assert config.method_params == {"gamma": 1.0, **BALANCE}
    assert config["unlearn.score_type"] == "wagle"


# -------------------------------------------------------------------------------------- defaults


def test_defaults():
    config = load()
    expected = {
        "overall.logger": "none",
        "overall.cache_dir": ".cache",
        "overall.dtype": "auto",
        "unlearn.unlearn_method": "origin",
        "unlearn.num_epochs": 1,
        "unlearn.lr": 1e-4,
        "unlearn.task_name": "toxic",
        "unlearn.mask_path": None,
        "unlearn.score_type": "wagle",
        "unlearn.mu": 1e-3,
        "unlearn.max_steps": -1,
        "unlearn.mask_enforcement": "optimizer",
        "unlearn.master_weights": None,
        "unlearn.CL+FT.gamma": 1.0,
        "unlearn.GA+FT.gamma": 0.0,
        "dataset.forget_dataset_name": "SafePku",
        "dataset.retain_dataset_name": "TruthfulQA",
        "dataset.forget_ratio": 200.0,
        "dataset.batch_size": 16,
        "evaluation.protocol": "corrected",
        "evaluation.limit": None,
        "logger.json.root": "files/logs",
    }
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("kind", [UnlearnConfig, FineTuneConfig])
def test_every_default_is_a_value_that_its_key_takes(kind):
    keys = kind.KEYS
    assert len({key.name for key in keys}) == len(keys)
    for key in keys:
        if key.default is not REQUIRED and key.default is not None:
            value = key.checker.check(key.default)
            assert (value, type(value)) == (key.default, type(key.default)), key.name


def test_required_keys(write):
    with pytest.raises(ConfigError, match=r"overall\.model_name +is required"):
        load_config([], prog="p.py", description="d")
    text = error(kind=FineTuneConfig)
    assert "finetune.dataset_name is required" in text
    assert "finetune.output_dir is required" in text
    path = write({"overall": {"model_name": None}})
    with pytest.raises(ConfigError, match="is required"):
        load_config(["-C", path], prog="p.py", description="d")


# --------------------------------------------------------------------------------- where from


def test_command_line_beats_later_file_beats_earlier_file_beats_default(write):
    first = write({"unlearn": {"lr": 1e-3, "num_epochs": 3}, "overall": {"seed": 1}}, "a.json")
    second = write("unlearn:\n  num_epochs: 4\n  mu: 1e-6\n", "b.yaml")
    config = load("--config-file", first, f"--config_file={second}", "--overall.seed=7")
    assert config["unlearn.lr"] == 1e-3
    assert config["unlearn.num_epochs"] == 4
    assert config["unlearn.mu"] == 1e-6
    assert config["overall.seed"] == 7
    assert config["dataset.batch_size"] == 16
    assert load("-C", second, "-C", first)["unlearn.num_epochs"] == 3
    assert load("--overall.seed", "7", "-C", first)["overall.seed"] == 7
    assert load("--overall.seed", "7", "--overall.seed", "8")["overall.seed"] == 8


def test_environment_variables_play_no_part(monkeypatch):
    for name in ("unlearn.lr", "UNLEARN.LR", "unlearn_lr", "lr"):
        monkeypatch.setenv(name, "5")
    assert load()["unlearn.lr"] == 1e-4


def test_dotted_keys_in_files_are_keys_too(write):
    assert load("-C", write({"unlearn.lr": 1e-3}))["unlearn.lr"] == 1e-3


def test_null_means_not_set(write):
    path = write({"unlearn": {"mask_path": "mask/a_0.5.pt", "lr": None}, "logger": None})
    assert load("-C", path)["unlearn.mask_path"] == "mask/a_0.5.pt"
    assert load("-C", path)["unlearn.lr"] == 1e-4
    assert load("-C", path, "--unlearn.mask_path", "null")["unlearn.mask_path"] is None
    assert load("-C", path, "--unlearn.mask_path=null")["unlearn.mask_path"] is None
    later = write({"unlearn": {"mask_path": None}}, "later.json")
    assert load("-C", path, "-C", later)["unlearn.mask_path"] is None


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("c.json", "{", "cannot be read"),
        ("c.json", "", "cannot be read"),
        ("c.json", '{"a": {"x": 1, "x": 2}}', "the same key twice: x"),
        ("c.json", '{"unlearn": {"lr": 1}, "unlearn.lr": 2}', "gives unlearn.lr twice"),
        (
            "c.json",
            '{"unlearn": {"NPO": {"gamma": 1}, "NPO+FT": {"gamma": 2}}}',
            "gives unlearn.NPO+FT.gamma twice",
        ),
        ("c.json", "[1]", "one object of sections"),
        ("c.json", "[" * 100_000, "cannot be read"),
        ("c.yaml", "unlearn:\n  lr: 1\n  lr: 2\n", "the same key twice: lr"),
        ("c.yaml", "a: [", "cannot be read"),
        ("c.yml", "", "one object of sections"),
    ],
)
def test_unusable_files(write, name, content, pattern):
    path = write(content, name)
    text = error("-C", path, "--unlearn.lr", "bad")
    assert pattern in text
    assert path in text
    assert "unlearn.lr allowed" not in text  # what else is wrong cannot be known yet


def test_files_that_are_none(tmp_path):
    assert "there is no configuration file missing.json" in error("-C", "missing.json")
    assert "cannot be read" in error("-C", str(tmp_path))
    (tmp_path / "latin.json").write_bytes('{"overall": {"model_name": "é"}}'.encode("latin-1"))
    assert "cannot be read" in error("-C", str(tmp_path / "latin.json"))
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"overall": {"seed": 3}}')
    assert load("-C", str(tmp_path / "bom.json"))["overall.seed"] == 3


def test_command_line_that_makes_no_sense():
    assert "'unlearn.lr' belongs to no option" in error("unlearn.lr", "1")
    assert "--unlearn.lr needs a value" in error("--unlearn.lr")
    text = error("--unlearn.sophia", "--unlearn.mu", "1", "stray")
    assert "--unlearn.sophia needs a value" in text
    assert "'stray' belongs to no option" in text
    assert "--unlearn.mu" not in text
    assert "-C needs a value" in error("-C")
    assert "--overall.seed needs a value" in error("--overall.seed", "-C", "x.json")


# -------------------------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("unlearn.weigth_decay", "unlearn.weight_decay"),
        ("unlearn.LR", "unlearn.lr"),
        ("unlearn.seed", "overall.seed"),
        ("mask_path", "unlearn.mask_path"),
        ("unlearn.CL+KLL.gamma", "unlearn.CL+KL.gamma"),
        ("unlearn.NPO.gama", "unlearn.NPO+FT.gamma"),
        ("unlearn.lr.value", "unlearn.lr"),
    ],
)
def test_unknown_keys_name_the_nearest_known_one(write, given, nearest):
    for text in (error(f"--{given}", "1"), error("-C", write({given: 1}))):
        assert f"{given} unknown key; did you mean {nearest}" in text


def test_unknown_keys_say_where_they_stood(write):
    text = error("-C", write({"unlearn": {"lrr": 3}}, "mine.json"), "--overall.sed", "4")
    assert "mine.json" in text
    assert "command line" in text
    assert "zzz unknown key; see --help" in error("--zzz", "1")


def test_sections_are_no_keys(write):
    assert "unlearn a section, not a key" in error("-C", write({"unlearn": 5}))
    assert "unlern unknown key" in error("-C", write({"unlern": {}}))
    assert "unlearn.lr allowed" in error("-C", write({"unlearn": {"lr": {}}}))
    assert load("-C", write({"unlearn": {}, "evaluation": None, "logger": {"json": {}}}))


def test_other_programs_know_other_keys():
    assert "did you mean finetune.lr" in error("--unlearn.lr", "1", kind=FineTuneConfig)
    config = load(
        *("--finetune.dataset_name", "Demo_full", "--finetune.output_dir", "out"),
        *("--finetune.extra_dataset_names", '["Demo_knowledge", "Copyright"]'),
        kind=FineTuneConfig,
    )
    assert config["finetune.extra_dataset_names"] == ["Demo_knowledge", "HP"]
    assert "unlearn.lr" not in config


# -------------------------------------------------------------------------------------- values


def test_all_problems_are_reported_at_once(write):
    path = write({"unlearn": {"lr": "fast", "weigth_decay": 1, "mask_path": "mask/x.pt"}})
    text = error("-C", path, "--overall.seed", "-1", "--overall.dtype", "int8")
    assert text.startswith("5 problems in the configuration")
    for part in ("unlearn.lr", "float >= 0", "fast", "overall.seed", "-1", "bfloat16", "int8"):
        assert part in text
    assert "unlearn.weight_decay?" in text
    assert "carries no ratio" in text


def test_a_table_of_problems_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(ConfigError) as caught:
        load("--dataset.forget_dataset_name", "x" * 300, "--unlearn.score_type", "y z" * 80)
    assert max(map(len, str(caught.value).splitlines())) <= 100


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("1", True), ("false", False), ("0", False)],
)
def test_booleans_mean_what_they_say(text, value, write):
    assert load("--unlearn.sophia", text)["unlearn.sophia"] is value
    for written in (value, int(value), text):
        path = write({"unlearn": {"sophia": written}})
        assert load("-C", path)["unlearn.sophia"] is value


@pytest.mark.parametrize("value", ["yes", "", "2", 2, 1.0, [], "nan"])
def test_other_values_are_no_booleans(value, write):
    assert "true or false" in error("-C", write({"unlearn": {"sophia": value}}))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("unlearn.max_steps", "-1", -1),
        ("unlearn.lr", "1e-5", 1e-5),
        ("unlearn.GA+FT.gamma", "-1e-3", -1e-3),
        ("unlearn.num_epochs", "5.0", 5),
        ("unlearn.num_epochs", "5", 5),
        ("overall.seed", "4294967295", 2**32 - 1),
        ("evaluation.tasks", "a, b", ["a", "b"]),
        ("evaluation.tasks", '["a", "b"]', ["a", "b"]),
        ("unlearn.mask_exclude", "norm", ["norm"]),
        ("unlearn.mask_exclude", "[]", []),
        ("dataset.forget_ratio", "400", 400.0),
        ("unlearn.master_weights", "false", False),
        ("logger.name", "5", "5"),
        ("logger.name", "a=b", "a=b"),
        ("logger.name", "sweep/seed 1", "sweep/seed 1"),
    ],
)
def test_values_are_converted(key, text, value):
    for config in (load(f"--{key}", text), load(f"--{key}={text}")):
        assert (config[key], type(config[key])) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unlearn.num_epochs", 5.0),
        ("unlearn.num_epochs", "5"),
        ("unlearn.lr", "5"),
        ("unlearn.lr", 5),
        ("evaluation.tasks", ["5"]),
        ("evaluation.tasks", "5"),
    ],
)
def test_values_in_files_are_converted(key, value, write):
    for name, content in (
        ("c.json", json.dumps({key: value})),
        ("c.yaml", yaml.safe_dump({key: value})),
    ):
        assert load("-C", write(content, name))[key] in (5, ["5"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unlearn.num_epochs", 5.5),
        ("unlearn.num_epochs", "5.5"),
        ("unlearn.num_epochs", 0),
        ("unlearn.num_epochs", True),
        ("unlearn.num_epochs", "1_0"),
        ("unlearn.num_epochs", "1e999"),
        ("unlearn.num_epochs", [5]),
        ("unlearn.max_steps", 0),
        ("unlearn.max_steps", -2),
        ("unlearn.max_steps", -0.5),
        ("unlearn.lr", "nan"),
        ("unlearn.lr", "inf"),
        ("unlearn.lr", float("nan")),
        ("unlearn.lr", float("-inf")),
        ("unlearn.lr", False),
        ("unlearn.lr", -1e-5),
        ("unlearn.mu", 0),
        ("unlearn.sophia_params.betas_low", 1),
        ("overall.seed", 2**32),
        ("logger.json.root", " "),
        ("logger.json.root", 5),
        ("unlearn.mask_exclude", "biases"),
        ("unlearn.mask_exclude", '["norm"'),
        ("unlearn.mask_exclude", {"norm": True}),
        ("evaluation.tasks", ["a", None]),
        ("evaluation.tasks", 5),
        ("unlearn.unlearn_method", "ga"),
        ("unlearn.unlearn_method", ["GA"]),
        ("dataset.forget_ratio", 0),
        ("dataset.forget_ratio", 2.5),
        ("logger.name", "../elsewhere"),
        ("logger.name", "/elsewhere"),
    ],
)
def test_values_that_a_key_does_not_take(key, value, write):
    assert f"{key}" in error("-C", write({key: value}))


def test_yaml_values_mean_what_they_mean_on_the_command_line(write):
    text = """
logger: {name: 2026-01-02}
overall: {seed: 010, cache_dir: 1:30}
unlearn: {lr: 1e-5, sophia: true, mask_path: null}
dataset: {date_string: 2025-04-10}
"""
    config = load("-C", write(text, "c.yaml"))
    assert config["logger.name"] == "2026-01-02"
    assert config["overall.seed"] == 10
    assert config["overall.cache_dir"] == "1:30"
    assert config["unlearn.lr"] == 1e-5
    assert config["unlearn.sophia"] is True
    assert config["unlearn.mask_path"] is None
    assert config["dataset.date_string"] == "2025-04-10"
    assert "1 unknown key" in error("-C", write("1: 2\n", "c.yaml"))


def nested(depth):
    return "[" * depth + "]" * depth


LAUGHS = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "c.json",
            '{"overall": {"cache_dir": "' + "x" * 1_000_000 + '"}}',
            "larger than 1,000,000",
        ),
        ("c.json", "{" + ", ".join(['"a": 1'] * 100_000) + "}", "the same key twice: a$"),
        ("c.json", json.dumps({f"a{n}": 1 for n in range(50_000)}), "more than 10,000 values"),
        ("c.json", json.dumps({f"a{n}": 1 for n in range(9_999)}), "9,999 problems .* 9,979 more$"),
        ("c.json", '{"overall.seed": ' + "1" * 900_000 + "}", "cannot be read: Exceeds the limit"),
        ("c.json", '{"overall.seed": ' + "1" * 4_000 + "}", "overall.seed allowed: int >= 0"),
        ("c.json", '{"overall.seed": "' + "1" * 900_000 + '"}', "overall.seed allowed: int >= 0"),
        ("c.json", '{"' + "x" * 900_000 + '": 1}', "x… unknown key"),
        ("c.json", f'{{"evaluation.tasks": {nested(50)}}}', "nested deeper than 20 levels"),
        ("c.yaml", LAUGHS, "more than 10,000 values"),
        ("c.yaml", "a: &a [*a]", "nested deeper than 20 levels"),
        ("c.yaml", "a: &a {b: *a}", "nested deeper than 20 levels"),
        ("c.yaml", f"a: {nested(100_000)}", "exceeded maximum nesting depth"),
        ("c.yaml", "overall.seed: !!int ''", "overall.seed allowed: int >= 0"),
        ("c.yaml", "overall.seed: !!int 0x" + "f" * 10_000, "overall.seed allowed: int >= 0"),
        ("c.yaml", "overall.seed: 1" + ":1" * 450_000, "overall.seed allowed: int >= 0"),
        ("c.yaml", "overall.seed: !!int 1" + ":1" * 450_000, "overall.seed allowed: int >= 0"),
        ("c.yaml", "unlearn.lr: !!float foo", "unlearn.lr allowed: float >= 0"),
        ("c.yaml", "logger.name: !!timestamp foo\nb: 1", "1 problem in the configuration.* b "),
        ("c.yaml", "unlearn.sophia: !!bool foo", "cannot be read: KeyError"),
        ("c.yaml", "unlearn.sophia: !!map [1]", "cannot be read: ConstructorError"),
        ("c.yaml", "unlearn.sophia: !!python/name:os.system", "cannot be read: ConstructorError"),
        ("c.yaml", "overall.seed: !!binary AAAA", "overall.seed allowed: int >= 0"),
    ],
    ids=itertools.count(),
)
def test_monstrous_files_are_refused(write, name, text, message):
    found = error("-C", write(text, name))
    assert re.search(message, found), found[:1000]
    assert len(found) < 10_000


def test_only_ordinary_files_are_configurations(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for name in (str(tmp_path / "pipe.json"), "/dev/zero", "/dev/null", str(tmp_path)):
        assert "it is no ordinary file" in error("-C", name)
    assert "cannot be read" in error("-C", "a\0b.json")
    assert "cannot be read" in error("-C", "x" * 300)


@pytest.mark.parametrize("value", ["[" * 100_000, "[" * 500 + "]" * 500, "[1, {}", '["a\0"]'])
def test_lists_on_the_command_line_are_lists_of_names(value):
    assert "evaluation.tasks allowed: list of lm-eval task" in error("--evaluation.tasks", value)


@pytest.mark.parametrize("value", ["a\0b", "a\ud800b", "x" * 256, "é" * 128, "a/" * 2048])
@pytest.mark.parametrize("key", ["unlearn.resume_path", "logger.name", "unlearn.mask_path"])
def test_what_cannot_name_a_file_is_refused(write, key, value):
    for given in (["-C", write({key: value})], [f"--{key}", value]):
        message = error(*given)
        assert f"{key} allowed" in message
        assert "at most 255 bytes between slashes" in message
        message.encode()


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("dataset.batch_size", "1e300", "<= 1000000"),
        ("evaluation.batch_size", "1e7", "<= 1000000"),
        ("unlearn.num_epochs", "1e18", "<= 1000000"),
        ("unlearn.max_steps", "1e18", "<= 100000000"),
        ("dataset.num_workers", "1e6", "<= 256"),
    ],
)
def test_counts_have_bounds(key, value, bound):
    assert f"{key} allowed: " in error(f"--{key}", value)
    assert bound in error(f"--{key}", value)


@pytest.mark.parametrize(
    ("key", "given", "meant"),
    [
        ("overall.dtype", "bfloat", "bfloat16"),
        ("unlearn.unlearn_method", "graddiff", "GradDiff"),
        ("unlearn.mask_exclude", "norm,heads", "head"),
        ("dataset.forget_dataset_name", "tofu_forget10", "Tofu_forget10"),
        ("dataset.retain_dataset_name", "Demo_world_fact", "Demo_world_facts"),
        ("dataset.retain_dataset_name", "Wikitext", "wikitext"),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(key, given, meant):
    assert f"did you mean {meant}?" in error(f"--{key}", given)


def test_names_of_data_sets():
    for name in (
        *("Tofu_full", "Tofu_forget01", "Tofu_retain_perturbed", "Tofu_world_facts_perturbed"),
        *("Demo_holdout10", "Demo_forget05_perturbed", "Demo_knowledge"),
        *("WMDPCyber", "WMDPBio", "WMDPALL", "HP", "SafePku", "C4", "wikitext", "TruthfulQA"),
    ):
        config = load("--dataset.forget_dataset_name", name, "--unlearn.task_name", "wmdp")
        assert config["dataset.forget_dataset_name"] == name
    assert load("--dataset.forget_dataset_name", "Copyright")["dataset.forget_dataset_name"] == "HP"
    for name in ("Tofu_", "Tofu", "Tofu_forget10_", "Tofu_knowledge", "hp", "TOFU_full"):
        assert "dataset.forget_dataset_name" in error("--dataset.forget_dataset_name", name)


@pytest.mark.parametrize(
    ("name", "task", "ratio"),
    [
        ("SafePku", "toxic", 200),
        ("Tofu_forget10", "tofu", 1),
        ("Tofu_retain90", "tofu", 1),
        ("Tofu_full", "tofu", 1),
        ("Tofu_retain_perturbed", "none", 1),
        ("Demo_forget10", "tofu", 1),
        ("Demo_knowledge", "none", 1),
        ("HP", "copyright", 1),
        ("WMDPCyber", "wmdp", 1),
        ("C4", "none", 1),
    ],
)
def test_evaluation_and_number_of_rows_follow_from_the_forget_set(name, task, ratio):
    config = load("--dataset.forget_dataset_name", name)
    assert config["unlearn.task_name"] == task
    assert config["dataset.forget_ratio"] == ratio
    assert (task == "none") == ("unlearn.task_name is none: no evaluation runs" in config.notices)


def test_rows_of_ones_own_without_the_benchmarks_files_are_not_evaluated(tmp_path):
    options = [
        "--dataset.forget_dataset_name",
        "Tofu_forget10",
        "--dataset.data_dir",
        str(tmp_path),
    ]
    assert load(*options)["unlearn.task_name"] == "none"
    assert load(*options, "--unlearn.task_name", "tofu")["unlearn.task_name"] == "tofu"
    (tmp_path / "TOFU").mkdir()
    (tmp_path / "TOFU" / "retain_perturbed.json").touch()
    assert load(*options)["unlearn.task_name"] == "tofu"


# ------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize(
    ("alias", "method"),
    [
        ("GradDiff", "GA+FT"),
        ("NPO", "NPO+FT"),
        ("PO", "CL+FT"),
        ("SimNPO", "SimNPO+FT"),
        ("DPO", "DPO+FT"),
    ],
)
def test_aliases_stand_for_their_method(alias, method, write):
    config = load("--unlearn.unlearn_method", alias, f"--unlearn.{alias}.gamma", "2")
    assert config["unlearn.unlearn_method"] == method
    assert config.method_params["gamma"] == 2.0
    path = write({"unlearn": {"unlearn_method": method, alias: {"gamma": 3}}})
    assert load("-C", path).method_params["gamma"] == 3.0
    # The command line wins under either name.
    assert load("-C", path, f"--unlearn.{method}.gamma", "4").method_params["gamma"] == 4.0
    assert load("-C", path, f"--unlearn.{alias}.gamma", "4").method_params["gamma"] == 4.0


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("origin", {}),
        ("GA", {}),
        ("l1_sparse", {"alpha": 0.0}),
        ("GA+FT", {"gamma": 0.0, **BALANCE}),
        ("GA+KL", {"gamma": 0.0}),
        ("NPO+FT", {"gamma": 0.0, "beta": 0.1, **NPO}),
        ("CL+FT", {"gamma": 1.0, **BALANCE}),
        ("CL+KL", {"gamma": 0.0}),
        ("KL", {"gamma": 0.0}),
        ("SimNPO", {"gamma": 0.0, "beta": 2.5, "delta": 0.0, **BALANCE}),
        ("DPO", {"gamma": 0.0, "beta": 0.1, **BALANCE}),
        ("RMU", RMU),
    ],
)
def test_parameters_of_methods(method, params):
    assert load("--unlearn.unlearn_method", method).method_params == params


def test_parameters_of_methods_are_accepted_whatever_the_method(write):
    config = load("-C", write({"unlearn": {"RMU": {"layer": 3}}}))
    assert config.as_dict()["unlearn"]["RMU"]["layer"] == 3
    assert "unlearn.RMU.layer" in error("--unlearn.RMU.layer", "7.5")


# --------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("path", "ratio"),
    [
        ("mask/tofu_0.8.pt", 0.8),
        ("mask/snip/with_0.95.pt", 0.95),
        ("tofu_forget10_0.05.pt", 0.05),
        ("x_.5.pt", 0.5),
        ("x_1.pt", 1.0),
        ("x_1.0.safetensors", 1.0),
        ("x_1.5.pt", None),
        ("x_-0.5.pt", None),
        ("x_0.pt", None),
        ("x.pt", None),
        ("x_0.8", None),
        ("x_0.8.bin", None),
        ("dir_0.8.pt/x.pt", None),
    ],
)
def test_ratio_in_a_mask_path(path, ratio):
    assert mask_ratio(path) == ratio
    assert mask_ratio(Path(path)) == ratio


def test_mask_paths_that_cannot_work(tmp_path):
    for name in ("x.pt", "x_1.5.pt", "x_0.safetensors"):
        assert "carries no ratio" in error("--unlearn.mask_path", f"mask/{name}")
    assert ".safetensors" in error("--unlearn.mask_path", "mask/x_0.5.bin")
    assert "LoRA" in error("--unlearn.mask_path", "m/x_0.5.pt", "--unlearn.use_lora", "true")
    (tmp_path / "x_0.5.pt").mkdir()
    assert "a folder" in error("--unlearn.mask_path", str(tmp_path / "x_0.5.pt"))


def test_an_existing_mask_needs_no_ratio_in_its_name(tmp_path):
    path = tmp_path / "x.pt"
    path.touch()
    assert load("--unlearn.mask_path", str(path))["unlearn.mask_path"] == str(path)


@pytest.mark.parametrize(
    ("path", "score_type"),
    [
        ("mask/tofu_0.8.pt", "wagle"),
        ("tofu_0.8.pt", "wagle"),
        ("mask/snip/with_0.8.pt", "snip"),
        ("mask/snip_advanced/with_0.8.pt", "wagle"),
        ("mask/snip_advanced_CL/with_0.8.pt", "wagle_cl"),
        ("mask/snip_advanced_gn/with_0.8.pt", "wagle_gn"),
        ("mask/weight/with_0.8.pt", "magnitude"),
        ("mask/FFN/with_0.8.pt", "ffn"),
        ("mask/wanda/x_0.8.pt", "wanda"),
        ("wanda/mask/x_0.8.pt", "wagle"),
    ],
)
def test_score_type_falls_back_to_the_folder(path, score_type):
    assert load("--unlearn.mask_path", path)["unlearn.score_type"] == score_type
    chosen = load("--unlearn.mask_path", path, "--unlearn.score_type", "random")
    assert chosen["unlearn.score_type"] == "random"


def test_published_names_of_score_types():
    for published, name in (("snip_advanced", "wagle"), ("weight", "magnitude"), ("FFN", "ffn")):
        assert load("--unlearn.score_type", published)["unlearn.score_type"] == name


@pytest.mark.parametrize("score_type", ["wanda", "ffn"])
def test_masks_with_a_rule_of_their_own_take_no_ranking_options(score_type):
    mask = ["--unlearn.mask_path", f"mask/{score_type}/x_0.5.pt"]
    assert "unlearn.mask_scope" in error(*mask, "--unlearn.mask_scope", "layer")
    assert "unlearn.mask_exclude" in error(*mask, "--unlearn.mask_exclude", "norm")
    assert load(*mask, "--unlearn.mask_scope", "layer", "--unlearn.score_type", "wagle")


def test_files_and_folders_that_must_exist(tmp_path):
    for key in ("unlearn.resume_path", "dataset.data_dir"):
        assert f"{key} there is no such folder" in error(f"--{key}", str(tmp_path / "no"))
        assert load(f"--{key}", str(tmp_path))[key] == str(tmp_path)
    key = "evaluation.retain_results"
    assert f"{key} there is no such file" in error(f"--{key}", str(tmp_path / "no"))


def test_packed_gradients_and_the_published_masking_exclude_one_another():
    packed = ["--unlearn.gradients", "packed", "--unlearn.mask_path", "m/x_0.5.pt"]
    assert "unlearn.gradients" in error(*packed, "--unlearn.mask_enforcement", "gradient")
    assert load(*packed)["unlearn.gradients"] == "packed"
    assert load()["unlearn.gradients"] == "dense"
    assert load()["unlearn.max_grad_norm"] == 1.0


def test_self_retain_needs_rows_that_are_not_drawn():
    retain = ["--dataset.self_retain", "true", "--dataset.forget_ratio"]
    assert "dataset.self_retain" in error(*retain, "1.0")
    assert load(*retain, "0.5")["dataset.self_retain"]


# ------------------------------------------------------------------------------------- notices


def test_settings_without_effect_are_said_to_have_none():
    assert load().notices == []
    unused = load("--unlearn.q", "0.5", "--unlearn.p", "0.5").notices
    assert unused == ["accepted for old configs, without effect: unlearn.p and unlearn.q"]
    (idle,) = load("--unlearn.mask_path", "mask/x_0.5.pt").notices
    assert "unlearn.mask_path has no effect" in idle
    (off,) = load("--unlearn.unlearn_method", "GradDiff").notices
    assert "unlearn.GA+FT.gamma is 0" in off
    assert load("--unlearn.unlearn_method", "PO").notices == []


# ------------------------------------------------------------------------------ the whole of it


def test_sections_are_objects_with_the_values_of_their_keys():
    config = load("--unlearn.lr", "2e-5", "--logger.name", "a", "--unlearn.sophia_params.rho", "2")
    sections = ("overall", "unlearn", "dataset", "evaluation", "logger")
    for key in UnlearnConfig.KEYS:
        section, *names = key.name.split(".")
        if section == "unlearn" and names[0] in METHODS:
            continue
        value = getattr(config, section)
        for name in names:
            value = getattr(value, name)
        assert value == config[key.name], key.name
    assert {key.name.split(".")[0] for key in UnlearnConfig.KEYS} == set(sections)
    assert config.unlearn.lr == 2e-5
    assert config.logger.json.root == "files/logs"
    assert config.replace({"unlearn.lr": 1}).unlearn.lr == 1
    with pytest.raises(AttributeError):
        config.unlearn.lr = 3
    masked = load("--unlearn.mask_path", "m/{score}_0.4.pt").unlearn
    assert (masked.mask_path, masked.score_type) == ("m/wagle_0.4.pt", "wagle")


def test_a_configuration_is_a_mapping():
    config = load()
    assert "unlearn.lr" in config
    assert "unlearn.rl" not in config
    assert set(config) == {key.name for key in UnlearnConfig.KEYS}
    with pytest.raises(KeyError, match=r"unlearn\.rl"):
        config["unlearn.rl"]


@pytest.mark.parametrize("options", [[], ["--unlearn.mask_path", "mask/weight/a_0.5.pt"]])
def test_resolved_configuration_loads_back(write, options):
    config = load("--unlearn.unlearn_method", "NPO", "--evaluation.tasks", "a,b", *options)
    nested = config.as_dict()
    assert nested["unlearn"]["NPO+FT"] == {"gamma": 0.0, "beta": 0.1, **NPO}
    assert nested["logger"]["json"] == {"root": "files/logs"}
    again = load_config(["-C", write(nested)], prog="p.py", description="d")
    assert again == config
    assert again.as_dict() == nested
    assert again.fingerprint() == config.fingerprint()


def test_replacing_keys():
    base = load("--unlearn.unlearn_method", "NPO", "--unlearn.lr", "1e-5")
    changed = base.replace(
        {"unlearn.NPO.gamma": 2, "unlearn.lr": None, "unlearn.mask_path": "mask/snip/x_0.1.pt"}
    )
    assert changed.method_params == {"gamma": 2.0, "beta": 0.1, **NPO}
    assert changed["unlearn.lr"] == 1e-4
    assert changed["unlearn.score_type"] == "snip"
    assert base["unlearn.lr"] == 1e-5
    assert base.replace({}) == base
    with pytest.raises(ConfigError, match=r"unlearn\.lr +allowed"):
        base.replace({"unlearn.lr": "fast"})
    with pytest.raises(ConfigError, match=r"did you mean unlearn\.lr"):
        base.replace({"unlearn.lrr": 1})


def test_a_configuration_can_be_sent_to_another_process():
    config = load("--unlearn.unlearn_method", "NPO")
    received = pickle.loads(pickle.dumps(config))
    assert received == config
    assert received.replace({"overall.seed": 3})["overall.seed"] == 3


def test_fingerprint_sees_what_influences_results_only():
    base = load("--unlearn.unlearn_method", "GA+FT").fingerprint()
    assert len(base) == 64
    int(base, 16)

    def fingerprint(key, value):
        return load("--unlearn.unlearn_method", "GA+FT", f"--{key}", value).fingerprint()

    for key, value in (
        ("logger.name", "x"),
        ("logger.json.root", "x"),
        ("logger.wandb.project", "x"),
        ("overall.cache_dir", "x"),
        ("overall.logger", "json"),
        ("dataset.num_workers", "2"),
        ("unlearn.p", "0.5"),
        ("unlearn.NPO+FT.gamma", "3"),
    ):
        assert fingerprint(key, value) == base, key
    for key, value in (
        ("unlearn.lr", "1"),
        ("unlearn.GradDiff.gamma", "3"),
        ("overall.seed", "3"),
        ("dataset.data_dir", "."),
        ("evaluation.limit", "2"),
    ):
        assert fingerprint(key, value) != base, key
    assert fingerprint("dataset.forget_ratio", "200.0") == base  # a default, written out


def test_fingerprint_sees_what_the_retain_results_hold(tmp_path):
    path = tmp_path / "tofu.json"
    found = []
    for content in ("{}", "[]", "{}"):
        path.write_text(content)
        found.append(load("--evaluation.retain_results", str(path)).fingerprint())
    assert found[0] == found[2] != found[1]


# --------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("kind", [UnlearnConfig, FineTuneConfig, DepthConfig])
@pytest.mark.parametrize("columns", ["90", "100", "200"])
def test_help_lists_every_key_and_fits_the_terminal(kind, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as caught:
        load("--unlearn.lr", "bad", "--help", kind=kind)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    for key in kind.KEYS:
        (line,) = [line for line in lines if line.startswith(f"{key.name} ")]
        assert key.meaning.split()[0] in line
    assert text.isascii()
    takes_data = any("SUBSET" in key.checker.help() for key in kind.KEYS)
    assert ("SUBSET of a data set" in text) == takes_data
    assert max(map(len, lines)) <= min(int(columns), 100)


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--unlearn.lrr=1", 2)])
def test_mistakes_show_before_anything_heavy_is_imported(argument, status):
    driver = (
        "import sys\n"
        "from wagle.config import load_config\n"
        "from wagle.errors import ConfigError\n"
        "try:\n"
        "    load_config(sys.argv[1:], prog='p.py', description='d')\n"
        "except ConfigError:\n"
        "    status = 2\n"
        "except SystemExit as end:\n"
        "    status = end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'rich'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
        "sys.exit(status)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", driver, argument],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == status, run.stderr
    assert run.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("script", ["unlearn_model.py", "fine_tune.py"])
@pytest.mark.parametrize(
    ("argument", "status", "stream"), [("--help", 0, "usage"), ("--bad=1", 2, "unknown key")]
)
def test_entry_points_exit_before_importing_torch(script, argument, status, stream):
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        f"sys.path.insert(0, 'src/exec'); sys.argv = ['src/exec/{script}', {argument!r}]\n"
        f"runpy.run_path('src/exec/{script}', run_name='__main__')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == status
    assert stream in (run.stdout if status == 0 else run.stderr)
    assert run.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("script", ["unlearn_model", "fine_tune", "mask", "report", "demo"])
def test_a_python_without_the_packages_says_how_to_get_them(script):
    run = subprocess.run(
        [sys.executable, "-S", str(ROOT / "src" / "exec" / f"{script}.py"), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert re.fullmatch(r"error: .* has no package fastargs, .*make venv.*\n", run.stderr)


# ------------------------------------------------------------------------ what would train nothing


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("max_steps", "1", "the first step has learning rate 0"),
        ("lr", "0", "a learning rate of 0 trains nothing"),
        ("dtype", "float16", "small gradients vanish in float16"),
    ],
)
def test_training_nothing_or_nothing_right_is_refused(tmp_path, key, value, reason):
    tune = ("--finetune.dataset_name", "Demo_full", "--finetune.output_dir", str(tmp_path / "m"))
    names = ("overall.dtype",) * 2 if key == "dtype" else (f"unlearn.{key}", f"finetune.{key}")
    trains = ("--unlearn.unlearn_method", "GA")
    assert f"{names[0]} {reason}" in error(*trains, f"--{names[0]}", value)
    assert f"{names[1]} {reason}" in error(*tune, f"--{names[1]}", value, kind=FineTuneConfig)
    load(f"--{names[0]}", value)  # nothing is trained
    load(*trains, "--unlearn.resume_path", str(tmp_path), f"--{names[0]}", value)


def test_placeholders_in_a_mask_path():
    options = ["--unlearn.mask_ratio", "0.4", "--unlearn.mu", "1e-6", "--overall.seed", "3"]
    options += ["--unlearn.task_name", "tofu"]
    path = "mask/{task}/{score}_{mu}_{seed}_{ratio}.pt"
    config = load("--unlearn.mask_path", path, *options)
    assert config["unlearn.mask_path"] == "mask/tofu/wagle_0.000001_3_0.4.pt"
    assert config.ratio == 0.4
    assert config.mask_file(1.0) == Path("mask/tofu/wagle_0.000001_3_1.pt")
    assert config.replace({"unlearn.mu": 2})["unlearn.mask_path"].endswith("wagle_2_3_0.4.pt")
    as_file = config.as_dict()["unlearn"]
    assert (as_file["mask_path"], as_file["mask_ratio"]) == (config["unlearn.mask_path"], 0.4)
    named = load("--unlearn.mask_path", "m/{ratio}_{score}.pt", *options)
    assert (named["unlearn.mask_path"], named.ratio) == ("m/0.4_wagle.pt", 0.4)
    for name in ("m/{rho}_0.4.pt", "m/{}_0.4.pt", "{x y}_0.4.pt"):
        message = error("--unlearn.mask_path", name)
        assert "stands for nothing" in message
        assert "{score}" in message
    message = error("--unlearn.mask_path", "m/a_0.8.pt", "--unlearn.mask_ratio", "0.4")
    assert "unlearn.mask_path says 0.8" in message
    assert load("--unlearn.mask_path", "m/a.pt", "--unlearn.mask_ratio", "0.4").ratio == 0.4


@pytest.mark.parametrize(
    ("path", "cache"),
    [
        ("mask/tofu_0.8.pt", "mask/tofu"),
        ("mask/my_tofu_0.8.pt", "mask/my_tofu"),
        ("mask/tofu_{ratio}.pt", "mask/tofu"),
        ("mask/my_tofu_{ratio}.pt", "mask/my_tofu"),
        ("mask/tofu_{score}_mu{mu}_s{seed}_{ratio}.safetensors", "mask/tofu_mu_s0"),
        ("mask/{score}/{mu}-{ratio}.pt", "mask/sums"),
        ("mask/{task}_{ratio}.pt", "mask/toxic"),
        ("{ratio}.pt", "sums"),
    ],
)
def test_masks_that_can_share_sums_of_gradients_do(path, cache):
    config = load("--unlearn.mask_path", path)
    assert config.gradient_cache() == Path(cache)
    other = load("--unlearn.mask_path", path, "--unlearn.mu", "7", "--unlearn.score_type", "snip")
    assert other.gradient_cache() == Path(cache)
    given = load("--unlearn.mask_path", path, "--unlearn.gradient_cache", "here/x_0.8")
    assert given.gradient_cache() == Path("here/x_0.8")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.8, "0.8"), (1.0, "1"), (1e-9, "0.000000001"), (1.00001e-5, "0.0000100001"), (2, "2")],
)
def test_numbers_in_names_are_plain_decimals(number, text):
    assert plain_number(number) == text
    assert float(text) == number
