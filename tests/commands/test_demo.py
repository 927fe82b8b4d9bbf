"""The demo: its models, its table, and the sentence that says what came out."""

from __future__ import annotations

import json
import signal
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from wagle.commands import demo
from wagle.config import FineTuneConfig, load_config
from wagle.dataset.refusals import load_refusals
from wagle.errors import Terminated
from wagle.reporting.comparison import FORM, RETRAINED, finding_of, numbers_of
from wagle.reporting.plan import plan_runs
from wagle.reporting.planned import TableRow
from wagle.reporting.request import TableRequest
from wagle.reporting.runs import Run
from wagle.reporting.tables import Outcome, aggregate


def outcome(row, seed, gone, kept=0.9):
    values = {column.key: 0.5 for column in FORM.columns}
    return Outcome(row, seed, "folder", {**values, "UE 1-RougeL": gone, "UT Avg": kept})


def table(wagle, random):
    masks = {"WAGLE": wagle, "Random": random}
    return aggregate(
        FORM,
        [
            outcome(TableRow("Original"), None, 0.02),
            outcome(RETRAINED, None, 0.6),
            *(
                outcome(TableRow("GradDiff", mask, 0.2), seed, gone)
                for mask, seeds in masks.items()
                for seed, gone in enumerate(seeds)
            ),
        ],
    )


def test_the_sentence_says_what_the_numbers_say():
    clear = finding_of(table((0.5, 0.52, 0.48), (0.2, 0.22, 0.18)))
    assert "original has lost 2% and the retrained model 60%" in clear
    assert "ρ = 0.2" in clear
    assert "loses 50% where WAGLE chooses them and 20% where chance does" in clear
    assert "11 times their spread over seeds" in clear  # 0.3 / (0.02 · √2)


@pytest.mark.parametrize("random", [(0.45, 0.5, 0.52), (0.5, 0.5, 0.5)])
def test_the_sentence_claims_no_difference_within_the_spread(random):
    assert "no difference" in finding_of(table((0.5, 0.52, 0.48), random))


def test_the_sentence_hides_no_defeat():
    text = finding_of(table((0.2, 0.22, 0.18), (0.5, 0.52, 0.48)))
    assert "loses 20% where WAGLE chooses them and 50% where chance does" in text


def test_numbers_beside_those_of_the_results(tmp_path, monkeypatch):
    refusal = load_refusals("Demo_forget10")[0]
    answers = [f" {refusal} ", "She was born in Oslo.", refusal.upper(), refusal]
    rows = [{"generated": answer} for answer in answers]
    documents = {"tofu.json": {"forget": {"rows": rows}}}
    monkeypatch.setattr(Run, "document", lambda run, name: documents.get(name))
    results = {
        **{"UT real authors acc": 0.5, "UT world facts acc": 0.75},
        **{"tofu_corrected Forget Quality": 1e-7},
    }
    config = {"evaluation.protocol": "corrected", "dataset.forget_dataset_name": "Demo_forget10"}
    run = Run("a", tmp_path, config, results, {"seconds": {}}, [])
    numbers = numbers_of(run)
    assert numbers["log10 FQ"] == pytest.approx(-7)
    assert numbers["refusals"] == 0.5
    assert numbers["real facts"] == 0.625
    del results["tofu_corrected Forget Quality"]  # the retrained model is compared with none
    assert numbers_of(run)["log10 FQ"] == 0


def test_every_number_of_the_table_is_explained():
    assert all(column.meaning for column in FORM.columns)


def test_masks_are_compared_at_the_same_small_ratio_and_settings():
    request = TableRequest(
        "tofu", demo.CONFIGS, demo.RESULTS, demo.DEMO_METHODS, demo.MASKS, seeds=demo.SEEDS
    )
    runs = plan_runs(request)
    assert len(runs) == 1 + len(demo.DEMO_METHODS) * len(demo.MASKS) * len(demo.SEEDS)
    assert {run.row.ratio for run in runs if run.row.mask in ("Random", "WAGLE")} <= {0.1, 0.2, 0.4}
    for method in demo.DEMO_METHODS:
        settings = {
            tuple(run.config[key] for key in ("unlearn.lr", "unlearn.num_epochs"))
            for run in runs
            if run.row.method == method
        }
        assert len(settings) == 1


def test_both_models_start_from_the_same_and_differ_in_the_forget_set_alone():
    full, retain = (
        load_config(
            ["-C", str(demo.CONFIGS / f"{name}.json")],
            FineTuneConfig,
            prog="demo",
            description="",
        )
        for name in ("fine_tune", "fine_tune_retain")
    )
    differing = {key for key in full if full[key] != retain[key]}
    assert differing == {"finetune.dataset_name", "finetune.output_dir"}
    assert (full["finetune.dataset_name"], retain["finetune.dataset_name"]) == (
        "Demo_full",
        "Demo_retain90",
    )


def test_another_model_in_the_folder_is_left_alone(tmp_path, monkeypatch):
    """A configuration that was run by hand with other settings must not make the demo fail."""
    monkeypatch.chdir(tmp_path)
    config = {
        "overall": {"model_name": "tiny"},
        "finetune": {
            **{"dataset_name": "Demo_forget01", "from_scratch": True, "max_steps": 2, "lr": 1e-3},
            "output_dir": "model",
        },
        "dataset": {"template": "llama2"},
    }
    monkeypatch.setattr(demo, "CONFIGS", tmp_path)
    path = tmp_path / "fine_tune.json"
    path.write_text(json.dumps(config))
    first = demo._make_model("fine_tune")
    assert str(first) == "model"
    before = (first / "model.safetensors").read_bytes()
    assert demo._make_model("fine_tune") == first
    config["finetune"]["lr"] = 2e-3
    path.write_text(json.dumps(config))
    second = demo._make_model("fine_tune")
    assert second != first
    assert demo._make_model("fine_tune") == second
    assert (first / "model.safetensors").read_bytes() == before
    assert demo._digest(first, second) not in (demo._digest(second, first), demo._digest(first))


def test_workers_are_asked_to_end_once(monkeypatch):
    asked = []
    worker = SimpleNamespace(terminate=lambda: asked.append("once"))
    monkeypatch.setattr(demo, "active_children", lambda: [worker])
    demo._ask_workers_to_end.cache_clear()
    running = Future()
    running.set_running_or_notify_cancel()

    def interrupted():
        with demo._passing_on():
            demo._PooledRun(Future()).interrupt()
            assert not asked  # it had not begun
            demo._PooledRun(running).interrupt()
            raise Terminated(signal.SIGTERM)

    with pytest.raises(Terminated):
        interrupted()
    assert asked == ["once"]
