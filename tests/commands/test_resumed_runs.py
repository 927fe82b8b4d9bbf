"""Runs that are interrupted in training: where checkpoints lie, and what goes on from them."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.processes import draw_nothing, start
from tests.tiny import sentence_model
from wagle.commands import fine_tune, unlearn
from wagle.loggers import files
from wagle.model.unlearn import Unlearn
from wagle.training.checkpoint import Checkpoints

QUICK = {"unlearn.task_name": "none", "unlearn.max_steps": 6, "unlearn.save_steps": 2}


@pytest.fixture
def killed(monkeypatch):
    """A function that runs a command and breaks it off after its third step."""

    def kill(command, arguments):
        after_step = Checkpoints.after_step

        def dying(self, standing, *rest, **options):
            after_step(self, standing, *rest, **options)
            if standing.step == 3:
                raise InterruptedError

        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "after_step", dying)
            with pytest.raises(InterruptedError):
                command.main(arguments)

    return kill


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_run_goes_on_from_its_folder_and_the_manifest_says_so(tmp_path, options, killed, capsys):
    straight = tmp_path / "runs" / "straight"
    unlearn.main(options({**QUICK, "logger.name": straight.name}))
    killed(unlearn, options(QUICK))
    folder = tmp_path / "runs" / "a"
    assert [path.name for path in (folder / "training").iterdir()] == ["step-00000002"]
    output = capsys.readouterr()
    assert f"goes on from {folder / 'training' / 'step-00000002'}" in output.err
    assert unlearn.main(options(QUICK)) == 0
    assert "going on after step 2, from the checkpoint of" in capsys.readouterr().out
    assert [entry["after"] for entry in read(folder / "manifest.json")["resumed"]] == ["step 2"]
    assert not (folder / "training").exists()
    model = "checkpoints/model.safetensors"
    assert (folder / model).read_bytes() == (straight / model).read_bytes()
    assert (folder / "results.json").read_bytes() == (straight / "results.json").read_bytes()


def test_a_run_without_a_folder_goes_on_from_the_cache(tmp_path, options, killed, capsys):
    nameless = options({**QUICK, "overall.logger": "none", "logger.name": None})
    cache = tmp_path / ".cache" / "wagle" / "training"
    killed(unlearn, nameless)
    assert len(list(cache.glob("*/step-00000002"))) == 1
    other = options({**QUICK, "overall.logger": "none", "unlearn.lr": 3e-3})
    unlearn.main(other)  # another training: another place
    assert "going on" not in capsys.readouterr().out
    assert unlearn.main(nameless) == 0
    assert "going on after step 2" in capsys.readouterr().out
    assert not list(cache.glob("*/"))


def test_a_model_that_is_not_to_be_saved_is_trained_once(tmp_path, options, monkeypatch, capsys):
    """Its last checkpoint serves until the run has finished."""
    unsaved = options({**QUICK, "unlearn.save_model": "false"})

    def broken(self):
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(Unlearn, "evaluate", broken)
        with pytest.raises(InterruptedError):
            unlearn.main(unsaved)
    assert unlearn.main(unsaved) == 0
    assert "going on after step 6" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "runs" / "a").iterdir() if path.is_dir()) == [
        "images"
    ]


def test_fine_tuning_goes_on_beside_its_output(tmp_path, model_folder, killed, capsys):
    def arguments(name):
        keys = {
            "overall.model_name": model_folder,
            "finetune.dataset_name": "Demo_forget10",
            "finetune.output_dir": tmp_path / name,
            "finetune.max_steps": 6,
            "finetune.save_steps": 2,
        }
        return [f"--{key}={value}" for key, value in keys.items()]

    fine_tune.main(arguments("straight"))
    killed(fine_tune, arguments("model"))
    assert [path.name for path in tmp_path.glob(".model.training/*")] == ["step-00000002"]
    assert not (tmp_path / "model").exists()
    fine_tune.main(arguments("model"))
    assert "going on after step 2" in capsys.readouterr().out
    weights = [tmp_path / name / "model.safetensors" for name in ("model", "straight")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert read(tmp_path / "model" / "fine_tuning.json")["resumed"][0]["after"] == "step 2"
    assert not list(tmp_path.glob(".*.training"))


def test_what_a_killed_run_left_beside_masks_is_removed(tmp_path, options, monkeypatch):
    unlearn.main(options(QUICK))
    left = tmp_path / "mask" / f"tiny.pt.999999999.{files._HOST}01234567.partial"
    left.write_bytes(bytes(100))
    monkeypatch.setattr(files, "_swept", set())  # as in a new process
    unlearn.main(options({**QUICK, "logger.name": "b"}))
    assert not left.exists()


def _sweep(folder, output, encoder):
    from benchmarks import kills

    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    for options in kills.COMMANDS.values():
        options.update({key: 12 for key in options if key.endswith("max_steps")})
    kills.COMMANDS["unlearn"] |= {"evaluation.limit": 4, "evaluation.sentence_model": encoder}
    draw_nothing()
    sys.exit(kills.sweep(folder, kills=2, seed=16) > 0)


@pytest.mark.slow
def test_a_pipeline_that_is_killed_ends_as_one_that_is_not(tmp_path):
    """The small sweep; the large one: ``python benchmarks/kills.py``."""
    (folder := tmp_path / "pipelines").mkdir()
    process = start(_sweep, folder, tmp_path / "output", sentence_model())
    process.join()
    output = (tmp_path / "output").read_text()
    assert process.exitcode == 0, output
    assert "every file equal to the undisturbed run's" in output
