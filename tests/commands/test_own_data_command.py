"""The commands on files of one's own: learnt, masked, unlearned, evaluated, shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.tiny import words
from wagle.commands import fine_tune as fine_tune_command
from wagle.commands import report as report_command
from wagle.commands import unlearn as unlearn_command
from wagle.errors import ConfigError, WagleError
from wagle.metrics.own import OWN
from wagle.metrics.privacy import PRIVACY
from wagle.reporting.bootstrap import resample
from wagle.reporting.runs import read_run

PLACES = {"Ada": "Lisbon", "Ben": "Oslo", "Cleo": "Cairo", "Dov": "Riga", "Eve": "Lima"}
ROWS = [{"q": f"Where was {n} born?", "a": f"In {t}, {n} was."} for n, t in PLACES.items()]


@pytest.fixture
def base(tmp_path, model_folder, monkeypatch, undrawn):
    """A command line on own files in every kind of format, in an otherwise empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("forget.jsonl").write_text(
        "".join(json.dumps({**row, "again": "Where?"}) + "\n" for row in ROWS[:2])
    )
    with Path("retain.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["a", "q"])
        writer.writeheader()
        writer.writerows(ROWS[2:4])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[4:]), "holdout.parquet")
    Path("texts.json").write_text(json.dumps([{"text": "Ada was born in Lisbon."}] * 2))
    values = {
        "overall.model_name": model_folder,
        "overall.logger": "json",
        "unlearn.unlearn_method": "GradDiff",
        "unlearn.GradDiff.gamma": 1,
        "unlearn.max_steps": 2,
        "unlearn.lr": 1e-2,
        "unlearn.mask_path": "mask/own_0.5.pt",
        "dataset.forget_dataset_name": "forget.jsonl",
        "dataset.retain_dataset_name": "retain.csv",
        "dataset.question_column": "q",
        "dataset.answer_column": "a",
        "dataset.batch_size": 2,
        "evaluation.holdout_dataset_name": "holdout.parquet",
        "logger.json.root": "runs",
        "logger.name": "run",
    }

    def base(**changes):
        return words(values | {key.replace("__", "."): value for key, value in changes.items()})

    return base


def results(name="run"):
    return json.loads(Path("runs", name, "results.json").read_text())


def test_the_whole_command_from_files_to_a_report(base, capsys):
    views = {"evaluation__paraphrase_column": "again", "evaluation__question_prefix": "Now:"}
    assert unlearn_command.main(base(**views)) == 0
    printed = capsys.readouterr().out
    assert Path("mask/own_0.5.pt").is_file()
    found = results()
    assert found["task"] == "own"
    assert found["density"] == pytest.approx(0.5, abs=1e-3)
    asked = [metric for metric in OWN.metrics if metric not in PRIVACY]
    numbers = {metric.key for metric in asked if "{}" not in metric.key}
    assert numbers <= set(found)
    assert all(f"│ {name}" in printed for name in numbers)
    document = json.loads(Path("runs/run/own.json").read_text())
    assert document["sets"]["holdout"] == "holdout.parquet"
    drawn = resample(read_run(Path("runs/run")), 100)  # its numbers follow from its rows
    assert numbers <= set(drawn.values)
    for name, rows in (("forget", ROWS[:2]), ("retain", ROWS[2:4]), ("holdout", ROWS[4:])):
        said = [(row["question"], row["answer"]) for row in document[name]["rows"]]
        assert said == [(row["q"], row["a"]) for row in rows]
    assert report_command.main(["runs/run", "-o", "report.html"]) == 0
    page = Path("report.html").read_text()
    assert all(text in page for text in ("UE 1-Prob", "MIA holdout", ROWS[0]["q"], ROWS[4]["a"]))


def test_an_edited_file_is_another_data_set(base):
    assert unlearn_command.main(base(unlearn__save_model="false")) == 0
    path = Path("forget.jsonl")
    path.write_text(path.read_text().replace("Lisbon", "London"))
    with pytest.raises(ConfigError, match=r"made from other files than are there now.*forget"):
        unlearn_command.main(base(unlearn__save_model="false"))
    with pytest.raises(WagleError, match=r"mask/own_0\.5\.pt was made by something else"):
        unlearn_command.main(base(logger__name="again"))
    path.write_text(path.read_text().replace("London", "Lisbon"))
    held_out = [{**ROWS[4], "a": "Nobody knows."}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(held_out), "holdout.parquet")
    with pytest.raises(ConfigError, match=r"made from other files.*holdout\.parquet"):
        unlearn_command.main(base(unlearn__save_model="false"))


def test_running_text_is_unlearned_and_refused_where_questions_are_needed(base):
    texts = {"dataset__forget_dataset_name": "texts.json", "unlearn__mask_path": "m/t_0.5.pt"}
    for method in ("PO", "RL", "DPO"):
        with pytest.raises(ConfigError, match=r"needs questions with answers, and texts\.json is"):
            unlearn_command.main(base(**texts, unlearn__unlearn_method=method))
    with pytest.raises(ConfigError, match=r"wagle_cl needs questions .* texts\.json"):
        unlearn_command.main(base(**texts, unlearn__score_type="wagle_cl"))
    assert not Path("m").exists()
    assert unlearn_command.main(base(**texts)) == 0
    assert "UE 1-RougeL" not in results()
    assert "UT RougeL" in results()
    assert report_command.main(["runs/run", "-o", "report.html"]) == 0


def test_refusals_of_any_kind_suit_files(base):
    assert unlearn_command.main(base(unlearn__unlearn_method="PO", unlearn__mask_path="null")) == 0
    assert "UE Avg" in results()


def test_a_column_that_is_not_there_ends_the_command(base):
    with pytest.raises(WagleError, match=r"forget\.jsonl: there is no question and answer.*q, a"):
        unlearn_command.main(base(dataset__question_column="null", dataset__answer_column="null"))


def test_fine_tuning_learns_files(base, model_folder):
    argv = {
        "overall.model_name": model_folder,
        "finetune.dataset_name": "forget.jsonl",
        "finetune.extra_dataset_names": "retain.csv,texts.json",
        "finetune.batch_size": 2,
        "finetune.output_dir": "model",
        "dataset.question_column": "q",
        "dataset.answer_column": "a",
    }
    argv = [f"--{key}={value}" for key, value in argv.items()]
    assert fine_tune_command.main(argv) == 0
    record = json.loads(Path("model/fine_tuning.json").read_text())
    assert {"forget.jsonl", "retain.csv", "texts.json"} < set(record["fingerprints"])
    Path("texts.json").write_text(json.dumps([{"text": "Somebody else was."}] * 2))
    with pytest.raises(ConfigError, match=r"made from other files .*texts\.json"):
        fine_tune_command.main(argv)
