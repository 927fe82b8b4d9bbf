"""A run that fails, is interrupted, repeated, or meets another: nothing measured is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.processes import Running
from wagle.commands import unlearn as unlearn_model
from wagle.commands.results import default_name, make_logger
from wagle.config import FineTuneConfig, load_config
from wagle.errors import ConfigError, Terminated, WagleError
from wagle.loggers import JsonLogger, json_logger
from wagle.loggers.folder_lock import FolderLock, in_use
from wagle.metrics import harness
from wagle.metrics.benchmark import Benchmark, Metric
from wagle.model import evaluation, fine_tuning, tofu_evaluation, unlearn
from wagle.model.unlearn import Unlearn
from wagle.reporting.runs import read_run

DENSE = {"unlearn.mask_path": None}
TRAINS, SAVED = "log.json", "images/training.png"  # files that show how far a run is


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def never(*_, **__):
    pytest.fail("this has been done already")


# ------------------------------------------------------------------------- failures and repeats


def bad_task(folder: Path) -> Path:
    """An lm-eval task that fails; ``mend`` makes it a good one."""
    path = folder / "task.yaml"
    data = [{"question": "Is it?", "choices": ["yes", "no"], "answer": 0}] * 3
    (folder / "data.json").write_text(json.dumps(data))
    task = {
        "task": "task",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "data.json")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{no_such_function(question)}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    }
    path.write_text(json.dumps(task))
    return path


def mend(path: Path) -> None:
    path.write_text(json.dumps({**read(path), "doc_to_text": "{{question}}"}))


def test_a_failing_evaluation_loses_no_other_and_a_repeat_measures_the_rest(
    tmp_path, options, monkeypatch, capsys
):
    task = bad_task(tmp_path)
    command = options({**DENSE, "evaluation.tasks": f"demo_forget,{task},demo_text"})
    folder = tmp_path / "runs" / "a"
    with pytest.raises(WagleError, match=r"(?s)task .*task\.yaml failed.*kept in .*same command"):
        unlearn_model.main(command)
    manifest = read(folder / "manifest.json")
    assert (manifest["status"], manifest["phase"]) == ("failed", "evaluate")
    assert "task.yaml failed" in manifest["error"]
    assert not (folder / "results.json").exists()
    kept = read(folder / "results.partial.json")["measured"]
    assert {"tofu", "lm_eval demo_forget", "lm_eval demo_text"} <= set(kept)
    assert set(read(folder / "lm_eval.json")) == {"demo_forget", "demo_text"}
    stamp = (folder / "tofu.json").stat().st_mtime_ns
    assert "goes on with the model in" in capsys.readouterr().err

    mend(task)
    monkeypatch.setattr(tofu_evaluation, "evaluate_tofu", never)
    monkeypatch.setattr(Unlearn, "train", never)
    run_task, asked = harness.run_task, []

    def counted(model, tokenizer, name, **options):
        asked.append(name)
        return run_task(model, tokenizer, name, **options)

    monkeypatch.setattr(harness, "run_task", counted)
    assert unlearn_model.main(command) == 0
    assert asked == [str(task)]
    results = read(folder / "results.json")
    assert {key: results[key] for key in kept["tofu"]} == kept["tofu"]
    assert any(key.startswith("lm_eval task ") for key in results)
    assert (folder / "tofu.json").stat().st_mtime_ns == stamp
    assert not (folder / "results.partial.json").exists()
    run = read_run(folder)
    assert run.trained
    assert [entry["step"] for entry in run.log if "loss" in entry] == [1, 2]


@pytest.fixture
def evaluated(monkeypatch):
    """A quick evaluation of two parts; the second fails while ``evaluated["broken"]``."""
    state = {"broken": True, "first": 0.5}

    def second(context):
        if state["broken"]:
            raise WagleError("no second number")
        return {metrics[1]: 2.0}

    def first(context):
        return {metrics[0]: state["first"]}

    metrics = (Metric("first", "One."), Metric("second", "Another."))
    benchmark = Benchmark("quick", "", metrics, {"first": first, "second": second})
    monkeypatch.setattr(evaluation, "benchmark_of", lambda config: benchmark)
    return state


def test_numbers_of_another_model_are_not_taken_over(tmp_path, options, evaluated):
    with pytest.raises(WagleError, match="second: no second number"):
        unlearn_model.main(options(DENSE))
    folder = tmp_path / "runs" / "a"
    partial = read(folder / "results.partial.json")
    assert partial["measured"] == {"first": {"first": 0.5}}
    evaluated["first"] = 0.75
    with pytest.raises(WagleError, match="second: no second number"):
        unlearn_model.main(options(DENSE))
    assert read(folder / "results.partial.json") == partial  # of the same model: taken over
    partial["origin"]["model"] = "another"
    (folder / "results.partial.json").write_text(json.dumps(partial))
    evaluated["broken"] = False
    assert unlearn_model.main(options(DENSE)) == 0
    results = read(folder / "results.json")
    assert (results["first"], results["second"]) == (0.75, 2.0)


def test_a_run_whose_evaluation_is_changed_keeps_its_model(
    tmp_path, options, evaluated, monkeypatch
):
    """The name is the same, the training too: only what is measured differs."""
    with pytest.raises(WagleError, match="no second number"):
        unlearn_model.main(options(DENSE))
    monkeypatch.setattr(Unlearn, "train", never)
    evaluated.update(broken=False, first=0.25)
    assert unlearn_model.main(options({**DENSE, "evaluation.limit": 3})) == 0
    assert read(tmp_path / "runs" / "a" / "manifest.json")["status"] == "finished"
    assert read(tmp_path / "runs" / "a" / "results.json")["first"] == 0.25
    assert (tmp_path / "runs" / "a" / "log.json").exists()


def test_a_failed_run_never_blocks_its_name(tmp_path, options, evaluated, capsys):
    evaluated["broken"] = False
    broken = tmp_path / "mask" / "tiny_0.4.pt"
    broken.parent.mkdir()
    broken.write_bytes(b"no mask")
    with pytest.raises(WagleError):
        unlearn_model.main(options())
    assert unlearn_model.main(options({**DENSE, "unlearn.lr": 1e-3})) == 0
    assert "another configuration begins anew" in capsys.readouterr().out
    assert read(tmp_path / "runs" / "a" / "config.json")["unlearn"]["lr"] == 1e-3


def test_a_signal_waits_until_the_trained_model_is_saved(
    tmp_path, options, evaluated, monkeypatch, handled, capfd
):
    save_model = unlearn.save_model

    def signalled(*arguments, **further):
        os.kill(os.getpid(), signal.SIGTERM)
        save_model(*arguments, **further)

    monkeypatch.setattr(unlearn, "save_model", signalled)
    with pytest.raises(Terminated):
        unlearn_model.main(options(DENSE))
    said = capfd.readouterr().err
    assert "ending after the model is saved; once more: at once" in said
    assert f"goes on with the model in {tmp_path / 'runs' / 'a' / 'checkpoints'}" in said
    monkeypatch.setattr(Unlearn, "train", never)
    evaluated["broken"] = False
    assert unlearn_model.main(options(DENSE)) == 0


def test_a_model_of_another_training_is_not_taken(tmp_path, options, evaluated, capsys):
    folder = tmp_path / "runs" / "a" / "checkpoints"
    with pytest.raises(WagleError, match="no second number"):
        unlearn_model.main(options(DENSE))
    first = (folder / "model.safetensors").read_bytes()
    with pytest.raises(WagleError, match="no second number"):
        unlearn_model.main(options({**DENSE, "unlearn.lr": 2e-2}))
    assert "model of another training: it is removed" in capsys.readouterr().out
    assert (folder / "model.safetensors").read_bytes() != first


def test_results_that_cannot_be_written_make_a_failed_run(tmp_path, options, monkeypatch):
    folder = tmp_path / "runs" / "a"
    write_json = json_logger.write_json

    def full_disk(path, content, **options):
        if path.name == "results.json":
            raise WagleError("No space left on device")
        write_json(path, content, **options)

    monkeypatch.setattr(json_logger, "write_json", full_disk)
    with pytest.raises(WagleError, match="No space left"):
        unlearn_model.main(options(DENSE))
    assert read(folder / "manifest.json")["status"] == "failed"
    assert not in_use(folder)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tofu_evaluation, "evaluate_tofu", never)
    assert unlearn_model.main(options(DENSE)) == 0
    assert read_run(folder).results["task"] == "tofu"


def test_when_nothing_can_be_written_any_more_the_error_is_still_the_first(
    tmp_path, monkeypatch, capsys
):
    logger = JsonLogger(tmp_path / "a")
    logger.start({}, "x")

    def full_disk(*_):
        raise WagleError("manifest.json cannot be written: No space left on device")

    monkeypatch.setattr(json_logger, "write_manifest", full_disk)
    logger.fail(ValueError("the first"), {})
    assert "could not be written either" in capsys.readouterr().err
    assert not in_use(tmp_path / "a")


def test_finished_results_are_not_given_for_another_model_of_the_same_name(
    tmp_path, options, model_folder, evaluated, capsys
):
    evaluated["broken"] = False
    own = tmp_path / "model"
    shutil.copytree(model_folder, own)
    command = options({**DENSE, "overall.model_name": own})
    unlearn_model.main(command)
    assert unlearn_model.main(command) == 0
    model = AutoModelForCausalLM.from_pretrained(own)
    with torch.no_grad():
        model.model.norm.weight[0] += 0.5
    model.save_pretrained(own)
    with pytest.raises(ConfigError, match=r"other files than are there now.*\(model\)"):
        unlearn_model.main(command)
    shutil.rmtree(own)  # nothing to compare with: the results are still the results
    capsys.readouterr()
    assert unlearn_model.main(command) == 0
    assert "not checked whether" in capsys.readouterr().out


# -------------------------------------------------------------------------------- saved models


def test_a_model_that_was_not_kept_is_made_when_it_is_asked_for(
    tmp_path, options, evaluated, capsys
):
    evaluated["broken"] = False
    folder = tmp_path / "runs" / "a"
    unlearn_model.main(options({"unlearn.save_model": "false"}))
    first = read(folder / "results.json")
    assert not (folder / "checkpoints").exists()
    unlearn_model.main(options({"unlearn.save_model": "false"}))
    assert "already finished" in capsys.readouterr().out
    unlearn_model.main(options())
    assert "kept no model" in capsys.readouterr().out
    assert (folder / "checkpoints" / "model.safetensors").is_file()
    assert read(folder / "results.json") == first
    unlearn_model.main(options())
    assert "already finished" in capsys.readouterr().out


def test_a_run_folder_is_evaluated_as_what_it_is(tmp_path, options):
    unlearn_model.main(options())
    run = tmp_path / "runs" / "a"
    for number, path in enumerate((run, run / "checkpoints")):
        again = options({"unlearn.resume_path": path, "logger.name": f"b{number}"})
        assert unlearn_model.main([*again, "--unlearn.unlearn_method", "GA"]) == 0
        results = read(tmp_path / "runs" / f"b{number}" / "results.json")
        assert results == read(run / "results.json")
    assert results["method"] == "GA+FT"
    assert results["density"] == pytest.approx(0.4, abs=1e-4)
    assert results["mask"].endswith("tiny_0.4.pt")
    # an older version's checkpoint has no record of its own: its run folder tells
    (run / "checkpoints" / "unlearning.json").unlink()
    again = options({"unlearn.resume_path": run, "logger.name": "c"})
    assert unlearn_model.main(again) == 0
    assert read(tmp_path / "runs" / "c" / "results.json") == results


def test_of_a_model_without_a_record_nothing_is_claimed(tmp_path, options, model_folder, evaluated):
    evaluated["broken"] = False
    unlearn_model.main(options({"unlearn.resume_path": model_folder}))
    results = read(tmp_path / "runs" / "a" / "results.json")
    assert (results["method"], results["mask"], results["density"]) == ("unknown", None, None)
    run = read_run(tmp_path / "runs" / "a")
    assert not run.is_original
    assert run.mask == ""


def test_a_run_folder_without_a_model_says_how_to_get_one(tmp_path, options, evaluated):
    evaluated["broken"] = False
    unlearn_model.main(options({**DENSE, "unlearn.save_model": "false"}))
    again = {"unlearn.resume_path": tmp_path / "runs" / "a", "logger.name": "b"}
    with pytest.raises(WagleError, match=r"holds no model.*--unlearn\.save_model true"):
        unlearn_model.main(options(again))


def test_the_manifest_and_the_screen_say_what_was_chosen(tmp_path, options, evaluated, capsys):
    evaluated["broken"] = False
    unlearn_model.main(options())
    resolved = read(tmp_path / "runs" / "a" / "manifest.json")["resolved"]
    assert resolved == {
        "overall.device": "cpu",
        "overall.dtype": "float32",
        "dataset.template": resolved["dataset.template"],
        "unlearn.master_weights": False,
        "unlearn.mask_enforcement": "optimizer",
    }
    printed = capsys.readouterr().out
    for key, value in resolved.items():
        assert value in printed if "template" in key else f"{key} {value}" in printed


# -------------------------------------------------------------------------- names and folders


def configure(tmp_path, *rest):
    file = tmp_path / "GradDiff+WAGLE.json"
    settings = {"overall": {"model_name": "m", "logger": "json"}, "unlearn": {"mu": 1e-6}}
    file.write_text(json.dumps(settings))
    options = ["-C", str(file), "--logger.json.root", str(tmp_path / "runs"), *rest]
    return load_config(options, prog="p", description="d")


def test_names_follow_from_what_influences_results(tmp_path):
    name = default_name(configure(tmp_path))
    assert name == f"GradDiff+WAGLE_{configure(tmp_path).fingerprint()[:8]}"
    assert default_name(configure(tmp_path, "--unlearn.save_model", "false")) == name
    assert default_name(configure(tmp_path, "--logger.wandb.mode", "online")) == name
    changed = ["--unlearn.mu", "0.01", "--overall.seed", "3", "--unlearn.mask_path", "x/y/z_0.5.pt"]
    other = default_name(configure(tmp_path, *changed))
    assert other.startswith("GradDiff+WAGLE_mu=0.01_seed=3_mask_path=z_0.5.pt_")
    strange = ["--overall.model_name", "a/[red]b\x1b ü" + "x" * 200]
    name = default_name(configure(tmp_path, *strange))
    assert len(name) < 100
    assert name.isascii()
    assert name.isprintable()
    assert make_logger(configure(tmp_path)).folder.parent == tmp_path / "runs"
    without = load_config(["--overall.model_name", "m"], prog="p", description="d")
    assert default_name(without) == f"origin_{without.fingerprint()[:8]}"


def test_folders_that_cannot_be_used_are_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("")
    for place, reason in {
        "file": "is a file",
        "link": "link to nothing",
        "file/below": "nothing can be written",
        "x" * 300: "nothing can be written",
        "foreign": "no run folder of this program",
    }.items():
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(ConfigError, match=reason) as caught:
            JsonLogger(tmp_path / place).start({}, "x")
        assert "--logger.name" in str(caught.value)
        after = sorted(path.name for path in tmp_path.iterdir())
        assert [name for name in after if not name.endswith(".lock")] == [
            name for name in before if not name.endswith(".lock")
        ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_message(tmp_path):
    (tmp_path / "runs").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="nothing can be written"):
        JsonLogger(tmp_path / "runs" / "a").start({}, "x")


def test_what_a_kill_at_the_first_file_leaves_is_ours(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "manifest.json.999999999.0123450123abcd.partial").write_text("{")
    assert JsonLogger(folder).start({}, "x") is None
    (folder / "manifest.json").write_text("")  # as a crash of the system leaves it
    assert JsonLogger(folder).start({}, "x") is None if not in_use(folder) else True


def test_a_finished_run_of_another_configuration_is_named_and_kept(tmp_path, options, evaluated):
    evaluated["broken"] = False
    unlearn_model.main(options(DENSE))
    with pytest.raises(ConfigError, match=r"\(unlearn\.lr 0\.01 there, 0\.5 here\)"):
        unlearn_model.main(options({**DENSE, "unlearn.lr": 0.5}))
    assert read_run(tmp_path / "runs" / "a").config["unlearn.lr"] == 0.01


# ------------------------------------------------------------------------ several processes


def test_looking_whether_a_folder_is_in_use_makes_no_run_fail(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    stop = threading.Event()

    def look():
        while not stop.is_set():
            in_use(folder)

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(30):
            with FolderLock(folder, "logger.name"):
                assert in_use(folder)
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()
    assert not in_use(folder)


def test_fine_tuning_has_the_same_lock_and_tries_its_folder(tmp_path, model_folder, monkeypatch):
    def configured(output):
        keys = {
            "overall.model_name": model_folder,
            "finetune.dataset_name": "Demo_forget10",
            "finetune.output_dir": output,
            "finetune.max_steps": 2,
        }
        argv = [f"--{key}={value}" for key, value in keys.items()]
        return load_config(argv, FineTuneConfig, prog="p", description="d")

    output = tmp_path / "model"
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patched:
        patched.setattr(fine_tuning, "load_rows", never)
        with (
            FolderLock(output, "finetune.output_dir"),
            pytest.raises(ConfigError, match=r"another process is writing.*--finetune\.output_dir"),
        ):
            fine_tuning.fine_tune_from_config(configured(output))
        for place in ("file", "file/below", "x" * 253):
            with pytest.raises(ConfigError, match=r"--finetune\.output_dir"):
                fine_tuning.fine_tune_from_config(configured(tmp_path / place))
    with monkeypatch.context() as patched:
        patched.setattr(fine_tuning, "fine_tune", never)
        patched.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(WagleError, match="room for 10 bytes"):
            fine_tuning.fine_tune_from_config(configured(output))
    fine_tuning.fine_tune_from_config(configured(output))
    assert not in_use(output)
    assert read(output / "fine_tuning.json")["resolved"]["overall.device"] == "cpu"
    fine_tuning.fine_tune_from_config(configured(output))
    record = read(output / "fine_tuning.json")
    record["fingerprints"]["model"] = "another"
    (output / "fine_tuning.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"other files than are there now.*\(model\)"):
        fine_tuning.fine_tune_from_config(configured(output))
    (output / "fine_tuning.json").write_text("{")
    with pytest.raises(WagleError, match=r"fine_tuning\.json cannot be read"):
        fine_tuning.fine_tune_from_config(configured(output))


def test_a_model_that_will_not_fit_is_refused_before_training(tmp_path, options, monkeypatch):
    monkeypatch.setattr(Unlearn, "train", never)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(WagleError, match="room for 10 bytes"):
        unlearn_model.main(options(DENSE))


@pytest.mark.slow
def test_the_second_of_two_processes_with_one_folder_is_refused(tmp_path, options):
    command = options({**DENSE, "unlearn.max_steps": 60})
    folder = tmp_path / "runs" / "a"
    first = Running("unlearn", command, tmp_path)
    first.wait_for(folder / TRAINS)
    first.signal(signal.SIGSTOP)  # so that it does not end before the second has begun
    status, output = Running("unlearn", command, tmp_path).end()
    first.signal(signal.SIGCONT)
    assert status == 2, output
    assert "another process is writing" in output
    status, output = first.end()
    assert status == 0, output
    run = read_run(folder)
    assert run.log[-1]["step"] == 60
    AutoModelForCausalLM.from_pretrained(run.folder / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status", "word", "phases"),
    [
        (signal.SIGINT, 130, "interrupted", (TRAINS,)),
        (signal.SIGTERM, 143, "interrupted", (SAVED,)),
        (signal.SIGUSR1, 138, "interrupted", (TRAINS,)),
        (signal.SIGKILL, -signal.SIGKILL, "running", (TRAINS,)),
    ],
)
def test_interrupted_runs_leave_nothing_that_looks_finished(
    tmp_path, options, kind, status, word, phases
):
    command = options({**DENSE, "unlearn.max_steps": 100, "evaluation.limit": 12})
    folder = tmp_path / "runs" / "a"
    for phase in phases:
        shutil.rmtree(folder, ignore_errors=True)
        process = Running("unlearn", command, tmp_path)
        process.wait_for(folder / phase)
        process.signal(kind)
        code, output = process.end()
        assert code == status, output
        assert "Traceback" not in output
        assert not (folder / "results.json").exists()
        assert read(folder / "manifest.json")["status"] == word
        if kind != signal.SIGKILL:
            kept = folder / ("training" if phase == TRAINS else "checkpoints")
            assert f"the same command goes on {'from' if phase == TRAINS else 'with'}" in output
            assert f"{kept}" in output
    if phases[-1] == TRAINS:
        return
    AutoModelForCausalLM.from_pretrained(folder / "checkpoints")
    code, output = Running("unlearn", command, tmp_path).end()  # goes on with the saved model
    assert code == 0, output
    assert "going on with the trained model" in output
    assert read(folder / "manifest.json")["status"] == "finished"
    assert not list(tmp_path.rglob("*.partial"))
