"""Fine-tuning as the command does it: masters, rows read, and the record of the run."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from transformers import AutoModelForCausalLM

from tests.tiny import make_model
from wagle.config import FineTuneConfig, load_config
from wagle.errors import ConfigError
from wagle.model import fine_tuning
from wagle.model.fine_tuning import fine_tune_from_config

ROWS = [
    {"question": f"Who wrote {title}?", "answer": f"{name} wrote it by the river."}
    for title, name in zip(
        ["Sea", "Rain", "Snow", "Wind", "Fog", "Hail", "Ice"], "ABCDEFG", strict=True
    )
]
OPTIONS = {
    "overall.model_name": "model",
    "dataset.data_dir": "data",
    "finetune.dataset_name": "Tofu_full",
    "finetune.batch_size": 2,
    "finetune.gradient_accumulation_steps": 3,
    "finetune.num_epochs": 12,
    "finetune.lr": 1e-4,
}


@pytest.fixture
def fine_tune(tmp_path, tokenizer, monkeypatch):
    """Runs the command; returns its parameters before and after, and its record."""
    monkeypatch.chdir(tmp_path)
    make_model().bfloat16().save_pretrained("model")
    tokenizer.save_pretrained("model")
    (tmp_path / "data" / "TOFU").mkdir(parents=True)
    (tmp_path / "data" / "TOFU" / "full.json").write_text("\n".join(map(json.dumps, ROWS)))

    def run(output, **changes):
        options = {**OPTIONS, "finetune.output_dir": output}
        options |= {name.replace("__", "."): value for name, value in changes.items()}
        argv = [f"--{name}={value}" for name, value in options.items()]
        config = load_config(argv, FineTuneConfig, prog="p", description="d")
        folder = fine_tune_from_config(config)
        models = (AutoModelForCausalLM.from_pretrained(name) for name in ("model", folder))
        before, after = (dict(model.float().named_parameters()) for model in models)
        return before, after, json.loads((folder / fine_tuning.RECORD).read_text())

    return run


def moved(before, after):
    return {name: before[name] != after[name] for name in before}


def test_bfloat16_has_masters_and_moves_what_float32_moves(fine_tune):
    recipe = {"finetune__batch_size": 7, "finetune__gradient_accumulation_steps": 1}
    recipe |= {"finetune__num_epochs": 24, "overall__dtype": "bfloat16"}
    before, exact, _ = fine_tune("float32", **{**recipe, "overall__dtype": "float32"})
    _, careful, record = fine_tune("masters", **recipe)
    _, careless, _ = fine_tune("none", **recipe, finetune__master_weights=False)
    assert record["resolved"]["finetune.master_weights"] is True
    name = "model.layers.0.mlp.up_proj.weight"
    rounded = {key: value.bfloat16().float() for key, value in exact.items()}
    wanted, found, lost = (
        float(moved(before, after)[name].float().mean()) for after in (rounded, careful, careless)
    )
    assert wanted > 0.85
    assert found == pytest.approx(wanted, abs=0.05)
    assert lost < 0.6
    # and to where float32 moves it, up to a few roundings
    error = [(after[name] - exact[name]).norm() for after in (careful, careless)]
    assert error[0] < 0.5 * error[1]


def test_masters_are_for_16_bit_weights(fine_tune):
    _, _, record = fine_tune("a", overall__dtype="float32", finetune__max_steps=2)
    assert record["resolved"]["finetune.master_weights"] is False


def test_every_row_is_read_in_every_epoch(fine_tune, monkeypatch, capsys):
    read = Counter()
    get = fine_tuning.EncodedRows.__getitem__
    monkeypatch.setattr(
        fine_tuning.EncodedRows,
        "__getitem__",
        lambda rows, index: read.update([index]) or get(rows, index),
    )
    _, _, record = fine_tune("a", finetune__num_epochs=3)
    assert read == dict.fromkeys(range(7), 3)
    assert record["log"][-1]["step"] == 6  # of 3 + 1 batches
    output = capsys.readouterr().out
    assert "7 rows in 6 steps of 6 rows (batch size 2 × accumulation 3)" in output
    assert "reads 21 rows, 3 epochs" in output


def test_a_run_that_would_train_nothing_is_refused_before_the_model_is_loaded(fine_tune):
    with pytest.raises(ConfigError, match="nothing would be trained"):
        fine_tune(
            "a", finetune__num_epochs=1, finetune__batch_size=8, overall__model_name="nowhere"
        )


def test_the_share_of_steps_that_warm_up_is_the_key_s(fine_tune):
    log = fine_tune("a", finetune__warmup_ratio=0.5, finetune__max_steps=8)[2]["log"]
    rates = [entry["learning_rate"] for entry in log[:-1]]
    assert rates == pytest.approx([1e-4 * step / 4 for step in (0, 1, 2, 3, 4, 3, 2, 1)])
