"""A run that is broken off in its attribution and in its evaluation, and what goes on there."""

from __future__ import annotations

import json
import os
import signal

import pytest

from wagle.commands import unlearn
from wagle.errors import WagleError
from wagle.metrics import generation
from wagle.metrics.benchmark import Benchmark, Metric
from wagle.metrics.continuation import CachedTexts
from wagle.model import evaluation
from wagle.pace import Pace
from wagle.unlearn.mask import gradients

QUICK = {"unlearn.max_steps": 2, "unlearn.attribution_batch_size": 4}
NAMELESS = {"overall.logger": "none", "logger.name": None}


@pytest.fixture
def measured(monkeypatch):
    """How often each of two parts of an evaluation was measured; the second fails at first."""
    counts = {"first": 0, "second": 0}

    def part(metric):
        def measure(context):
            counts[metric.key] += 1
            if metric.key == "second" and counts["second"] == 1:
                raise WagleError("not yet")
            return {metric: 0.5}

        return measure

    metrics = tuple(Metric(name, "A number.") for name in counts)
    parts = {metric.key: part(metric) for metric in metrics}
    benchmark = Benchmark("quick", "", metrics, parts)
    monkeypatch.setattr(evaluation, "benchmark_of", lambda config: benchmark)
    return counts


@pytest.fixture
def broken_attribution(monkeypatch):
    """The sums over the retain rows are broken off in their second step, once."""
    token_losses, calls = gradients.token_losses, []

    def breaking(*args):
        calls.append(args)
        if len(calls) == 4:
            raise WagleError("broken off")
        return token_losses(*args)

    monkeypatch.setattr(gradients, "token_losses", breaking)
    monkeypatch.setattr(Pace, "due", lambda self: True)
    return calls


def test_the_manifest_says_what_went_on_when(
    tmp_path, options, measured, broken_attribution, capsys
):
    command = options(QUICK)
    with pytest.raises(WagleError, match="broken off"):
        unlearn.main(command)
    assert "goes on with what is kept of the sums of gradients" in capsys.readouterr().err
    with pytest.raises(WagleError, match="not yet"):
        unlearn.main(command)
    assert len(broken_attribution) == 5  # 8 rows of each kind, 4 at a time: one of them twice
    assert unlearn.main(command) == 0
    assert measured == {"first": 1, "second": 2}
    manifest = json.loads((tmp_path / "runs" / "a" / "manifest.json").read_text())
    assert [entry["after"] for entry in manifest["resumed"]] == [
        "4 rows of tiny.retain_gradients",
        "training",
        "first",
    ]
    assert not list((tmp_path / "mask").glob("*unfinished*"))


def test_answers_that_a_signal_has_broken_off_are_not_all_given_again(
    tmp_path, options, monkeypatch, handled, capfd
):
    monkeypatch.setattr(generation, "PIECE", 1)
    step, steps, last = CachedTexts.step, [], None

    def counted(self, drafts):
        if len(steps) == last:
            os.kill(os.getpid(), signal.SIGINT)
        steps.append(drafts)
        return step(self, drafts)

    monkeypatch.setattr(CachedTexts, "step", counted)
    command = {"unlearn.unlearn_method": "origin", "evaluation.batch_size": 4}
    assert unlearn.main(options({**command, "logger.name": "straight"})) == 0
    last = len(steps) - 20
    steps.clear()
    with pytest.raises(KeyboardInterrupt):
        unlearn.main(options(command))
    folder, last = tmp_path / "runs" / "a", None
    assert len(list((folder / "evaluation").iterdir())) == 1
    assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted"
    said = capfd.readouterr()
    assert "ending after at most 4 more answers; once more: at once" in said.err
    (kept,) = (line for line in said.out.splitlines() if "the same command goes on" in line)
    assert "goes on with what is kept of the evaluation" in said.err
    steps.clear()
    assert unlearn.main(options(command)) == 0
    assert len(steps) < 60
    assert kept.replace("the same command goes on", "going on") in capfd.readouterr().out
    (entry,) = json.loads((folder / "manifest.json").read_text())["resumed"][-1:]
    assert entry["after"].endswith("rows: answering questions")
    assert not (folder / "evaluation").exists()
    for name in ("results.json", "tofu.json"):
        assert (folder / name).read_bytes() == (folder.parent / "straight" / name).read_bytes()


def test_what_a_run_without_a_folder_has_measured_is_kept_in_the_cache(
    tmp_path, options, measured, capsys
):
    command = options({**QUICK, **NAMELESS, "unlearn.mask_path": None})
    with pytest.raises(WagleError, match=r"first.*is kept in"):
        unlearn.main(command)
    (kept,) = (tmp_path / ".cache" / "wagle" / "evaluation").glob("*.json")
    other = options({**QUICK, **NAMELESS, "unlearn.mask_path": None, "evaluation.limit": 3})
    assert unlearn.main(other) == 0  # asks for something else: nothing is taken over
    assert measured == {"first": 2, "second": 2}
    assert unlearn.main(command) == 0
    assert measured == {"first": 2, "second": 3}
    assert "going on with what has been measured: first" in capsys.readouterr().out
    assert not kept.exists()
    assert not list(tmp_path.glob(".cache/wagle/*/*/"))
