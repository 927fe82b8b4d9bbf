"""Models mixed with the original, the search along them, and runs with random masks."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import make_model
from wagle.commands import compare, unlearn
from wagle.config import load_config
from wagle.errors import WagleError
from wagle.loggers import Logger
from wagle.loggers.run_folder import FINISHED, write_manifest
from wagle.metrics.benchmark import Headline, Metric
from wagle.metrics.tofu_benchmark import TOFU
from wagle.model.equal_utility import Mixed, Point, mix, search_equal_utility, smallest_share
from wagle.model.loading import load_model, save_model
from wagle.model.null_masks import NullRun, run_null_masks
from wagle.reporting.null_distribution import p_value
from wagle.reporting.runs import read_run
from wagle.unlearn.mask.file import load_mask
from wagle.unlearn.mask.statistics import density_by, random_alike


def test_the_smallest_share_is_found_by_bisection():
    asked = []

    def utility(share):
        asked.append(share)
        return share**2

    found = smallest_share(utility, 0.3, 6)
    assert asked == [0, 0.5, 0.75, 0.625, 0.5625, 0.53125, 0.546875]
    assert found == 0.5625  # reached at 0.5477
    assert smallest_share(lambda share: 1, 1, 6) == 0
    assert smallest_share(lambda share: 0, 1, 6) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixtures_leave_equal_weights_alone(dtype):
    before = make_model().to(dtype)
    after = copy.deepcopy(before)
    generator = torch.Generator().manual_seed(0)
    moved = {}
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            moved[name] = torch.rand(parameter.shape, generator=generator) < 0.3
            noise = torch.randn(parameter.shape, generator=generator)
            parameter[moved[name]] += noise[moved[name]].to(dtype)
    original = dict(before.named_parameters())
    for share in (0.0, 0.3, 1.0):
        mixed = copy.deepcopy(after)
        mix(mixed, original, share)
        for name, parameter in mixed.named_parameters():
            old, new = original[name].detach(), after.get_parameter(name).detach()
            assert torch.equal(parameter[~moved[name]], old[~moved[name]])
            wanted = {0.0: new, 1.0: old}.get(share, share * old.double() + 0.7 * new.double())
            tolerance = 0 if share in (0, 1) else torch.finfo(dtype).eps
            torch.testing.assert_close(
                parameter.double(), wanted.double(), rtol=tolerance, atol=tolerance
            )


@pytest.fixture
def run(options, tmp_path):
    """A finished run with a mask, and its model."""
    unlearn.main(options({"unlearn.save_model": True}))
    return read_run(tmp_path / "runs" / "a")


def test_a_run_at_equal_utility_and_among_random_masks(run, tmp_path, capsys, monkeypatch):
    words = [str(run.folder), "--compare.equal_utility=0.9", "--compare.evaluations=1"]
    words += ["--compare.null_masks=1", "--compare.resamples=100", "--compare.output=out"]
    # The tiny model's utility is what chance makes it: here it rises with the original's part.
    monkeypatch.setattr(
        "wagle.model.equal_utility._point",
        lambda share, run, headline: Point(share, share, 1 - share, run.folder),
    )
    assert compare.main(words) == 0
    document = json.loads(Path("out/compare.json").read_text())
    (search,) = document["equal utility"]["searches"].values()
    assert [point["share"] for point in search["points"]] == [0, 0.5, 1]
    assert (search["target"], search["chosen"]["share"]) == (0.9, 1)
    (null,) = document["null masks"].values()
    values = null["numbers"]["UT Avg"]
    assert values["p"] == p_value(values["value"], values["null"], 1)
    shown = capsys.readouterr().out
    assert "among 1 random masks" in shown
    # Of the random mask's run, too, only the original itself is as useful as asked for: a tie.
    assert null["at equal utility"]["shares"] == [1]
    assert null["at equal utility"]["numbers"]["UT Avg"]["p"] == 1
    assert shown.count("with a part of 1 of the original") == 2
    assert Path("out/null_masks/null.png").is_file()

    mask = load_mask(Path(run.config["unlearn.mask_path"]))
    for folder in map(Path, null["folders"]):
        assert not list((folder / "images").iterdir())
        other = read_run(folder)
        drawn = load_mask(Path(other.config["unlearn.mask_path"]))
        assert density_by(drawn, "tensor") == density_by(mask, "tensor")
        assert drawn != mask
        assert other.mask == "random_alike"
        ours, theirs = run.training_config, other.config
        assert {k for k in ours if ours[k] != theirs[k] and k.startswith("unlearn.")} == {
            *("unlearn.mask_path", "unlearn.mask_mismatch")
        }
    # All of the original's is the original: what it was asked, it answers so.
    whole, evaluated = (read_run(Path(search["points"][i]["folder"])) for i in (2, 0))
    assert whole.manifest["fingerprints"]["model"] == run.manifest["fingerprints"]["model"]
    assert evaluated.folder == run.folder
    assert whole.config["evaluation.limit"] == 4
    # The same command trains and evaluates nothing again.
    monkeypatch.setattr("wagle.model.unlearn.evaluate", lambda *_: pytest.fail("evaluated again"))
    assert compare.main(words) == 0


def test_foreign_models_and_masks_are_refused(run, tmp_path, model_folder):
    saved = run.folder / "checkpoints"
    other = tmp_path / "other"
    model, tokenizer = load_model(
        str(model_folder), dtype=torch.float32, device=torch.device("cpu"), cache_dir=tmp_path
    )
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    save_model(model, tokenizer, other)
    config = load_config(["-C", str(run.folder / "config.json")], prog="", description="")
    changes = {"unlearn.resume_path": str(saved), "overall.model_name": str(other)}
    with pytest.raises(WagleError, match="is not the model that the one in"):
        Mixed(config.replace(changes), Logger(), 0.5).load()
    foreign = replace(run, manifest={**run.manifest, "fingerprints": {"model": "another"}})
    with pytest.raises(WagleError, match="is not the model that the one in"):
        search_equal_utility(run, TOFU.headline, tmp_path / "out", original=foreign)
    losses = Headline(TOFU.headline.forgetting, Metric("loss", "", -1))
    with pytest.raises(WagleError, match="of loss less is better: it is no utility"):
        search_equal_utility(run, losses, tmp_path / "out")
    path = Path(run.config["unlearn.mask_path"])
    path.rename(path.with_name("kept.pt"))
    with pytest.raises(WagleError, match="mask"):
        run_null_masks(run, 1, tmp_path / "null")


def test_random_masks_are_drawn_each_by_its_seed_for_the_same_model_and_rows(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(NullRun, "run", lambda self: None)
    monkeypatch.setattr("wagle.model.null_masks._check_origin", lambda *_: None)
    folders = run_null_masks(run, 3, tmp_path)
    assert folders == [tmp_path / name for name in ("0", "1", "2")]
    own = load_mask(Path(run.config["unlearn.mask_path"]))
    paths = [tmp_path / "masks" / f"alike-{seed}.safetensors" for seed in range(3)]
    drawn = [load_mask(path) for path in paths]
    assert drawn == [random_alike(own, seed) for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(WagleError, match=r"alike-1.safetensors is not the random mask"):
        run_null_masks(run, 3, tmp_path)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(NullRun, "run", lambda self: None)
    for what in ("model", "forget", "retain"):
        fingerprints = {**run.manifest["fingerprints"], what: "another"}
        write_manifest(tmp_path / "0", {"status": FINISHED, "fingerprints": fingerprints})
        with pytest.raises(WagleError, match=f"were not made from the same {what}"):
            run_null_masks(run, 1, tmp_path)
    dense = {k: v for k, v in run.manifest["fingerprints"].items() if k != "mask"}
    without = replace(run, manifest={**run.manifest, "fingerprints": dense})
    with pytest.raises(WagleError, match="was not trained with a mask file"):
        run_null_masks(without, 1, tmp_path)


def test_p_values_count_the_observed_run_in():
    assert p_value(3.0, [1.0, 2.0, 4.0], 1) == 2 / 4
    assert p_value(3.0, [1.0, 2.0, 4.0], -1) == 3 / 4
    assert p_value(3.0, [3.0], 1) == 1
    assert p_value(3.0, [0.0] * 19, 1) == 0.05
