"""The main command from configuration to run folder, on a tiny model and the embedded data."""

from __future__ import annotations

import json
import multiprocessing

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.processes import PRELOADED, Running
from wagle.commands import mask as mask_tool
from wagle.commands import unlearn as unlearn_model
from wagle.config import load_config
from wagle.errors import ConfigError, WagleError
from wagle.loggers import Logger
from wagle.model.unlearn import Unlearn
from wagle.shipped import CHECKOUT as ROOT
from wagle.unlearn.mask.file import load_mask
from wagle.unlearn.mask.statistics import density_table


def read(path):
    return json.loads(path.read_text())


def test_a_masked_run_leaves_a_complete_folder(tmp_path, options, model_folder):
    assert unlearn_model.main(options()) == 0
    folder = tmp_path / "runs" / "a"
    names = {p.name for p in folder.iterdir()}
    wanted = {"config.json", "manifest.json", "log.json", "checkpoints", "images"}
    assert names == wanted | {"mask.json", "tofu.json", "results.json"}
    pictures = {
        f"{name}.{form}" for name in ("training", "mask_density") for form in ("png", "pdf")
    }
    assert {p.name for p in (folder / "images").iterdir()} == pictures
    assert read(folder / "config.json")["unlearn"]["GA+FT"]["gamma"] == 1.0
    manifest = read(folder / "manifest.json")
    assert manifest["status"] == "finished"
    phases = {"load", "data", "mask", "train", "save", "draw", "evaluate"}
    assert set(manifest["seconds"]) == phases
    assert set(manifest["fingerprints"]) == {"model", "forget", "retain", "mask"}
    assert manifest["certificate"]["holds"]
    assert manifest["certificate"]["unselected"] > 0
    assert {"loss", "grad_norm", "step"} <= set(read(folder / "log.json")[0])
    results = read(folder / "results.json")
    assert all(0 <= v <= 1 for k, v in results.items() if k.startswith(("UE", "UT")))

    before = AutoModelForCausalLM.from_pretrained(model_folder)
    after = AutoModelForCausalLM.from_pretrained(folder / "checkpoints")
    AutoTokenizer.from_pretrained(folder / "checkpoints")
    shapes = {name: p.shape for name, p in before.named_parameters()}
    mask = load_mask(tmp_path / "mask" / "tiny_0.4.pt", shapes)
    total = sum(p.numel() for p in before.parameters())
    assert sum(m.count() for m in mask.values()) == int(total * 0.4)
    assert read(folder / "mask.json")["by layer and kind"] == density_table(mask)
    changed = 0
    for (name, p), q in zip(before.named_parameters(), after.parameters(), strict=True):
        frozen = ~mask[name].to_bool()
        assert torch.equal(p[frozen], q[frozen]), name
        changed += int((p != q).sum())
    assert changed > 0.9 * int(total * 0.4)


def test_published_enforcement_lets_frozen_weights_decay(options):
    before, after, mask = train(options, {"unlearn.mask_enforcement": "gradient"})
    name = "model.layers.0.mlp.up_proj.weight"
    p, q = before[name], after[name]
    frozen = ~mask[name].to_bool()
    # two steps of the linear schedule after one of warm-up: learning rates 0 and lr
    torch.testing.assert_close(q[frozen], p[frozen] * (1 - 1e-2 * 0.1), rtol=1e-6, atol=0)


def test_the_same_seed_gives_the_same_mask_and_results(tmp_path, options):
    unlearn_model.main(options())
    other = {"unlearn.mask_path": tmp_path / "again" / "tiny_0.4.pt", "logger.name": "b"}
    unlearn_model.main(options({**other, "dataset.num_workers": 2}))
    masks = [torch.load(tmp_path / d / "tiny_0.4.pt") for d in ("mask", "again")]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    runs = [tmp_path / "runs" / name for name in "ab"]
    results = [read(run / "results.json") for run in runs]
    for result in results:
        del result["mask"]
    assert results[0] == results[1]
    assert read(runs[0] / "tofu.json") == read(runs[1] / "tofu.json")


@pytest.fixture
def forkserver():
    """Processes begin without what this one has in memory, as they do from Python 3.14 on."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload(PRELOADED)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_loader_processes_may_start_afresh(tmp_path, options, forkserver):
    changes = {"unlearn.unlearn_method": "PO", "unlearn.mask_path": None}
    changes |= {"unlearn.task_name": "none", "unlearn.save_model": "false"}
    for workers in (0, 1):
        name = {"logger.name": f"{workers} workers", "dataset.num_workers": workers}
        assert unlearn_model.main(options({**changes, **name})) == 0
    here, there = (read(tmp_path / "runs" / f"{n} workers" / "log.json") for n in (0, 1))
    assert [step.get("loss") for step in here] == [step.get("loss") for step in there]
    assert here[0]["loss"] > 0


def test_a_finished_run_is_not_repeated_and_not_mixed_with_another(tmp_path, options, capsys):
    unlearn_model.main(options())
    stamp = (tmp_path / "runs" / "a" / "results.json").stat().st_mtime_ns
    assert unlearn_model.main(options()) == 0
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="another configuration"):
        unlearn_model.main(options({"unlearn.lr": 1e-3}))
    assert (tmp_path / "runs" / "a" / "results.json").stat().st_mtime_ns == stamp


def test_saved_models_evaluate_the_same_without_training(tmp_path, options):
    unlearn_model.main(options())
    again = {"unlearn.resume_path": tmp_path / "runs" / "a" / "checkpoints", "logger.name": "b"}
    unlearn_model.main(options(again))
    first, second = (read(tmp_path / "runs" / name / "tofu.json") for name in "ab")
    assert first == second
    assert not (tmp_path / "runs" / "b" / "checkpoints").exists()


def test_none_logger_writes_nothing(tmp_path, options):
    changes = {"overall.logger": "none", "unlearn.unlearn_method": "origin"}
    assert unlearn_model.main(options(changes)) == 0
    assert [p.name for p in tmp_path.iterdir()] == []


def test_a_mask_of_another_model_stops_the_run(tmp_path, options):
    (tmp_path / "mask").mkdir()
    torch.save({"w": torch.ones(2, dtype=torch.bool)}, tmp_path / "mask" / "tiny_0.4.pt")
    with pytest.raises(WagleError, match="does not fit the model"):
        unlearn_model.main(options())
    folder = tmp_path / "runs" / "a"
    assert read(folder / "manifest.json")["status"] == "failed"
    assert "does not fit" in read(folder / "manifest.json")["error"]
    assert not (folder / "checkpoints").exists()


def train(options, changes):
    """Train with these options but without evaluation; weights before and after, and the mask."""
    config = load_config(options(changes), prog="p", description="d")
    run = Unlearn(config, Logger())
    torch.manual_seed(0)
    run.load()
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.build_dataset()
    run.prepare_mask()
    run.train()
    return before, dict(run.model.named_parameters()), run.mask


@pytest.mark.parametrize("method", ["GA+KL", "DPO+FT", "RMU"])
def test_lora_trains_adapters_whatever_the_method(options, method):
    changes = {"unlearn.unlearn_method": method, "unlearn.mask_path": None}
    changes |= {"unlearn.use_lora": True, "unlearn.RMU.layer": 1, "unlearn.GA+KL.gamma": 0.5}
    before, after, _ = train(options, changes)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if "q_proj" in n or "v_proj" in n}


def test_sophia_trains_all_weights_where_there_is_no_mask(options):
    before, after, _ = train(options, {"unlearn.mask_path": None, "unlearn.sophia": True})
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_rmu_without_a_mask_updates_its_layers_alone(options, capsys):
    changes = {"unlearn.unlearn_method": "RMU", "unlearn.RMU.layer": 0, "unlearn.mask_path": None}
    before, after, _ = train(options, {**changes, "unlearn.mask_enforcement": "gradient"})
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.startswith("model.layers.0.mlp.")}
    kept = sum(before[name].nbytes for name in changed)
    assert f"RMU keeps original weights, {kept:,} bytes" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"unlearn\.RMU\.layer is 7"):
        train(options, {"unlearn.unlearn_method": "RMU", "unlearn.RMU.layer": 7})


@pytest.mark.parametrize(
    ("changes", "share", "reason"),
    [
        ({}, 0.4, None),
        ({"unlearn.mask_enforcement": "gradient", "unlearn.weight_decay": 0}, 0.4, None),
        ({"unlearn.mask_enforcement": "gradient"}, 1, "lets every weight decay"),
        ({"unlearn.mask_path": None}, 1, "a second set of all weights"),
    ],
)
def test_the_reference_keeps_what_training_may_change(options, capsys, changes, share, reason):
    """With the published enforcement and weight decay that is every weight."""
    changes = {"unlearn.unlearn_method": "KL", "unlearn.KL.gamma": 0.5, **changes}
    config = load_config(options(changes), prog="p", description="d")
    run = Unlearn(config, Logger())
    run.load()
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    opened = []
    run.build_dataset()
    run.prepare_mask()
    open_reference = run._reference

    def watched(model):
        opened.append(open_reference(model))
        return opened[0]

    run._reference = watched
    run.train()
    with opened[0]() as original:
        for name, parameter in original.named_parameters():
            assert torch.equal(parameter, before[name]), name
    assert any(not torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    total = sum(weights.numel() for weights in before.values())
    output = capsys.readouterr().out
    assert f"KL keeps original weights, {4 * int(share * total):,} bytes" in output
    assert reason is None or reason in output


@pytest.mark.parametrize("score_type", ["wagle_cl", "snip", "wanda", "ffn", "magnitude"])
def test_masks_of_other_scores(options, tmp_path, score_type):
    path = tmp_path / score_type / "m_0.5.safetensors"
    _, _, mask = train(options, {"unlearn.mask_path": path})
    density = sum(m.count() for m in mask.values()) / sum(m.numel for m in mask.values())
    if score_type in ("wagle_cl", "snip", "magnitude"):
        assert density == pytest.approx(0.5, abs=1e-4)
    elif score_type == "ffn":
        selected = {n for n, m in mask.items() if m.count()}
        assert selected == {n for n in mask if "mlp" in n or "post_attention" in n}
        assert all(mask[n].count() == mask[n].numel for n in selected)
    else:
        linear = mask["model.layers.0.mlp.down_proj.weight"].to_bool()
        assert (linear.sum(dim=1) == linear.shape[1] // 2).all()
        assert mask["model.norm.weight"].count() == mask["model.norm.weight"].numel


def test_the_mask_tool_makes_several_ratios_at_once(options, tmp_path):
    argv = ["make", "--ratios", "0.2,0.6", "--figure", str(tmp_path / "scores.png")]
    argv += options({"unlearn.unlearn_method": "origin"})
    assert mask_tool.main(argv) == 0
    folder = tmp_path / "mask"
    assert {p.name for p in tmp_path.glob("scores.*")} == {"scores.png", "scores.pdf"}
    small, large = (load_mask(folder / f"tiny_{ratio}.pt") for ratio in (0.2, 0.6))
    total = sum(m.numel for m in large.values())
    assert sum(m.count() for m in small.values()) == int(total * 0.2)
    assert sum(m.count() for m in large.values()) == int(total * 0.6)
    assert all(not (small[n].to_bool() & ~large[n].to_bool()).any() for n in small)
    # the main command makes the same mask
    _, _, mask = train(options, {"unlearn.mask_path": folder / "alone" / "tiny_0.2.pt"})
    assert mask == small


def test_without_a_hub_the_paper_configuration_says_what_to_do(tmp_path):
    config = str(ROOT / "configs/tofu/GradDiff+WAGLE.json")
    argv = ["-C", config, "--logger.json.root", str(tmp_path)]
    status, output = Running("unlearn", argv, tmp_path).end()
    assert status == 1
    assert "hub cannot be reached" in " ".join(output.split())
    assert "--overall.model_name" in output
    assert "--dataset.data_dir" in output
    assert "Traceback" not in output
    assert "Retrying" not in output  # the hub's libraries would, for minutes


def test_too_few_rows_for_a_step_are_refused_before_the_mask_is_made(tmp_path, options):
    changes = {"unlearn.max_steps": None, "dataset.forget_ratio": 9, "dataset.batch_size": 16}
    with pytest.raises(ConfigError, match="1 epochs of 9 rows make no whole step of 16 rows"):
        unlearn_model.main(options(changes))
    assert not (tmp_path / "mask").exists()


@pytest.mark.parametrize("logger", ["none", "json"])
def test_what_diverges_ends_at_its_step_and_leaves_no_model(tmp_path, options, logger):
    changes = {"overall.logger": logger, "unlearn.lr": 1e30, "unlearn.max_steps": 100}
    changes |= {"unlearn.mask_path": None, "unlearn.unlearn_method": "GA"}
    with pytest.raises(WagleError, match=r"training diverged at step 3: the .* is nan"):
        unlearn_model.main(options(changes))  # the first entry of the log is at step 5
    assert not list(tmp_path.rglob("checkpoints"))


def test_rows_that_will_not_be_read_are_said_before_training(options, capsys):
    changes = {"unlearn.max_steps": None, "unlearn.num_epochs": 5, "dataset.forget_ratio": 10}
    changes |= {"unlearn.gradient_accumulation_steps": 2, "unlearn.mask_path": None}
    run = Unlearn(load_config(options(changes), prog="p", description="d"), Logger())
    run.evaluate = dict
    run.run()
    output = capsys.readouterr().out
    assert "10 rows in 6 steps of 8 rows (batch size 4 × accumulation 2)" in output
    assert "reads only 30 of the 50 rows" in output
    assert run.training_log[-1]["step"] == 6
