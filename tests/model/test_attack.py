"""Attacks: what they say of models about which it is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from unlearning import make_mask

from tests.tiny import make_model
from wagle.commands import attack as command
from wagle.config import AttackConfig, load_config
from wagle.errors import WagleError
from wagle.loggers.files import write_json
from wagle.loggers.run_folder import ATTACK, CONFIG, FINISHED, write_manifest
from wagle.metrics.benchmark import Metric
from wagle.model import attack
from wagle.model.attack import Attack
from wagle.model.loading import save_model
from wagle.model.relearning import (
    PRESETS,
    alike,
    chosen_rows,
    mean_gap,
    relearn,
    robustness,
    steps_until,
)
from wagle.model.tiny import build_tiny_llama
from wagle.optim.bitmask import BitMask
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
    # Nor does an attempt that was broken off lose what is there of parts that it has not come to.
    assert attack_numbers(Attack(run, config_of(**settings)).make()) == attack_numbers(found)


def mask_of(model, share):
    generator = torch.Generator().manual_seed(0)
    return {
        name: BitMask.from_bool(torch.rand(p.shape, generator=generator) < share)
        for name, p in model.named_parameters()
    }


@pytest.fixture
def learned(monkeypatch):
    """How often a model has learned again, one entry each."""
    models = []

    def learns(model, *rest, **settings):
        models.append(model)
        return relearn(model, *rest, **settings)

    monkeypatch.setattr(attack, "relearn", learns)
    return models


def test_models_that_runs_are_compared_with_learn_once(run, model_folder, learned, capsys):
    """Retain-only and original model are the same one here: of three curves two are learned."""
    settings = {"retain_model": model_folder, "quantization": "", "points": 2, "lr": 0.01}
    first = Attack(run, config_of(**settings)).make()
    assert len(learned) == 2
    other = run.with_name("other")
    shutil.copytree(run, other, ignore=shutil.ignore_patterns(ATTACK))
    again = Attack(other, config_of(**settings)).make()
    assert again == first
    assert [len(learned), capsys.readouterr().out.count("curve is that in")] == [3, 3]
    # Of other settings nothing is taken; nor what lies where it belongs and is of another origin.
    Attack(other, config_of(**settings | {"seed": 1})).make()
    assert len(learned) == 5
    kept = sorted(Path(".cache/wagle/relearning").iterdir())
    assert len(kept) == 2
    for one, path in zip(reversed([path.read_bytes() for path in kept]), kept, strict=True):
        path.write_bytes(one)
    (other / ATTACK).unlink()
    assert Attack(other, config_of(**settings)).make() == first
    assert len(learned) == 7


def test_curves_confined_to_a_mask_are_those_of_that_mask(run, model_folder, learned):
    settings = {"retain_model": model_folder, "quantization": "", "points": 2, "lr": 0.01}
    attacked, shares = Attack(run, config_of(**settings, where="mask")), []
    for share in (0.3, 0.3, 0.6):
        attacked.mask = mask_of(attacked.run.model, share)
        found = attacked.make()["parts"]["relearning open_unlearning mask"]
        assert found["curves"]["retain-only"] == found["curves"]["unlearned"]
        shares.append(found)
        (run / ATTACK).unlink()
    assert shares[0] == shares[1]
    assert shares[0]["curves"] != shares[2]["curves"]
    assert len(learned) == 5  # the run's model each time, the retain-only one with each mask


def test_benign_rows_are_known_by_what_they_say(run, learned):
    attacked = Attack(run, config_of(relearning="benign", quantization="", points=2))
    rows = attacked.first_rows("Demo_retain90", 21)
    for number, attacked._benign in ((2, rows[:20]), (2, rows[:20]), (4, rows[1:])):
        attacked.make()
        assert len(learned) == number


def test_a_part_says_the_same_whatever_was_measured_before_it(run, model_folder):
    """The original's knowledge is the threshold's, also where only other models learn."""
    settings = {"quantization": "", "points": 2}
    both, alone = [
        Attack(run, config_of(**settings, where=where)) for where in ("all,mask", "mask")
    ]
    name = "relearning open_unlearning mask"
    for attacked in (both, alone):
        attacked.mask = mask_of(attacked.run.model, 0.3)
    parts = both.make()["parts"]
    (run / ATTACK).unlink()
    assert alone.make()["parts"][name] == parts[name]
    original = parts["relearning open_unlearning all"]["curves"]["original"]
    assert {part["threshold"] for part in parts.values()} == {0.5 * original[0][1]}


def test_what_other_kinds_have_found_stays_where_settings_are_the_same(run, learned):
    Attack(run, config_of(quantization="int8", relearning="open_unlearning", points=2)).make()
    first = json.loads((run / ATTACK).read_text())["parts"]
    found = Attack(run, config_of(quantization="nf4", relearning="benign", points=2)).make()
    assert list(found["parts"]) == [
        *("quantization nf4", "relearning benign all"),
        *("quantization int8", "relearning open_unlearning all"),
    ]
    assert json.loads((run / ATTACK).read_text()) == json.loads(json.dumps(found))
    assert {name: found["parts"][name] for name in first} == first
    found = Attack(run, config_of(quantization="", relearning="benign", points=3)).make()
    assert set(found["parts"]) == {  # few bits know no points
        *("relearning benign all", "quantization int8", "quantization nf4"),
    }


def test_named_models_are_looked_at_before_any_work(run):
    for name, width in (("tokens", 16), ("size", 8)):
        save_model(
            *build_tiny_llama(["other texts"], vocab_size=300, hidden_size=width), Path(name)
        )
    for settings, message in (
        ({"retain_model": "no"}, "retain-only model 'no' cannot be .*--attack.retain_model FOLDER"),
        ({"original_model": "size"}, "the original model size is of another architecture or size"),
        ({"retain_model": "tokens"}, "the retain-only model tokens has another tokenizer"),
    ):
        with pytest.raises(WagleError, match=message):
            Attack(run, config_of(**settings))


def test_the_last_run_is_looked_at_before_work_on_the_first_begins(run, monkeypatch):
    monkeypatch.setattr(attack, "Attack", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(WagleError, match="nowhere is no run folder"):
        command.main([str(run), "nowhere"])


def test_tables_fit_a_terminal_and_have_no_empty_columns(run, monkeypatch, capsys):
    curves = {name: [(0, 0.5), (1, 0.6)] for name in ("unlearned", "retain-only", "original")}
    found = {
        "metric": "m",
        "parts": {
            "quantization nf4": {"before": {"forget": 0.5}, "after": {"forget": 0.5}, "Q": 1.0},
            "relearning open_unlearning complement": {"curves": curves, "R": 1.0, "gap": 0.1},
        },
    }
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(attack.Attack, "__init__", lambda *_: None)
    monkeypatch.setattr(attack.Attack, "make", lambda _: found)
    command.main([str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if str(run) in line] == [
        f"{run}: few bits",
        f"{run}: relearning",
    ]
    words = [line.split() for line in lines]
    assert ["before", "after", "Q"] in words
    assert ["before", "after", "retain-only", "original", "R", "gap"] in words


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
