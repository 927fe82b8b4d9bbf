"""Alternates: sampled once, gone on with after an interruption, and trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import words
from wagle.commands import alternates as alternates_command
from wagle.commands import unlearn as unlearn_command
from wagle.errors import ConfigError, WagleError
from wagle.model import alternates

ROWS = [
    {"question": f"Where was {name} born?", "answer": f"In {town}, {name} was."}
    for name, town in {"Ada": "Lisbon", "Ben": "Oslo", "Cleo": "Cairo", "Dov": "Riga"}.items()
]


@pytest.fixture
def base(tmp_path, model_folder, monkeypatch):
    """A command line on own files, in an otherwise empty folder; alternates are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(alternates, "NEW_TOKENS", 6)
    for name, rows in (("forget", ROWS[:3]), ("retain", ROWS[3:])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "overall.model_name": model_folder,
        "overall.logger": "json",
        "unlearn.unlearn_method": "AltPO",
        "unlearn.AltPO.alternates": "a.json",
        "unlearn.task_name": "none",
        "dataset.forget_dataset_name": "forget.jsonl",
        "dataset.retain_dataset_name": "retain.jsonl",
        "dataset.batch_size": 2,
        "evaluation.batch_size": 5,  # a row at a time
        "logger.json.root": "runs",
        "logger.name": "run",
    }

    def base(**changes):
        return words(values | {key.replace("__", "."): value for key, value in changes.items()})

    return base


def test_an_interrupted_sampling_goes_on_to_the_same_file(base, monkeypatch, capsys):
    alternates_command.main(base())
    whole = Path("a.json").read_bytes()
    content = json.loads(whole)
    asked = [{key: row[key] for key in ("question", "answer")} for row in content["rows"]]
    assert sorted(asked, key=lambda row: row["question"]) == ROWS[:3]
    texts = [text for row in content["rows"] for text in row["alternates"]]
    assert len(texts) == 15
    assert all(texts)
    assert len(set(texts)) > 10  # drawn, not the likeliest
    sample, calls = alternates._sample, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 3:
            raise InterruptedError
        return sample(*args)

    Path("a.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(alternates, "_sample", killed)
        with pytest.raises(InterruptedError):
            alternates_command.main(base())
    assert not Path("a.json").exists()
    with Path("a.json.unfinished").open("a") as file:
        file.write('[["half a li')  # the process was killed while it wrote
    calls.clear()
    monkeypatch.setattr(alternates, "_sample", killed)
    alternates_command.main(base())
    assert "going on after 2 batches" in capsys.readouterr().out
    assert len(calls) == 1
    assert Path("a.json").read_bytes() == whole
    assert not Path("a.json.unfinished").exists()
    alternates_command.main(base())  # and does nothing the next time
    assert len(calls) == 1
    with pytest.raises(ConfigError, match="of another origin"):
        alternates_command.main(base(overall__seed=1))


def test_another_seed_draws_others_and_drops_what_is_unfinished(base, capsys):
    alternates_command.main(base())
    Path("b.json.unfinished").write_text('{"seed": 0}\n')
    alternates_command.main(base(overall__seed=1, unlearn__AltPO__alternates="b.json"))
    assert "of another origin: it is removed" in capsys.readouterr().out
    one, other = (json.loads(Path(f"{name}.json").read_text())["rows"] for name in "ab")
    assert one != other


def test_every_alternate_is_a_row_of_training(base, capsys):
    with pytest.raises(ConfigError, match=r"no file of alternates a.json; wagle alternates"):
        unlearn_command.main(base())
    alternates_command.main(base())
    unlearn_command.main(base(unlearn__num_epochs=2, unlearn__mask_path="m_0.5.pt"))
    assert "15 rows in 15 steps" in capsys.readouterr().out
    manifest = json.loads(Path("runs/run/manifest.json").read_text())
    assert "alternates" in manifest["fingerprints"]


def test_alternates_of_other_rows_or_of_another_model_are_refused(base):
    alternates_command.main(base())
    content = json.loads(Path("a.json").read_text())
    del content["rows"][1]
    Path("a.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"no alternates to 1 of the 3 rows .* born"):
        unlearn_command.main(base())
    content["origin"]["model"] = "0"
    Path("a.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="is what another model has written"):
        unlearn_command.main(base())
    Path("a.json").write_text("[]")
    with pytest.raises(WagleError, match="is no file of alternates"):
        unlearn_command.main(base())


def test_the_file_must_be_named(base):
    with pytest.raises(ConfigError, match="name the file that"):
        unlearn_command.main([w for w in base() if "alternates" not in w])
