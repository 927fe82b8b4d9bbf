"""configs/open_unlearning: what open-unlearning's reproduction page was made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from wagle.catalogue import METHODS
from wagle.config import load_config
from wagle.reporting.plan import TableRequest, plan_runs
from wagle.shipped import CHECKOUT as ROOT

FOLDER = ROOT / "configs/open_unlearning"
SETTINGS = sorted(FOLDER.glob("*.json"))
PAGE = ["GA", "GradDiff", "NPO", "SimNPO", "DPO", "RMU"]
MODELS = {
    *("Llama-2-7b-chat-hf", "Llama-3.1-8B-Instruct"),
    *("Llama-3.2-1B-Instruct", "Llama-3.2-3B-Instruct"),
}
RETAINED = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
HYPERPARAMETERS = {
    "GradAscent": ("GA", 1e-5, {}),
    "GradDiff": ("GA+FT", 1e-5, {"gamma": 1, "forget_weight": 1}),
    "NPO": ("NPO+FT", 1e-5, {"gamma": 1, "beta": 0.1, "length_normalised": False}),
    "SimNPO": ("SimNPO+FT", 1e-5, {"gamma": 1, "forget_weight": 0.125, "beta": 4.5, "delta": 0}),
    "IdkDPO": ("DPO+FT", 1e-5, {"gamma": 1, "beta": 0.1}),
    "RMU": ("RMU", 1e-5, {"layer": 7, "steering_coefficient": 2, "alpha": 1, "updated": "all"}),
    "UNDIAL": ("UNDIAL", 1e-4, {"gamma": 0, "beta": 10, "published": True}),
    "AltPO": ("AltPO+FT", 1e-5, {"gamma": 1, "beta": 0.1}),
}
"""By open-unlearning's names: our method, learning rate, and what else its configurations say."""


@pytest.fixture(autouse=True)
def logs(tmp_path, monkeypatch):
    """Stand-ins for the logs that open-unlearning gives out, where the configurations name them."""
    monkeypatch.chdir(tmp_path)
    for model in MODELS:
        for forget, retain in RETAINED.items():
            for folder in (f"{model}_{retain}", f"{model}_full/evals_{forget}"):
                path = Path(f"saves/eval/tofu_{folder}/TOFU_EVAL.json")
                path.parent.mkdir(parents=True)
                path.touch()


def load(*argv: str):
    return load_config(argv, prog="p", description="d")


def test_there_is_a_file_for_each_model_and_forget_set():
    assert {path.stem for path in SETTINGS} == {f"{m}_{f}" for m in MODELS for f in RETAINED}


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_settings(path):
    model, _, forget = path.stem.rpartition("_")
    config = load("-C", f"configs/open_unlearning/{path.name}")
    assert config.overall.model_name == f"open-unlearning/tofu_{model}_full"
    assert config.dataset.forget_dataset_name == f"Tofu_{forget}"
    assert config.dataset.retain_dataset_name == f"Tofu_{RETAINED[forget]}"
    assert config.evaluation.holdout_dataset_name == f"Tofu_{forget.replace('forget', 'holdout')}"
    results = (config.evaluation.retain_results, config.evaluation.original_results)
    assert results == (
        f"saves/eval/tofu_{model}_{RETAINED[forget]}/TOFU_EVAL.json",
        f"saves/eval/tofu_{model}_full/evals_{forget}/TOFU_EVAL.json",
    )
    assert config.evaluation.protocol == "official"
    assert config.unlearn.task_name == "tofu"
    assert config.unlearn.num_epochs == 10
    assert config.dataset.batch_size * config.unlearn.gradient_accumulation_steps == 32
    assert config.dataset.template == (
        "llama2_open_unlearning" if model.startswith("Llama-2") else "auto"
    )
    assert config.notices == []


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_methods(name):
    method, rate, expected = HYPERPARAMETERS[name]
    setting = "configs/open_unlearning/Llama-3.2-1B-Instruct_forget10.json"
    fragment = f"configs/open_unlearning/parts/{name}.json"
    given = ["--unlearn.AltPO+FT.alternates", "alternates.jsonl"] if name == "AltPO" else []
    config = load("-C", setting, "-C", fragment, *given)
    assert (config.unlearn.unlearn_method, config.unlearn.lr) == (method, rate)
    assert config.unlearn.num_epochs == (2 if name == "AltPO" else 10)
    assert {key: config.method_params[key] for key in expected} == expected


def test_a_table_of_the_page_is_one_command():
    """Its six methods, with the parameters that each fragment gives, and the model before."""
    request = TableRequest(
        table="tofu",
        config_file=FOLDER / "Llama-3.2-1B-Instruct_forget10.json",
        output=Path("out"),
        methods=PAGE,
        masks=["dense", "WAGLE"],
        seeds=(0,),
    )
    runs = plan_runs(request)
    assert len({run.fingerprint for run in runs}) == 1 + 2 * len(PAGE)
    labels = {name: label for label, entry in METHODS.items() for name in (label, *entry.aliases)}
    wanted = {method: params for method, _, params in HYPERPARAMETERS.values()}
    for method in map(labels.get, PAGE):
        found = next(r.config for r in runs if r.config.unlearn.unlearn_method == method)
        params = wanted[method]
        assert {key: found.method_params[key] for key in params} == params
