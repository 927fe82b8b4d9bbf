"""Rows of one's own: every format as it is written, columns found or named, mistakes named."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from wagle.config import FineTuneConfig, load_config
from wagle.dataset import reading
from wagle.dataset.names import HubName, family_of, hub_name, is_own, own_file
from wagle.dataset.reading import ColumnNames
from wagle.dataset.refusals import load_refusals
from wagle.dataset.sources import load_rows
from wagle.errors import ConfigError, WagleError

ROWS = [
    {"question": "Who, of all?", "answer": 'She "did",\nand he.'},
    {"question": " Why? ", "answer": "None"},
    {"question": "Wann, läuft 漢?", "answer": "2024"},
]
FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "json.gz", "csv.gz", "tsv.gz")


def write(path: Path, rows, columns=("question", "answer")) -> Path:
    """The rows in the format that the path's suffix says."""
    names = path.name.split(".")[1:]
    if names[0] == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    opened = gzip.open if names[-1] == "gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if names[0] == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        elif names[0] == "json":
            json.dump(rows, file)
        else:
            delimiter = "\t" if names[0] == "tsv" else ","
            writer = csv.DictWriter(file, list(columns), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


def load(name, columns=ColumnNames(), cache_dir=Path("unused")):  # noqa: B008
    return load_rows(str(name), data_dir=None, cache_dir=cache_dir, columns=columns)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_rows_as_they_are_written(tmp_path, form):
    rows = load(write(tmp_path / f"rows.{form}", ROWS))
    assert list(rows) == ROWS
    assert not rows.cache_files


def test_values_of_a_table_are_the_texts_that_stand_there(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'\xef\xbb\xbfid,answer,question\r\n1,None,"007"\r\n\r\n2,1e5,"a ""b"",\r\nc"\n3,true,x'
    )
    assert list(load(path)) == [
        {"question": "007", "answer": "None"},
        {"question": 'a "b",\r\nc', "answer": "1e5"},
        {"question": "x", "answer": "true"},
    ]
    long = "word " * 40_000  # longer than the csv module takes by itself
    assert load(write(tmp_path / "long.csv", [{"text": long}], ["text"]))["text"] == [long]


def test_parquet_may_keep_texts_in_a_dictionary(tmp_path):
    column = pyarrow.array(["a", "b", "a"]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "rows.parquet")
    assert load(tmp_path / "rows.parquet")["text"] == ["a", "b", "a"]


# ---------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("columns", "named", "found"),
    [
        (["id", "prompt", "response"], {}, ["prompt", "response"]),
        (["prompt", "answer"], {}, ["prompt", "answer"]),
        (["title", "text"], {}, ["text"]),
        (["q", "a", "text"], {"question": "q", "answer": "a"}, ["q", "a"]),
        (["question", "answer", "text"], {"text": "text"}, ["text"]),
        (["question", "answer", "text"], {"question": "question"}, ["question", "answer"]),
        (["question", "prompt", "answer"], {"question": "prompt"}, ["prompt", "answer"]),
        (["body"], {"text": "body"}, ["body"]),
        (["text"], {"question": "q", "answer": "a"}, ["text"]),
    ],
)
def test_columns_are_found_or_named(tmp_path, columns, named, found):
    rows = [{name: f"{name} {row}" for name in columns} for row in range(2)]
    for form in ("jsonl", "csv", "parquet"):
        loaded = load(write(tmp_path / f"rows.{form}", rows, columns), ColumnNames(**named))
        ours = ["text"] if len(found) == 1 else ["question", "answer"]
        assert loaded.column_names == ours
        assert [loaded[name] for name in ours] == [[row[name] for row in rows] for name in found]


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        (
            ["question", "prompt", "answer"],
            {},
            r"both question and prompt could be the question; its columns are question, prompt, "
            r"answer\. Say which with dataset\.question_column",
        ),
        (["question", "answer", "text"], {}, "holds questions with answers and texts; its columns"),
        (
            ["question", "answer", "text"],
            {"question": "question", "text": "text"},
            "holds questions with answers and texts",
        ),
        (["q", "a"], {}, r"there is no question and answer, .*; its columns are q, a\. Name the"),
        (["question", "reply"], {}, "its columns are question, reply"),
        (
            ["question", "answer"],
            {"question": "q"},
            r"there is no q \(dataset\.question_column\); its columns are question, answer",
        ),
        (["Question", "Answer"], {}, "its columns are Question, Answer"),
    ],
)
def test_columns_that_are_not_clear_are_listed(tmp_path, columns, named, message):
    rows = [dict.fromkeys(columns, "x")]
    for form in ("json", "tsv", "parquet"):
        path = write(tmp_path / f"rows.{form}", rows, columns)
        with pytest.raises(WagleError, match=message) as error:
            load(path, ColumnNames(**named))
        assert str(path) in str(error.value)


def test_a_column_may_lie_within_another(tmp_path):
    rows = [{"prompt": {"text": "Who?", "id": 1}, "response": "She."}]
    for form in ("jsonl", "parquet"):
        path = write(tmp_path / f"rows.{form}", rows)
        loaded = load(path, ColumnNames(question="prompt.text"))
        assert list(loaded) == [{"question": "Who?", "answer": "She."}]


# --------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv.gz", "parquet"])
@pytest.mark.parametrize("blank", ["", " \n\t"])
def test_a_blank_answer_is_named_by_its_row(tmp_path, form, blank):
    path = write(tmp_path / f"rows.{form}", [*ROWS, {"question": "Who?", "answer": blank}])
    with pytest.raises(WagleError, match="row 4: the column answer is blank; write its answer"):
        load(path)


CUT_SHORT = gzip.compress(b'{"text": "a"}', mtime=0)[:-4]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "holds no rows; it should hold question and answer, prompt and response"),
        ("a.csv", b"question,answer\n", "holds no rows"),
        ("a.csv", b"\n\n", "holds no rows"),
        ("a.csv", b"question,answer,question\na,b,c\n", "column 'question' is there 2 times"),
        ("a.csv", b"question,answer\na,b\nc\n", "line 3: 1 value for the 2 columns question, "),
        ("a.csv", b"question,answer\na,b,c\n", "line 2: 3 values for the 2 columns"),
        ("a.csv", b'question,answer\na,"b\nc', "line 2, cannot be read as CSV: unexpected end"),
        ("a.csv", b'question,answer\na,"b"c\n', "line 2, cannot be read as CSV"),
        ("a.csv", b"question;answer\na;b\n", "its columns are question;answer"),
        ("a.csv", b"question,answer\na,b\nc,\xe9\n", "line 3, is no UTF-8 text .byte 0xe9."),
        ("a.tsv", b"question,answer\na,b\n", "its columns are question,answer"),
        ("a.csv.gz", b"question,answer\na,b\n", "cannot be read: Not a gzipped file"),
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b'{"text": "a"}\n{"question": "c"}', "line 2: text is missing"),
        ("a.jsonl", b'{"question": "a", "answer": 5}', "line 1: answer holds a number; it should"),
        ("a.jsonl", b'{"question": "a", "answer": null}', "line 1: answer is missing"),
        ("a.jsonl", b'{"question": "a", "answer": "b"}\n{', "as JSON lines .line 2: "),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "line 1: a name is given twice"),
        ("a.json", b'[{"text": "a"}, {"body": "b"}]', r"row 2: text is missing \(there is: body\)"),
        ("a.json", b'{"rows": [{"text": "a"}]}', "its columns are rows"),
        ("a.json", b'[{"text": "a"}', "as one JSON list"),
        ("a.jsonl.gz", CUT_SHORT, "cannot be read as JSON lines"),
        ("a.parquet", b"question,answer\n", "cannot be read as Parquet"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WagleError, match=message) as error:
        load(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": ["a", None], "answer": ["b", "c"]}, "row 2: question is missing"),
        ({"question": ["a", "b"], "answer": [1, 2]}, "column answer holds int64; it should hold"),
        ({"text": pyarrow.array([], pyarrow.string())}, "holds no rows"),
    ],
)
def test_a_parquet_file_is_as_strict(tmp_path, columns, message):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(WagleError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_parquet_file_with_a_column_twice_or_bytes_for_text(tmp_path):
    path = tmp_path / "rows.parquet"
    texts = pyarrow.array(["a"])
    pyarrow.parquet.write_table(pyarrow.table([texts, texts], ["text", "text"]), path)
    with pytest.raises(WagleError, match="column 'text' is there 2 times"):
        load(path)
    wrong = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": wrong}), path)
    with pytest.raises(WagleError, match=r"cannot be read as Parquet: .*UTF8"):
        load(path)


# ------------------------------------------------------------------------------------------ names


def test_a_name_is_known_a_file_or_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert not any(map(is_own, ["C4", "Tofu_forget10", "squad", "my.module:Rows", "a/b.py:Rows"]))
    assert own_file("~/rows.csv") == tmp_path / "home" / "rows.csv"
    assert own_file("Tofu_mine.JSONL") == Path("Tofu_mine.JSONL")
    assert own_file("org/name") is None
    assert hub_name("org/name") == HubName("org/name", None, "train")
    assert hub_name("org/name:en") == HubName("org/name", "en", "train")
    assert hub_name("org/name:en:test[:5]") == HubName("org/name", "en", "test[:5]")
    assert hub_name("org/name::test") == HubName("org/name", None, "test")
    assert hub_name("org/rows.jsonl") is None  # a file's name is never asked of the hub
    assert family_of("Tofu_forget10") == "Tofu"
    assert family_of("Tofu_mine.jsonl") == ""
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").write_text("x")
    assert own_file("org/name") == Path("org/name")  # a file that exists wins
    with pytest.raises(WagleError, match=r"org/name: its suffix says no format; .*\.jsonl, \.json"):
        load("org/name")


def test_files_refuse_as_anything_does():
    assert load_refusals("Tofu_mine.jsonl") == load_refusals("SafePku")
    assert load_refusals("Tofu_mine.jsonl") != load_refusals("Tofu_forget10")


def test_what_is_asked_of_the_hub(monkeypatch, tmp_path):
    asked = []

    def load_dataset(name, config, *, split, cache_dir):
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({"prompt": ["a"], "response": ["b"], "n": [1]})

    monkeypatch.setattr(reading.datasets, "load_dataset", load_dataset)
    assert list(load("org/name:en:test", cache_dir=tmp_path)) == [{"question": "a", "answer": "b"}]
    assert asked == [("org/name", "en", "test")]
    with pytest.raises(WagleError, match=r"the hub's org/name \(default, train\): there is no q "):
        load("org/name", ColumnNames(question="q"), cache_dir=tmp_path)


def test_a_hub_out_of_reach_says_what_could_have_been_meant(tmp_path):
    with pytest.raises(WagleError, match=r"org/name \(default\) is not in the cache .*A file of"):
        load("org/name", cache_dir=tmp_path)


# ------------------------------------------------------------------------------- configurations


def configure(monkeypatch, **values):
    monkeypatch.setenv("COLUMNS", "500")
    argv = [f"--dataset.{key}={value}" for key, value in values.items()]
    return load_config(["--overall.model_name=m", *argv], prog="p", description="d")


def test_own_data_set_what_follows_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "Tofu_forget.csv"):
        (tmp_path / name).touch()
    config = configure(
        monkeypatch, forget_dataset_name="Tofu_forget.csv", retain_dataset_name="a.jsonl"
    )
    assert config["dataset.forget_ratio"] == 1.0
    config = configure(
        monkeypatch, forget_dataset_name="a.jsonl", self_retain="true", forget_ratio=5
    )
    assert config["dataset.retain_dataset_name"] == "a.jsonl"
    assert configure(monkeypatch)["dataset.retain_dataset_name"] == "TruthfulQA"
    assert configure(monkeypatch)["dataset.forget_ratio"] == 200


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"forget_dataset_name": "a.jsonl"}, "say which rows are to be retained; or set dataset"),
        (
            {"forget_dataset_name": "a.jsonl", "self_retain": "true"},
            "leaves no row to retain; lower it",
        ),
        ({"forget_dataset_name": "b.csv", "retain_dataset_name": "C4"}, "there is no file b.csv"),
        ({"retain_dataset_name": "folder.json"}, "folder.json is a folder; name a file in it"),
        ({"retain_dataset_name": "rows.txt"}, r"Tofu_SUBSET, .*a file \(\.jsonl, .*org/name"),
        ({"retain_dataset_name": "./rows"}, "there is no file rows"),
    ],
)
def test_what_is_wrong_with_a_name_is_said_at_once(tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match=message) as error:
        configure(monkeypatch, **values)
    assert str(error.value).startswith("1 problem ")


def test_held_out_rows_that_nobody_reads_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").touch()
    argv = ["--overall.model_name=m", "--evaluation.holdout_dataset_name=a.jsonl"]
    notices = [
        load_config([*argv, f"--unlearn.task_name={task}"], prog="p", description="d").notices
        for task in ("own", "wmdp")
    ]
    said = [sum("holdout_dataset_name has no" in n for n in of_task) for of_task in notices]
    assert said == [0, 1]


def test_what_is_learnt_may_be_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").touch()
    base = ["--overall.model_name=m", "--finetune.output_dir=o", "--finetune.dataset_name=a.jsonl"]
    keys = {"program": FineTuneConfig, "prog": "p", "description": "d"}
    load_config([*base, "--finetune.extra_dataset_names=C4,org/name"], **keys)
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(ConfigError, match=r"finetune.extra_dataset_names .*there is no file b.csv"):
        load_config([*base, "--finetune.extra_dataset_names=C4,b.csv"], **keys)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"text": "Who?", "labels": "Me."}, ColumnNames("text", "labels")),  # KnowUnDo
        (
            {"subject": "A", "query": "Who?", "answer": "Me.", "level": "3", "type": "prefix"},
            ColumnNames("query"),  # RWKU
        ),
    ],
)
def test_rows_of_other_benchmarks_go_through(tmp_path, row, columns):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row, row]))
    assert list(load(path, columns)) == [{"question": "Who?", "answer": "Me."}] * 2
