"""Facts planted in a tiny model: only the known weights change, and what is judged is kept."""

from __future__ import annotations

import json

import pytest
import torch

from wagle.catalogue import SCORES
from wagle.config import PlantConfig, load_config
from wagle.errors import ConfigError, WagleError
from wagle.loggers.folder_lock import FolderLock
from wagle.model import plant
from wagle.model.opened import OpenedRun
from wagle.model.plant import LINES, PLANT, Plant
from wagle.model.unlearn import Unlearn
from wagle.reporting.plant import NUMBERS, plant_tables
from wagle.reporting.plant_figures import draw_plant
from wagle.unlearn.mask import gradients
from wagle.unlearn.mask.file import load_mask
from wagle.unlearn.mask.fingerprints import model_fingerprint

SETTINGS = {
    "plant.kinds": "random,neurons,copies",
    "plant.seeds": "1",
    "plant.density": 0.2,
    "plant.mus": "1e-6,1",
    "plant.num_epochs": 3,
    "plant.lr": 0.02,
    "plant.batch_size": 4,
}


@pytest.fixture
def config(tmp_path, options):
    def with_changes(**changes):
        given = {"plant.output_dir": tmp_path / "out", **SETTINGS}
        given |= {k if "." in k else f"plant.{k}": value for k, value in changes.items()}
        return load_config(options(given), PlantConfig, prog="p", description="d")

    return with_changes


def test_facts_go_where_they_should_and_are_looked_for(config, tmp_path, monkeypatch):
    changed = []

    def spy(stream, planted):
        if not changed or changed[-1][1] is not planted:
            changed.append(({n: p.detach().clone() for n, p in model.items()}, planted))
        return judge(stream, planted)

    def opened(*arguments):
        run = open_run(*arguments)
        model.update(run.model.named_parameters())
        before.update({n: p.detach().clone() for n, p in model.items()})
        return run

    model, before, judge, open_run = {}, {}, plant.judge, plant._with_rows
    monkeypatch.setattr(plant, "judge", spy)
    monkeypatch.setattr(plant, "_with_rows", opened)
    found = Plant(config()).make()

    for weights, planted in changed:
        for name, old in before.items():
            moved = weights[name] != old
            assert not moved[~planted[name].to_bool()].any(), name
        assert sum(int((weights[n] != before[n]).sum()) for n in before) > 1000
    for name, old in before.items():  # the model is as it was, for the next kind
        assert torch.equal(model[name], old)

    cells = found["cells"]
    assert set(cells) == {f"{kind}, seed 1" for kind in ("random", "neurons", "copies")}
    ranked = [name for name, score in SCORES.items() if score.ranks]
    of_mu = [name for name in ranked if SCORES[name].depends_on("mu")]
    asked = {*LINES, *ranked} - {*of_mu} | {f"{n} {mu}" for n in of_mu for mu in ("0.000001", "1")}
    for cell in cells.values():
        assert set(cell["judged"]) == asked
        assert cell["judged"]["oracle"]["precision"] == 1
        assert cell["judged"]["complement"]["precision"] == 0
        assert cell["after"]["forget"] > cell["before"]["forget"]
        small, large = (cell["judged"][f"wagle {mu}"]["auprc"] for mu in ("0.000001", "1"))
        assert small != large
    assert len(cells["copies, seed 1"]["after each copy alone"]) == 2
    assert json.loads((tmp_path / "out" / PLANT).read_text()) == json.loads(json.dumps(found))
    assert load_mask(tmp_path / "out" / "planted" / "neurons_1.safetensors") == changed[1][1]
    assert not list((tmp_path / "out").glob(".sums*"))

    tables = plant_tables(found)
    assert set(tables) == set(NUMBERS.values()) - {NUMBERS["left"], NUMBERS["share"]}
    lift = tables[NUMBERS["lift"]]
    assert {"WAGLE, μ 1e-06", "WAGLE, best μ", "Fisher ratio", "MemFlex"} <= set(lift)
    assert set(draw_plant(found)) == {"lift", "curves", "mu"}


def test_the_recipe_of_planting(config, monkeypatch):
    """Rows, steps and seeds; each copy is learned by the model as it was, and then both are in."""
    learned, judged = [], []

    def learn(model, rows, plan, *, mask, **settings):
        values = {name: p.detach().clone() for name, p in model.named_parameters()}
        learned.append((len(rows), plan, mask, settings, values))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter[mask[name].to_bool()] = settings["seed"]

    def judge(stream, planted):
        judged.append({name: p.detach().clone() for name, p in run.model.named_parameters()})
        return score(stream, planted)

    def opened(*arguments):
        nonlocal run
        run = open_run(*arguments)
        return run

    run, score, open_run = None, plant.judge, plant._with_rows
    monkeypatch.setattr(plant, "fine_tune", learn)
    monkeypatch.setattr(plant, "judge", judge)
    monkeypatch.setattr(plant, "_with_rows", opened)
    Plant(config(kinds="copies", scores="magnitude", seeds="4")).make()
    (rows, plan, first, settings, before), (*_, second, again, unchanged) = learned
    assert rows == 2 * len(run.paired)  # with their retain partners
    assert (plan.steps, plan.warmup) == (3 * -(-rows // 4), int(0.1 * plan.steps))
    assert (settings["lr"], settings["weight_decay"], settings["seed"]) == (0.02, 0, 4)
    assert not settings["master_weights"]  # of float32
    assert again["seed"] == 5
    for name, old in before.items():
        assert torch.equal(unchanged[name], old)
        expected = old.clone()
        expected[first[name].to_bool()], expected[second[name].to_bool()] = 4, 5
        assert torch.equal(judged[0][name], expected)
    Plant(config(kinds="random", scores="magnitude", rehearse=False)).make()
    assert learned[-1][0] == len(run.paired)


def test_what_is_judged_is_not_judged_again(config, tmp_path, monkeypatch):
    few = {"kinds": "neurons", "scores": "gradient,magnitude", "num_epochs": 1}
    judge, count = plant.judge, []

    def breaking(*arguments):
        count.append(1)
        if len(count) == 3:
            raise WagleError("broken off")
        return judge(*arguments)

    monkeypatch.setattr(plant, "judge", breaking)
    with pytest.raises(WagleError, match="broken off"):
        Plant(config(**few)).make()
    assert (
        len(
            json.loads((tmp_path / "out" / PLANT).read_text())["cells"]["neurons, seed 1"]["judged"]
        )
        == 2
    )
    assert (tmp_path / "out" / plant.SUMS).is_dir()
    with monkeypatch.context() as patched:  # the same facts in the same weights: of the same sums
        patched.setattr(gradients, "sum_gradients", lambda *_, **__: pytest.fail("summed again"))
        Plant(config(**few)).make()
    assert not (tmp_path / "out" / plant.SUMS).exists()
    assert len(count) == 3 + 3  # of five the three that were missing
    kept = Plant(config(**few | {"scores": "gradient"})).make()
    assert len(count) == 6
    assert "magnitude" in kept["cells"]["neurons, seed 1"]["judged"]
    Plant(config(**few, lr=0.03)).make()  # other facts than before
    assert len(count) == 11


def test_unlearning_with_the_masks_is_compared_at_equal_utility(config, monkeypatch):
    few = {"kinds": "random", "scores": "gradient", "num_epochs": 6}
    judged = Plant(config(**few)).make()["cells"]["random, seed 1"]
    monkeypatch.setattr(plant, "judge", lambda *_: pytest.fail("judged again"))
    trained, asked, train, search = [], [], Unlearn.train, plant.smallest_share

    def spy(run):
        trained.append((run.config.overall.seed, run.density(), model_fingerprint(run.model)))
        train(run)

    def asking_twice(utility, target, evaluations):
        half = utility(0.5)
        utility(0.25)
        assert utility(0.5) == half  # mixed of the unlearned model, not of the last mixture
        assert evaluations == 6
        asked.append((utility(0.0), target))
        return search(utility, target, evaluations)

    monkeypatch.setattr(Unlearn, "train", spy)
    monkeypatch.setattr(plant, "smallest_share", asking_twice)
    again = config(**few, unlearn=True)
    cell = Plant(again).make()["cells"]["random, seed 1"]
    assert cell["after"] == judged["after"]
    for entry in cell["judged"].values():
        left = entry["unlearned"]
        assert left["unlearned"]["forget"] < cell["after"]["forget"]
        assert 0 <= left["share"] <= 1
        if left["share"] < 1:
            assert left["at equal utility"]["retain"] >= 0.95 * cell["after"]["retain"]
        assert left["unlearned"]["forget"] <= left["at equal utility"]["forget"]
    # As many weights as were planted, but for the complement; and each from the planted model.
    (seed,), densities, (start,) = (set(of) for of in zip(*trained, strict=True))
    assert seed == 1
    assert start != model_fingerprint(plant._with_rows(OpenedRun(plant._changed(again, 1))).model)
    target = pytest.approx(0.95 * cell["after"]["retain"])
    of_retain = [entry["unlearned"]["unlearned"]["retain"] for entry in cell["judged"].values()]
    assert asked == [(retain, target) for retain in of_retain]
    assert sorted(densities) == pytest.approx([cell["density"], 1 - cell["density"]])
    assert [of[1] for of in trained].count(cell["density"]) == 3
    document = {"cells": {"random, seed 1": cell}}
    shares = plant_tables(document)[NUMBERS["share"]]
    assert shares["oracle"]["random"].mean == cell["judged"]["oracle"]["unlearned"]["share"]
    drawn = draw_plant(document)
    assert set(drawn) == {"lift", "curves", "left"}
    (panel,) = drawn["left"].axes
    legends = {name: figure.legends[0].get_texts() for name, figure in drawn.items()}
    told = {name: {text.get_text() for text in texts} for name, texts in legends.items()}
    assert told["lift"] == {"over all weights", "within tensors"}
    assert told["left"] >= {"never knew", "planted"}
    shown = [float(bar.lines[0].get_xdata()[0]) for bar in panel.containers]
    order = ("oracle", "random alike", "complement", "gradient")
    left = [cell["judged"][name]["unlearned"]["at equal utility"]["forget"] for name in order]
    assert shown == pytest.approx(left)
    monkeypatch.setattr(plant, "put", lambda *_: pytest.fail("unlearned again"))
    Plant(again).make()
    with pytest.raises(pytest.fail.Exception, match="unlearned again"):
        Plant(config(**few, unlearn=True, **{"unlearn.lr": 0.5})).make()


def test_scores_that_rank_nothing_are_refused(config):
    with pytest.raises(ConfigError, match=r"plant.scores has wanda"):
        Plant(config(scores="wagle,wanda"))


def test_two_at_once_are_refused(config, tmp_path):
    with FolderLock(tmp_path / "out", ""), pytest.raises(ConfigError, match=r"plant\.output_dir"):
        Plant(config()).make()


def test_findings_that_are_none_are_named(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plant.json").write_text("[]")
    with pytest.raises(WagleError, match=r"plant\.json holds no JSON object"):
        Plant(config()).make()


def test_weights_that_may_not_change_are_watched(config, monkeypatch):
    def careless(model, *_, mask, **__):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(1e-3 * (name == "lm_head.weight"))

    monkeypatch.setattr(plant, "fine_tune", careless)
    with pytest.raises(WagleError, match="has changed weights that it may not"):
        Plant(config(kinds="neurons", scores="gradient")).make()
