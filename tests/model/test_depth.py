"""Looking into runs: what comes out where it is known, and that nothing is measured twice."""

from __future__ import annotations

import json

import pytest

from wagle.commands import depth as command
from wagle.commands import unlearn
from wagle.config import DepthConfig, load_config
from wagle.dataset.demo_benchmark import make_benchmark
from wagle.errors import ConfigError, WagleError
from wagle.loggers.files import write_json
from wagle.loggers.run_folder import CONFIG, DEPTH, FINISHED, write_manifest
from wagle.model import depth
from wagle.model.depth import Depth, summary
from wagle.model.loading import save_model
from wagle.model.patching import Lost
from wagle.model.tiny import build_tiny_llama
from wagle.reporting.depth import depth_lines, depth_numbers
from wagle.reporting.depth_figures import draw_depth
from wagle.unlearn.mask.file import load_mask


@pytest.fixture(scope="module")
def retain_folder(tmp_path_factory):
    """A model of the shape of ``model_folder``, with other weights and the same tokens."""
    folder = tmp_path_factory.mktemp("models") / "retain"
    texts = [text for row in make_benchmark()["full"] for text in row.values()]
    save_model(*build_tiny_llama(texts, vocab_size=400, hidden_size=16, seed=1), folder)
    return folder


@pytest.fixture
def run(tmp_path, options):
    """The evaluation of a model without training, as far as it is read here."""
    changes = {"unlearn.unlearn_method": "origin", "unlearn.mask_path": None}

    def make(name, **more):
        config = load_config(options({**changes, **more}), prog="p", description="d")
        write_json(tmp_path / name / CONFIG, config.as_dict())
        write_manifest(tmp_path / name, {"status": FINISHED})
        return tmp_path / name

    return make


def config_of(**changes):
    words = [f"--depth.{key}={value}" for key, value in changes.items()]
    return load_config(words, DepthConfig, prog="p", description="d")


def test_an_unchanged_model_holds_all_and_the_retain_only_one_nothing(
    run, model_folder, retain_folder, monkeypatch
):
    found = Depth(run("unchanged"), config_of(retain_model=retain_folder)).make()
    assert found["blocks"]["unlearned"] == pytest.approx([0, 0], abs=1e-4)
    assert depth_numbers(found)["depth UDS"] == pytest.approx(0, abs=1e-3)
    assert [line["update"] for line in depth_lines(found).values()] == [0, 0, 0]
    settings = {"retain_model": retain_folder, "original_model": model_folder, "rows": 3}
    folder = run("retained", **{"overall.model_name": retain_folder})
    found = Depth(folder, config_of(**settings)).make()
    assert found["UDS"] == 1
    assert found["blocks"]["unlearned"] == found["blocks"]["retain-only"]
    assert found["UDS rows"][1] == 3
    assert list(depth_lines(found)) == ["0", "1", "outside"]
    assert all(line["update"] > 0 for line in depth_lines(found).values())
    figure = draw_depth([("Original", "", found)])
    assert len(figure.axes) == 2
    # Of a run of which no row is known there is nothing to draw; the legend names each line once.
    unknown, other = (
        found | {"blocks": {"retain-only": losses, "unlearned": losses}} for losses in ([], [1, 2])
    )
    figure = draw_depth([("NPO", "", unknown), ("Original", "", found), ("GradDiff", "", other)])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["retain-only", "NPO, UDS 1.00", "Original, UDS 1.00", "GradDiff, UDS 1.00"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1"]
    # More rows add to those that have been measured; all of them again are not measured again.
    more = Depth(folder, config_of(**settings | {"rows": 5})).make()
    assert more["patching"]["rows"].items() >= found["patching"]["rows"].items()
    assert json.loads((folder / DEPTH).read_text()) == json.loads(json.dumps(more))
    monkeypatch.setattr(depth, "patch_rows", lambda *_, **__: pytest.fail("measured again"))
    assert Depth(folder, config_of(**settings)).make()["blocks"] == found["blocks"]
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        Depth(folder, config_of(**settings | {"tokens": 1})).make()


def test_a_masked_run_by_the_command(options, tmp_path, retain_folder, capsys):
    unlearn.main(options({"unlearn.task_name": "none"}))
    folder = tmp_path / "runs" / "a"
    command.main([str(folder), f"--depth.retain_model={retain_folder}", "--depth.figure=all"])
    assert " of 8 rows are known" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("all.*")} == {"all.png", "all.pdf"}
    found = json.loads((folder / DEPTH).read_text())
    lines = depth_lines(found)
    first = [b for n, b in load_mask(tmp_path / "mask" / "tiny_0.4.pt").items() if ".0." in n]
    selected, weights = sum(bits.count() for bits in first), sum(bits.numel for bits in first)
    assert lines["0"]["density"] == selected / weights
    assert sum(line["score"] for line in lines.values()) == pytest.approx(1)
    assert all(line["e_forget"] < 0 < line["e_retain"] for line in lines.values())
    assert len(draw_depth([("GradDiff", "WAGLE", found)] * 2).axes) == 6


def test_means_over_rows():
    rows = {
        "0": Lost([1, 2], {"retain-only": [0.0, 2.0], "unlearned": [1.0, 1.0]}),
        "1": Lost([0], {"retain-only": [1.0, 4.0], "unlearned": [0.0, 4.0]}),
        "2": Lost([], {}),
        "3": Lost([0], {"retain-only": [0.0, 0.0], "unlearned": [2.0, 1.0]}),
    }
    assert summary(rows) == {
        "blocks": {"retain-only": [pytest.approx(1 / 3), 2], "unlearned": [1, 2]},
        "UDS": pytest.approx((1 / 2 + 4 / 5) / 2),
        "UDS rows": [2, 4],
    }
    assert "UDS" not in summary({"2": rows["2"]})


def test_what_is_missing_is_said(run, tmp_path, retain_folder):
    with pytest.raises(ConfigError, match=r"depth\.retain_model"):
        command.main([str(run("a"))])
    with pytest.raises(ConfigError, match="give run folders first"):
        command.main([f"--depth.retain_model={retain_folder}"])
    with pytest.raises(WagleError, match="no run folder"):
        Depth(tmp_path / "nothing", config_of(retain_model=retain_folder))
