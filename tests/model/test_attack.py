"""Attacks: what they say of models about which it is known."""

from __future__ import annotations

import json

import pytest
import torch
from unlearning import make_mask

from tests.tiny import make_model
from wagle.config import AttackConfig, load_config
from wagle.errors import WagleError
from wagle.loggers.files import write_json
from wagle.loggers.run_folder import ATTACK, CONFIG, FINISHED, write_manifest
from wagle.metrics.benchmark import Metric
from wagle.model import attack
from wagle.model.attack import Attack
from wagle.model.relearning import (
    PRESETS,
    alike,
    chosen_rows,
    mean_gap,
    robustness,
    steps_until,
)
from wagle.reporting.attack_figures import draw_attacks
from wagle.reporting.attacks import attack_lines, attack_numbers
from wagle.reporting.planned import TableRow
from wagle.reporting.tables import Form, Outcome, aggregate
from wagle.unlearn.mask.statistics import complement, random_alike


def test_numbers_by_hand():
    unlearned, retain = [(0, 0.1), (2, 0.3), (4, 0.5)], [(0, 0.1), (4, 0.2)]
    assert robustness(unlearned, retain) == pytest.approx(0.25)
    assert robustness(retain, unlearned) == 1
    assert robustness([(0, 0.2), (1, 0.1)], retain) == 1  # nothing is learned again
    assert alike(1, 3) == 0.5
    assert alike(0, 0) == 1
    # Over two steps each the gap rises from 0 to 0.15, and from there to 0.3.
    assert mean_gap(unlearned, retain) == pytest.approx(0.15)
    assert (steps_until(unlearned, 0.3), steps_until(unlearned, 0.6)) == (2, None)


def test_presets_are_what_their_sources_say():
    recipes = {n: (p.lr, p.batch_size, p.epochs, p.steps, p.marks) for n, p in PRESETS.items()}
    assert recipes == {
        "open_unlearning": (2e-5, 16, 1, -1, ()),
        "smooth_wmdp": (2e-5, 4, 3, -1, ()),
        "muse_books": (1e-5, 2, 0, 100, (50, 75)),
        "muse_news": (1e-5, 2, 0, 150, (100, 125)),
        "partial": (2e-5, 16, 1, -1, ()),
        "benign": (2e-5, 16, 1, -1, ()),
    }
    taught, asked = chosen_rows(10, PRESETS["partial"], 0)
    assert len(taught) == 5
    assert sorted(taught + asked) == list(range(10))
    assert [len(part) for part in chosen_rows(40, PRESETS["smooth_wmdp"], 0)] == [20, 40]


def test_random_masks_have_the_density_of_each_tensor(monkeypatch):
    mask = make_mask(make_model())
    drawn = random_alike(mask, 0)
    assert {n: m.count() for n, m in drawn.items()} == {n: m.count() for n, m in mask.items()}
    assert drawn == random_alike(mask, 0)
    assert drawn != random_alike(mask, 1)
    for name, bits in complement(mask).items():
        assert torch.equal(bits.to_bool(), ~mask[name].to_bool())


@pytest.fixture
def run(tmp_path, options):
    """The evaluation of a model without training, as far as an attack reads it."""
    argv = options(
        {
            "unlearn.unlearn_method": "origin",
            "unlearn.mask_path": None,
            "dataset.forget_ratio": 20,  # two steps of 16 rows
        }
    )
    folder = tmp_path / "run"
    write_json(folder / CONFIG, load_config(argv, prog="p", description="d").as_dict())
    write_manifest(folder, {"status": FINISHED})
    return folder


def config_of(**changes):
    words = [f"--attack.{key}={value}" for key, value in changes.items()]
    return load_config(words, AttackConfig, prog="p", description="d")


def test_the_retain_only_model_has_r_1_and_an_unchanged_one_q_1(run, model_folder, monkeypatch):
    monkeypatch.setattr(attack, "quantize_model", lambda model, kind: None)
    settings = {"retain_model": model_folder, "quantization": "nf4", "lr": 0.01, "points": 2}
    found = Attack(run, config_of(**settings)).make()
    assert attack_numbers(found) == {"attack R": 1, "attack Q": 1}
    part = found["parts"]["relearning open_unlearning all"]
    curves = part["curves"]
    assert curves["unlearned"] == curves["retain-only"] == curves["original"]
    assert curves["unlearned"][-1][1] > curves["unlearned"][0][1]
    assert json.loads((run / ATTACK).read_text())["parts"] == json.loads(json.dumps(found["parts"]))
    assert set(attack_lines(found)) == {"nf4", "open_unlearning all"}
    assert set(draw_attacks(found)) == {"relearning_open_unlearning"}
    # What has been measured is taken over, unless it was measured with other settings.
    monkeypatch.setattr(attack, "relearn", lambda *_, **__: pytest.fail("measured again"))
    again = Attack(run, config_of(**settings)).make()
    assert attack_numbers(again) == attack_numbers(found)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        Attack(run, config_of(**settings | {"lr": 0.02})).make()


def test_where_needs_a_mask(run):
    with pytest.raises(WagleError, match="has no mask file"):
        Attack(run, config_of(where="mask", quantization="")).make()


def test_tables_get_columns_of_attacked_runs():
    rows = [TableRow("GradDiff", mask, None) for mask in ("Dense", "WAGLE")]
    values = [{"a": 1.0}, {"a": 2.0, "attack R": 0.5, "attack Q": 1.0}]
    form = Form("", (Metric("a", "a number"),))
    outcomes = [Outcome(row, 0, "", v) for row, v in zip(rows, values, strict=True)]
    table = aggregate(form, outcomes)
    assert [column.name for column in table.form.columns] == ["a", "attack R", "attack Q"]
    assert [cell and cell.mean for cell in table.lines[1].cells] == [2, 0.5, 1]
    assert aggregate(form, outcomes[:1]).form == form
