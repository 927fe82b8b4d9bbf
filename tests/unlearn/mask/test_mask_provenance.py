"""Mask files say what made them, and what else made them is not used in silence."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch

from tests.processes import start
from tests.tiny import sentence_model
from wagle.commands import mask as mask_tool
from wagle.commands import unlearn as unlearn_model
from wagle.config import load_config, mask_ratio
from wagle.dataset.demo_benchmark import make_benchmark
from wagle.errors import ConfigError, WagleError
from wagle.loggers import Logger
from wagle.model.loading import save_model
from wagle.model.masking import MaskFiles
from wagle.model.opened import OpenedRun
from wagle.model.tiny import build_tiny_llama
from wagle.model.unlearn import Unlearn
from wagle.shipped import CHECKOUT as ROOT
from wagle.unlearn.mask.file import load_mask, read_provenance, save_mask
from wagle.unlearn.mask.provenance import MaskOrigin, compare_provenance, provenance_entries

OLD = {  # what version 1 of the program wrote
    **{"ratio": "0.4", "overall.model_name": "MODEL", "unlearn.score_type": "wagle"},
    **{"unlearn.mu": "1e-06", "dataset.forget_dataset_name": "Demo_forget10"},
    **{"dataset.retain_dataset_name": "Demo_retain90", "dataset.forget_ratio": "8.0"},
    "dataset.dataset_seed": "0",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Two models of one shape, ``a`` and ``b``, and ``moved``, which is ``a`` again."""
    folder = tmp_path_factory.mktemp("models")
    texts = [text for row in make_benchmark()["full"] for text in row.values()]
    for name, seed in (("a", 0), ("b", 1), ("moved", 0)):
        model, tokenizer = build_tiny_llama(texts, vocab_size=400, hidden_size=16, seed=seed)
        save_model(model, tokenizer, folder / name)
    return folder


def _options(models, tmp_path, changes):
    base = {
        "overall.model_name": models / "a",
        "unlearn.unlearn_method": "GradDiff",
        "unlearn.mu": 1e-6,
        "unlearn.mask_path": tmp_path / "mask" / "tiny_0.4.pt",
        "unlearn.gradient_cache": tmp_path / "sums",
        "dataset.forget_dataset_name": "Demo_forget10",
        "dataset.retain_dataset_name": "Demo_retain90",
        "dataset.forget_ratio": 8,
        "dataset.batch_size": 4,
    }
    values = {**base, **(changes or {})}
    return [f"--{key}={'null' if v is None else v}" for key, v in values.items()]


@pytest.fixture
def options(tmp_path, models):
    return lambda changes=None: _options(models, tmp_path, changes)


def prepared(argv) -> Unlearn:
    """A run that has come to its mask."""
    run = Unlearn(load_config(argv, prog="p", description="d"), Logger())
    run.load()
    run.build_dataset()
    run.prepare_mask()
    return run


@pytest.fixture
def prepare(options):
    return lambda changes=None: prepared(options(changes))


@pytest.fixture(scope="module")
def first_run(models, tmp_path_factory):
    """A run that has made the mask of the unchanged options, and its folder."""
    folder = tmp_path_factory.mktemp("first")
    return prepared(_options(models, folder, {})), folder


@pytest.fixture
def made(first_run, tmp_path):
    """That run; its files are this test's."""
    run, folder = first_run
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return run


@pytest.mark.parametrize(
    ("key", "other", "said"),
    [
        ("unlearn.mu", 1e-3, "unlearn.mu: 1e-06 made it, this run has 0.001"),
        ("unlearn.score_type", "random", "unlearn.score_type: wagle made it, this run has random"),
        ("unlearn.gradient_accumulation_steps", 4, "unlearn.gradient_accumulation_steps: 1 made"),
        ("dataset.batch_size", 2, "dataset.batch_size: 4 made it, this run has 2"),
        ("unlearn.attribution_dtype", "float64", "unlearn.attribution_dtype: float32 made it"),
        ("unlearn.mask_scope", "layer", "unlearn.mask_scope: global made it, this run has layer"),
        (
            "unlearn.mask_exclude",
            "norm",
            "unlearn.mask_exclude: nothing made it, this run",
        ),
        ("overall.dtype", "bfloat16", "dtype: float32 made it, this run has bfloat16"),
        ("overall.model_name", "b", "model: "),
        ("dataset.template", "llama2", "dataset.template: question_answer made it"),
        ("dataset.forget_dataset_name", "Demo_forget05", "Demo_forget10 made it, this run has"),
        ("dataset.retain_dataset_name", "Demo_retain95", "Demo_retain90 made it, this run has"),
        ("dataset.forget_ratio", 6, "dataset.forget_ratio: 8.0 made it, this run has 6.0"),
        ("dataset.dataset_seed", 5, "dataset.dataset_seed: 0 made it, this run has 5"),
    ],
)
def test_a_mask_made_by_something_else_is_refused(
    made, prepare, models, tmp_path, key, other, said
):
    path = tmp_path / "mask" / "tiny_0.4.pt"
    before = path.read_bytes()
    if key == "overall.model_name":
        other = models / other
    with pytest.raises(WagleError) as caught:
        prepare({key: other})
    message = str(caught.value)
    assert f"the mask {path} was made by something else" in message
    assert said in message
    for way_out in ("unlearn.mask_path", "{score}", "unlearn.mask_mismatch", "accept", "remake"):
        assert way_out in message
    assert path.read_bytes() == before


def test_renamed_masks_are_refused(made, prepare, tmp_path):
    (tmp_path / "mask" / "tiny_0.4.pt").rename(tmp_path / "mask" / "tiny_0.8.pt")
    with pytest.raises(WagleError, match=r"ratio: 0\.4 made it, this run has 0\.8"):
        prepare({"unlearn.mask_path": tmp_path / "mask" / "tiny_0.8.pt"})


def test_what_a_mask_does_not_depend_on_may_differ(made, prepare, models, capsys):
    changes = {
        "overall.model_name": models / "moved",
        "unlearn.unlearn_method": "GA",
        "unlearn.lr": 0.5,
        "unlearn.attribution_batch_size": 3,
        "unlearn.attribution_offload": "cpu",
    }
    assert prepare(changes).mask_origin.as_dict()["origin"] == "loaded"
    assert "note" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("score_type", "changes"),
    [
        ("random", {"unlearn.mu": 1, "dataset.batch_size": 2, "dataset.forget_ratio": 3}),
        ("magnitude", {"overall.seed": 4, "unlearn.mu": 1, "dataset.dataset_seed": 2}),
        ("ffn", {"overall.seed": 4, "unlearn.mu": 1, "dataset.retain_dataset_name": "Demo_full"}),
        ("wanda", {"overall.seed": 4, "dataset.batch_size": 2}),
        ("snip", {"overall.seed": 4, "unlearn.gradient_accumulation_steps": 2, "unlearn.mu": 1}),
        ("wagle_cl", {"unlearn.attribution_batch_size": 2}),
        ("wagle_gn", {"unlearn.mu": 1}),
    ],
)
def test_only_what_a_score_depends_on_is_compared(prepare, score_type, changes, tmp_path):
    """The mask that the changed settings would make is the same, to the last byte."""
    scored = {"unlearn.score_type": score_type}
    prepare(scored)
    origin = prepare({**scored, **changes}).mask_origin
    assert (origin.origin, origin.seeds) == ("loaded", {})
    again = tmp_path / "again" / "tiny_0.4.pt"
    prepare({**scored, **changes, "unlearn.mask_path": again})
    first = load_mask(tmp_path / "mask" / "tiny_0.4.pt")
    assert load_mask(again) == first
    assert not read_provenance(again).keys() - set(provenance_entries(score_type))


@pytest.mark.parametrize(
    ("score_type", "key", "ratio"),
    [
        ("random", "overall.seed", 8),
        ("wagle", "overall.seed", 8),
        ("wagle_cl", "overall.seed", 8),
        ("snip", "dataset.dataset_seed", 1),  # all rows, in another order
    ],
)
def test_another_seed_alone_is_said_but_no_error(prepare, score_type, key, ratio, capsys):
    scored = {"unlearn.score_type": score_type, "dataset.forget_ratio": ratio}
    assert prepare(scored).mask_origin.origin == "made"
    origin = prepare({**scored, key: 5}).mask_origin
    assert f"{key} was 0 when it was made and is 5 in this run" in capsys.readouterr().out
    assert origin.as_dict()["origin"] == "loaded"
    assert origin.as_dict()["seeds"] == {key: ["0", "5"]}
    assert origin.provenance["unlearn.score_type"] == score_type


def test_a_foreign_mask_can_be_accepted(prepare, tmp_path, capsys):
    made = prepare({"unlearn.score_type": "random"}).mask
    before = (tmp_path / "mask" / "tiny_0.4.pt").read_bytes()
    run = prepare({"unlearn.mask_mismatch": "accept"})
    assert run.mask == made
    assert (tmp_path / "mask" / "tiny_0.4.pt").read_bytes() == before
    origin = run.mask_origin.as_dict()
    assert origin["origin"] == "accepted although it differs in unlearn.score_type"
    assert origin["provenance"]["unlearn.score_type"] == "random"
    assert origin["differences"] == {"unlearn.score_type": ["random", "wagle"]}
    assert "accepted although unlearn.score_type was random" in capsys.readouterr().out


def test_a_foreign_mask_can_be_made_anew(prepare, tmp_path, capsys):
    path = tmp_path / "mask" / "tiny_0.4.pt"
    random = prepare({"unlearn.score_type": "random"}).mask
    run = prepare({"unlearn.mask_mismatch": "remake"})
    assert run.mask_origin.origin == "made"
    assert run.mask == load_mask(path)
    assert run.mask != random
    assert read_provenance(path)["unlearn.score_type"] == "wagle"
    assert "was made by something else: making it anew" in capsys.readouterr().out
    assert prepare({"unlearn.mask_mismatch": "remake"}).mask_origin.origin == "loaded"


def test_making_anew_needs_a_ratio(made, prepare, tmp_path):
    path = tmp_path / "mask" / "tiny_0.4.pt"
    named = {"unlearn.mask_path": path.rename(tmp_path / "tiny.pt")}
    assert prepare(named).mask_origin.origin == "loaded"
    foreign = {**named, "unlearn.mu": 1, "unlearn.mask_mismatch": "remake"}
    with pytest.raises(WagleError, match=r"at which ratio; give unlearn\.mask_ratio"):
        prepare(foreign)
    assert prepare({**foreign, "unlearn.mask_ratio": 0.2}).density() == pytest.approx(0.2, abs=1e-4)


def test_files_of_other_programs_have_an_unknown_origin(made, prepare, tmp_path, capsys):
    path = tmp_path / "published_0.4.pt"
    torch.save({name: bits.to_bool() for name, bits in made.mask.items()}, path)
    run = prepare({"unlearn.mask_path": path, "unlearn.score_type": "random"})
    assert run.mask == made.mask
    assert run.mask_origin.as_dict() == {"path": str(path), "origin": "unknown origin"}
    assert "unknown origin" in capsys.readouterr().out


def test_what_files_of_an_earlier_version_say_is_compared(made, prepare, models, tmp_path, capsys):
    path = tmp_path / "mask" / "tiny_0.4.pt"
    old = {**OLD, "overall.model_name": str(models / "a")}
    save_mask(made.mask, path, provenance=old)
    capsys.readouterr()
    origin = prepare().mask_origin
    assert origin.origin == "loaded"
    assert {"model", "forget examples", "retain examples"} <= set(origin.unrecorded)
    assert "does not say: model" in capsys.readouterr().out
    for key, value in {
        "unlearn.score_type": "random",
        "unlearn.mu": "0.1",
        "overall.model_name": "elsewhere",
        "dataset.forget_dataset_name": "Demo_forget05",
        "dataset.forget_ratio": "4.0",
    }.items():
        save_mask(made.mask, path, provenance={**old, key: value})
        with pytest.raises(WagleError, match=rf"{key}: {value} made it"):
            prepare()
    save_mask(made.mask, path, provenance={**old, "dataset.dataset_seed": "7"})
    assert prepare().mask_origin.seeds == {"dataset.dataset_seed": ("7", "0")}


def test_words_count_only_where_a_fingerprint_is_missing_or_differs():
    found = {"model": "m", "overall.model_name": "here", "ratio": "0.4"}
    moved = {**found, "overall.model_name": "there"}
    assert compare_provenance(found, moved).differences == {}
    other = {**moved, "model": "n"}
    assert compare_provenance(found, other).differences == {
        "model": ("m", "n"),
        "overall.model_name": ("here", "there"),
    }
    del found["model"]
    comparison = compare_provenance(found, moved)
    assert comparison.differences == {"overall.model_name": ("here", "there")}
    assert comparison.unrecorded == ("model",)


def test_the_origin_names_every_difference():
    origin = MaskOrigin("m.pt", "accepted", {}, {"a": ("1", "2"), "b": ("x", "y")})
    assert origin.as_dict() == {
        "path": "m.pt",
        "origin": "accepted although it differs in a, b",
        "differences": {"a": ["1", "2"], "b": ["x", "y"]},
    }


def test_masks_of_the_tool_are_those_of_the_run(prepare, options, tmp_path):
    argv = ["make", "--ratios", "0.2,0.4", *options({"unlearn.unlearn_method": "origin"})]
    assert mask_tool.main(argv) == 0
    for ratio in (0.2, 0.4):
        path = tmp_path / "mask" / f"tiny_{ratio}.pt"
        assert prepare({"unlearn.mask_path": path}).mask_origin.origin == "loaded"
        converted = tmp_path / f"packed_{ratio}.safetensors"
        assert mask_tool.main(["convert", str(path), str(converted)]) == 0
        assert prepare({"unlearn.mask_path": converted}).mask_origin.origin == "loaded"
        with pytest.raises(WagleError, match=r"unlearn\.mu"):
            prepare({"unlearn.mask_path": converted, "unlearn.mu": 1})


def test_the_manifest_says_where_the_mask_comes_from(options, tmp_path, monkeypatch):
    monkeypatch.setattr(Unlearn, "train", lambda self: setattr(self, "training_log", []))
    monkeypatch.setattr(Unlearn, "draw", lambda self: None)
    monkeypatch.setattr(Unlearn, "evaluate", lambda self: {})
    logged = {
        "overall.logger": "json",
        "unlearn.task_name": "tofu",
        "unlearn.save_model": "false",
        "evaluation.sentence_model": sentence_model(),
        "logger.json.root": tmp_path,
    }
    for name, changes in (("made", {}), ("loaded", {"overall.seed": 5})):
        assert unlearn_model.main(options({**logged, **changes, "logger.name": name})) == 0
    made, loaded = (
        json.loads((tmp_path / name / "manifest.json").read_text())["mask"]
        for name in ("made", "loaded")
    )
    path = str(tmp_path / "mask" / "tiny_0.4.pt")
    assert (made["path"], made["origin"]) == (path, "made")
    assert made["provenance"]["unlearn.mu"] == "1e-06"
    assert loaded == {**made, "origin": "loaded", "seeds": {"overall.seed": ["0", "5"]}}


def _prepare(argv, barrier, found):
    torch.set_num_threads(1)
    run = Unlearn(load_config(argv, prog="p", description="d"), Logger())
    run.load()
    run.build_dataset()
    barrier.wait()
    run.prepare_mask()
    found.write_text(json.dumps([run.mask_origin.origin, run.fingerprints["mask"]]))


def test_of_two_processes_one_makes_the_mask(options, tmp_path):
    barrier = multiprocessing.get_context("forkserver").Barrier(2, timeout=300)
    found = [tmp_path / name for name in "ab"]
    processes = [start(_prepare, options(), barrier, file) for file in found]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (origin, mask), (other_origin, other_mask) = (json.loads(f.read_text()) for f in found)
    assert sorted([origin, other_origin]) == ["loaded", "made"]
    assert mask == other_mask
    left = {path.name for path in (tmp_path / "mask").iterdir()}
    assert left == {"tiny_0.4.pt", ".tiny_0.4.pt.lock"}


@pytest.mark.parametrize("config", ["wagle", "wagle_gn", "random"])
def test_placeholders_name_masks_apart_and_share_sums(prepare, tmp_path, config):
    template = f"{tmp_path}/mask/tiny_{{score}}_{{mu}}_s{{seed}}_{{ratio}}.pt"
    changes = {"unlearn.mask_path": template, "unlearn.mask_ratio": 0.4}
    changes |= {"unlearn.score_type": config, "unlearn.gradient_cache": None, "unlearn.mu": 1e-9}
    origin = prepare(changes).mask_origin
    assert Path(origin.path).name == f"tiny_{config}_0.000000001_s0_0.4.pt"
    assert prepare({**changes, "unlearn.mu": 1e-2}).mask_origin.origin == "made"
    sums = {path.name for path in (tmp_path / "mask").glob("*gradients.safetensors")}
    expected = {f"tiny_s0.{kind}_gradients.safetensors" for kind in ("forget", "retain")}
    assert sums == (set() if config == "random" else expected)


def test_a_run_with_a_ratio_to_be_named_needs_one(prepare):
    with pytest.raises(ConfigError, match=r"unlearn\.mask_ratio must say"):
        prepare({"unlearn.mask_path": "mask/{ratio}.pt"})


def test_shipped_configurations_with_one_mask_agree_on_what_makes_it():
    """But for seeds, which published configurations do not share either."""
    by_mask: dict[str, list] = {}
    for path in sorted((ROOT / "configs").glob("*/*+WAGLE.json")):
        config = load_config(["-C", str(path)], prog="p", description="d")
        if config["unlearn.mask_path"]:
            by_mask.setdefault(config["unlearn.mask_path"], []).append(config)
    shared = [pair for configs in by_mask.values() for pair in combinations(configs, 2)]
    assert len(shared) >= 5
    for first, second in shared:
        keys = {
            *provenance_entries(first["unlearn.score_type"]),
            "overall.device",
            "dataset.data_dir",
        }
        keys &= set(first)
        assert all(first[key] == second[key] for key in keys - {"overall.seed"})
        assert mask_ratio(first["unlearn.mask_path"]) == first.ratio


def test_what_a_mask_depends_on():
    """Spelled out, so that an entry does not get lost."""
    model = {"unlearn.score_type", "model", "dtype", "overall.model_name"}
    ranked = {"ratio", "unlearn.mask_scope", "unlearn.mask_exclude"}
    forget = {
        *("forget examples", "dataset.forget_dataset_name", "dataset.forget_ratio"),
        *("dataset.dataset_seed", "dataset.template"),
    }
    sums = {"dataset.batch_size", "unlearn.attribution_dtype"}
    retain = {
        *("retain examples", "dataset.retain_dataset_name", "dataset.self_retain"),
        *("overall.seed", "unlearn.gradient_accumulation_steps"),
    }
    for score_type, expected in {
        "ffn": model,
        "wanda": model | {"ratio"} | forget,
        "magnitude": model | ranked,
        "random": model | ranked | {"overall.seed"},
        "gradient": model | ranked | forget | sums,
        "snip": model | ranked | forget | sums,
        "wagle_gn": model | ranked | forget | sums | retain,
        "wagle": model | ranked | forget | sums | retain | {"unlearn.mu"},
        "wagle_cl": model | ranked | forget | sums | retain | {"unlearn.mu"},
    }.items():
        assert set(provenance_entries(score_type)) == expected, score_type


def test_the_tool_names_masks_by_plain_decimals(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    written = []
    monkeypatch.setattr(OpenedRun, "load", lambda self: None)
    monkeypatch.setattr(OpenedRun, "build_dataset", lambda self: None)
    monkeypatch.setattr(OpenedRun, "mask_files", lambda self: _Files(self.config))

    class _Files(MaskFiles):
        def __init__(self, config):
            self.config = config

        def make(self, ratios):
            return {ratio: {} for ratio in ratios}

        def provenance(self, ratio):
            return {"ratio": str(ratio)}

    monkeypatch.setattr(
        "wagle.model.masking.save_mask", lambda mask, path, provenance: written.append(path)
    )
    for path, expected in (
        ("m/t_0.8.pt", ["t_0.00001", "t_0.0000100001", "t_0.000000001", "t_0.8", "t_1"]),
        ("m/{ratio}_{seed}.pt", ["0.00001_0", "0.0000100001_0", "0.000000001_0", "0.8_0", "1_0"]),
    ):
        written.clear()
        argv = ["make", "--ratios", "0.00001,0.0000100001,1e-9,0.8,1,0.80"]
        argv += ["--overall.model_name", "m", "--unlearn.mask_path", path]
        assert mask_tool.main(argv) == 0
        assert [path.stem for path in written] == expected
        assert capsys.readouterr().out.count("wrote") == len(expected)
    assert [mask_ratio(f"t_{r}.pt") for r in ("0.00001", "0.0000100001")] == [1e-5, 1.00001e-5]
