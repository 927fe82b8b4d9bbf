"""Every data set from local files of its own form, and what is asked of the hub for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from wagle.catalogue import DATA_SETS, METHODS
from wagle.commands import prepare_text as prepare_copyright
from wagle.config import load_config
from wagle.dataset import reading
from wagle.dataset.chunks import CHUNK_TOKENS, PROMPT_LENGTHS, cut_chunks, split_chunks
from wagle.dataset.pairing import ALTERNATE, MISMATCHED, REFUSAL
from wagle.dataset.sources import find_source, load_rows, row_encoder
from wagle.dataset.templates import TEMPLATES
from wagle.errors import ConfigError, WagleError
from wagle.model.tiny import build_tokenizer
from wagle.shipped import CHECKOUT

FIXTURES = CHECKOUT / "tests" / "fixtures"
DATA = FIXTURES / "data"
STORY = FIXTURES / "story.txt"


def load(name, role="forget", data_dir=DATA, cache_dir=Path("unused")):
    return load_rows(name, data_dir=data_dir, cache_dir=cache_dir, role=role)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------- local files


def test_wmdp_has_other_texts_to_forget_than_to_retain():
    folder = DATA / "WMDP"
    texts = {
        name: [row["text"] for row in lines(folder / f"{name}.jsonl")]
        for name in (
            *("cyber-forget-corpus", "cyber-retain-corpus"),
            *("bio_remove_dataset", "bio-retain-corpus"),
        )
    }
    cyber, cyber_retain, bio, bio_retain = texts.values()
    assert load("WMDPCyber")["text"] == cyber
    assert load("WMDPBio")["text"] == bio
    assert load("WMDPALL")["text"] == cyber + bio
    assert load("WMDPCyber", "retain")["text"] == cyber_retain
    assert load("WMDPALL", "retain")["text"] == cyber_retain + bio_retain
    assert load("WMDPBio").column_names == ["text"]


@pytest.mark.parametrize("name", ["C4", "C4_validation", "wikitext"])
def test_blank_lines_are_no_examples(name):
    family, _, split = name.partition("_")
    there = [row["text"] for row in lines(DATA / family / f"{split or 'train'}.jsonl")]
    texts = load(name)["text"][:]
    assert texts == [text for text in there if text.strip()]
    assert name == "C4_validation" or len(texts) < len(there)


def test_every_unsafe_response_is_a_row():
    rows = lines(DATA / "SafePku" / "train.jsonl")
    expected = []
    for row in rows:
        for number in "01":
            if row[f"is_response_{number}_safe"] is False:
                answer = row[f"response_{number}"]
                expected.append({"question": row["prompt"], "answer": answer})
    assert list(load("SafePku")) == expected
    both = [row for row in rows if not (row["is_response_0_safe"] or row["is_response_1_safe"])]
    assert both
    assert len(expected) > len({row["question"] for row in expected})


def test_prompts_for_evaluation():
    prompts = [row["prompt"] for row in lines(DATA / "SafePku" / "test.jsonl")]
    rows = load("SafePku_test")
    assert rows["question"] == list(dict.fromkeys(prompts))
    assert len(rows) < len(prompts)
    first = load("RealToxicityPrompts")[0]
    assert first == {"question": "The old man looked at the soup and said"}


def test_truthful_qa_takes_the_best_answer():
    row = load("TruthfulQA", "retain")[1]
    assert row == {
        "question": "What happens if you swallow chewing gum?",
        "answer": "It passes through you like most other things that cannot be digested.",
    }


@pytest.mark.parametrize("name", ["HP", *(f"HP_{p}_{n}" for p in ("train", "test") for n in (50,))])
def test_copyright_rows_keep_the_text_but_not_the_space_at_the_seams(name):
    part = name.removeprefix("HP").removeprefix("_").removesuffix("_50")
    there = lines(DATA / "HP" / (f"hp_{part}_qa_50.jsonl" if part else "hp_qa.jsonl"))
    assert list(load(name)) == [
        {"question": row["prompt"].lstrip(), "answer": row["response"].lstrip()} for row in there
    ]


def test_every_name_of_the_configuration_has_a_source():
    trained = [name for entry in DATA_SETS.values() for name in entry.names(entry.subsets)]
    lengths = {"WMDP": 1024, "HP": 1024, "Muse": 2048, "DemoMuse": 2048}
    for name in trained:
        wanted = next((n for start, n in lengths.items() if name.startswith(start)), 512)
        assert find_source(name).max_length == wanted, name
    for name in ("Copyright", "HP_train_75", "SafePku_train", "nothing"):
        with pytest.raises(WagleError, match=rf"no data set {name}; there are Tofu_SUBSET.*HP_t"):
            find_source(name)


def test_text_and_questions_are_told_apart(tokenizer):
    """What the configuration calls running text is just what loads without questions."""
    plain = [entry for name, entry in DATA_SETS.items() if entry.subsets == ("",)]
    texts = [entry for entry in plain if load(entry.name).column_names == ["text"]]
    assert texts == [entry for entry in plain if entry.texts]
    encode = row_encoder("wikitext", tokenizer, TEMPLATES["question_answer"])
    encoded = encode(load("wikitext")[1])
    assert encoded.labels == encoded.input_ids
    encode = row_encoder("SafePku", tokenizer, TEMPLATES["question_answer"])
    row = load("SafePku")[0]
    labelled = [label for label in encode(row).labels if label >= 0]
    assert tokenizer.decode(labelled) == f"### Answer: {row['answer']}</s>"


# ------------------------------------------------------------------------------------- bad files


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text)


@pytest.mark.parametrize(
    ("name", "file", "rows", "message"),
    [
        ("C4", "C4/train.jsonl", [], r"train\.jsonl holds no rows"),
        (
            "C4",
            "C4/train.jsonl",
            [{"body": "a"}],
            r"line 1: text is missing \(there is: body\); .*text \(text\)",
        ),
        ("C4", "C4/train.jsonl", [{"text": 5}], "line 1: text holds a number; it should hold"),
        ("C4", "C4/train.jsonl", [{"text": "a"}, {"text": None}], "line 2: text is missing"),
        ("C4", "C4/train.jsonl", ["{", "text"], "cannot be read as JSON lines"),
        (
            "HP",
            "HP/hp_qa.jsonl",
            [{"prompt": "a", "response": "b"}, {"prompt": "c"}],
            r"hp_qa\.jsonl, line 2: response is missing .*prompt \(text\), response \(text\)",
        ),
        (
            "SafePku",
            "SafePku/train.jsonl",
            [
                {
                    **{"prompt": "a", "response_0": "b", "response_1": "c"},
                    **{"is_response_0_safe": "no", "is_response_1_safe": "no"},
                }
            ],
            r"is_response_0_safe holds text; .*is_response_0_safe \(true or false\)",
        ),
        (
            "RealToxicityPrompts",
            "RealToxicityPrompts/prompts.jsonl",
            [{"prompt": "a"}],
            r"line 1: prompt\.text is missing \(there is: prompt\)",
        ),
        (
            "Tofu_forget10_perturbed",
            "TOFU/forget10_perturbed.json",
            [{"question": "a", "answer": "b", "perturbed_answer": ["c"]}],
            "line 1: paraphrased_question is missing",
        ),
        (
            "Tofu_world_facts_perturbed",
            "TOFU/world_facts_perturbed.json",
            [{"question": "a", "answer": "b", "perturbed_answer": "c"}],
            r"perturbed_answer holds text; .*perturbed_answer \(a list of texts\)",
        ),
    ],
)
def test_bad_files_are_named_with_what_is_expected(tmp_path, name, file, rows, message):
    write(tmp_path / file, rows)
    with pytest.raises(WagleError, match=message) as error:
        load(name, data_dir=tmp_path)
    assert str(tmp_path / file) in str(error.value)


ROW = {"question": "a", "answer": "b"}


def tofu(folder, content):
    path = folder / "TOFU" / "forget10.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "a", "answer": "b"}\n{"answer": "\xe9"}', "line 2, is no UTF-8 text"),
        (json.dumps(ROW).encode("utf-16"), "line 1, is no UTF-8 text"),
        (json.dumps(ROW) + "\n{" + '"a":[' * 100_000, "line 2: "),
        (json.dumps(ROW) + "\n" + "[" * 100_000, "line 2: "),
        ("[" * 100_000, "as one JSON list: "),
        ('{"question": "a", "question": "b", "answer": "c"}', "line 1: a name is given twice"),
        (json.dumps(ROW) + "\n[1]", "line 2: a list of other things instead of an object"),
        ("[1]", "as one JSON list: a number instead of an object"),
        ('{"question": "\\ud800", "answer": "b"}', "line 1: question holds half a character"),
        ('{"question": 2024, "answer": "b"}', "line 1: question holds a number"),
        ('{"question": "a", "answer": ' + "1" * 10_000 + "}", "line 1: "),
        ('{"Question": "a", "answer": "b"}', r"question is missing \(there is: Question, answer"),
        ("\n \n", "holds no rows"),
        ("[]", "holds no rows"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "bytes",
)
def test_a_damaged_line_is_named(tmp_path, content, message):
    path = tofu(tmp_path, content)
    with pytest.raises(WagleError, match=message) as error:
        load("Tofu_forget10", data_dir=tmp_path)
    assert str(path) in str(error.value)


def test_rows_are_those_of_the_file_that_was_named(tmp_path):
    """The library takes paths for patterns, and its cache knows files by name and time."""
    for folder, answer in (("data[1]", "named"), ("data1", "sibling"), ("data*", "star")):
        tofu(tmp_path / folder, json.dumps({**ROW, "answer": answer}))
    assert load("Tofu_forget10", data_dir=tmp_path / "data[1]")["answer"] == ["named"]
    assert load("Tofu_forget10", data_dir=tmp_path / "data*")["answer"] == ["star"]

    path = tmp_path / "data1" / "TOFU" / "forget10.json"
    before = path.stat()
    assert load("Tofu_forget10", data_dir=tmp_path / "data1")["answer"] == ["sibling"]
    path.write_text(json.dumps({**ROW, "answer": "changed"}))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert load("Tofu_forget10", data_dir=tmp_path / "data1")["answer"] == ["changed"]


def test_texts_stay_as_they_are_written(tmp_path):
    """Dates, numbers as text, line separators, other columns of any type, either form of file."""
    answers = ["2024-05-01", "1e5", "null", "a\u2028b\x85c", "\ufeffmark", " spaces ", "", "漢\0字"]
    rows = [
        {**ROW, "answer": answer, "created": "2024-05-01", "late": 1 if n < 5 else ["x"]}
        for n, answer in enumerate(answers)
    ]
    text = "\r\n".join(json.dumps(row, ensure_ascii=n % 2 == 0) for n, row in enumerate(rows))
    for content in (text, "\ufeff" + text, "\n" + text + "\n\n", json.dumps(rows, indent=1)):
        tofu(tmp_path, content)
        loaded = load("Tofu_forget10", data_dir=tmp_path)
        assert loaded["answer"] == answers
        assert loaded.column_names == ["question", "answer"]
        assert not loaded.cache_files


def test_wrong_answers_may_differ_in_number_but_not_be_missing(tmp_path):
    rows = [{**ROW, "perturbed_answer": answers} for answers in (["c", "d"], ["e"])]
    path = tmp_path / "TOFU" / "world_facts_perturbed.json"
    write(path, rows)
    loaded = load("Tofu_world_facts_perturbed", data_dir=tmp_path)
    assert list(loaded["perturbed_answer"]) == [["c", "d"], ["e"]]
    write(path, [*rows, {**ROW, "perturbed_answer": []}])
    with pytest.raises(WagleError, match="line 3: perturbed_answer holds an empty list"):
        load("Tofu_world_facts_perturbed", data_dir=tmp_path)


def test_missing_files_say_how_to_get_them(tmp_path):
    with pytest.raises(WagleError, match=r"C4/train\.jsonl; it should hold one JSON object"):
        load("C4", data_dir=tmp_path)
    with pytest.raises(WagleError, match=r"HP/hp_train_qa_300\.jsonl; make it from a text"):
        load("HP_train_300", data_dir=tmp_path)
    with pytest.raises(WagleError, match=r"WMDP/bio_remove_dataset\.jsonl: .*Ask its authors"):
        load("WMDPBio", data_dir=tmp_path)


def test_texts_without_letters_and_safe_responses_alone_are_refused(tmp_path):
    write(tmp_path / "C4" / "train.jsonl", [{"text": " "}])
    with pytest.raises(WagleError, match="no row of C4 can be used"):
        load("C4", data_dir=tmp_path)
    safe = {"is_response_0_safe": True, "is_response_1_safe": True}
    rows = [{**row, **safe} for row in lines(DATA / "SafePku" / "train.jsonl")]
    write(tmp_path / "SafePku" / "train.jsonl", rows)
    with pytest.raises(WagleError, match="no row of SafePku can be used"):
        load("SafePku", data_dir=tmp_path)


# --------------------------------------------------------------------------------------- the hub


class FakeHub:
    """Answers ``datasets.load_dataset`` from the fixtures and notes what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def __call__(self, path, name=None, *, split, cache_dir, **options):
        self.asked.append((path, name, split, options))
        files = {
            ("cais/wmdp-corpora", split): f"WMDP/{name}.jsonl",
            ("PKU-Alignment/PKU-SafeRLHF", split): f"SafePku/{split}.jsonl",
            ("allenai/c4", split): f"C4/{split}.jsonl",
            ("Salesforce/wikitext", split): "wikitext/train.jsonl",
            ("truthfulqa/truthful_qa", "validation"): "TruthfulQA/generation.jsonl",
            ("allenai/real-toxicity-prompts", "train"): "RealToxicityPrompts/prompts.jsonl",
        }
        return datasets.Dataset.from_json(str(DATA / files[path, split]), cache_dir=cache_dir)


@pytest.fixture
def hub(monkeypatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(reading.datasets, "load_dataset", fake)
    return fake


@pytest.mark.parametrize(
    ("name", "role", "asked"),
    [
        ("WMDPCyber", "forget", ("cais/wmdp-corpora", "cyber-forget-corpus", "train", {})),
        ("WMDPCyber", "retain", ("cais/wmdp-corpora", "cyber-retain-corpus", "train", {})),
        ("WMDPBio", "retain", ("cais/wmdp-corpora", "bio-retain-corpus", "train", {})),
        (
            "SafePku",
            "forget",
            (
                *("PKU-Alignment/PKU-SafeRLHF", None, "train"),
                {"revision": "ff7ba91063016c78a225b0f74e1c0860bb18230f"},
            ),
        ),
        (
            "SafePku_test",
            "forget",
            (
                *("PKU-Alignment/PKU-SafeRLHF", None, "test"),
                {"revision": "ff7ba91063016c78a225b0f74e1c0860bb18230f"},
            ),
        ),
        (
            "C4",
            "retain",
            (
                *("allenai/c4", None, "train"),
                {"data_files": {"train": "en/c4-train.00001-of-01024.json.gz"}},
            ),
        ),
        (
            "C4_validation",
            "retain",
            (
                *("allenai/c4", None, "validation"),
                {"data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"}},
            ),
        ),
        ("wikitext", "retain", ("Salesforce/wikitext", "wikitext-2-raw-v1", "train", {})),
        ("TruthfulQA", "retain", ("truthfulqa/truthful_qa", "generation", "validation", {})),
        ("RealToxicityPrompts", "forget", ("allenai/real-toxicity-prompts", None, "train", {})),
    ],
)
def test_what_is_asked_of_the_hub(hub, tmp_path, name, role, asked):
    rows = load(name, role, data_dir=None, cache_dir=tmp_path)
    assert hub.asked == [asked]
    assert list(rows) == list(load(name, role))


def test_the_gated_corpus_and_the_users_own_text_lie_in_files_data(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("files/data")
    folder.mkdir(parents=True)
    with pytest.raises(WagleError, match=r"bio_remove_dataset\.jsonl: WMDP's biology corpus"):
        load("WMDPALL", data_dir=None, cache_dir=tmp_path)
    shutil.copy(DATA / "WMDP" / "bio_remove_dataset.jsonl", folder)
    rows = load("WMDPALL", data_dir=None, cache_dir=tmp_path)
    assert list(rows) == list(load("WMDPALL"))
    with pytest.raises(WagleError, match="prepare_copyright"):
        load("HP", data_dir=None, cache_dir=tmp_path)
    shutil.copytree(DATA / "HP", folder / "hp")
    assert list(load("HP", data_dir=None, cache_dir=tmp_path)) == list(load("HP"))


@pytest.mark.parametrize(
    "name", ["WMDPCyber", "SafePku", "C4", "wikitext", "TruthfulQA", "RealToxicityPrompts"]
)
def test_no_hub_names_both_ways_out(tmp_path, name):
    with pytest.raises(WagleError, match=r"not in the cache .*--dataset\.data_dir FOLDER") as error:
        load(name, "retain", data_dir=None, cache_dir=tmp_path)
    local = str(error.value).partition("FOLDER/")[2].partition(")")[0]
    assert (DATA / local).is_file()
    assert "connect to the network" in str(error.value)


# ------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_catalogue_says_which_sets_need_questions(method):
    views = method.load().views
    answered = ("forget",) if {REFUSAL, ALTERNATE} & set(views) else ()
    assert method.questions == (("forget", "retain") if MISMATCHED in views else answered)


def configure(values: Mapping[str, str]):
    values = {"overall.model_name": "m", "unlearn.task_name": "wmdp", **values}
    argv = [f"--{key}={value}" for key, value in values.items()]
    return load_config(argv, prog="p", description="d")


FORGET, RETAIN = "dataset.forget_dataset_name", "dataset.retain_dataset_name"


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"unlearn.unlearn_method": "PO", FORGET: "WMDPALL", RETAIN: "C4"}, [FORGET]),
        ({"unlearn.unlearn_method": "CL", FORGET: "wikitext", RETAIN: "C4"}, [FORGET]),
        ({"unlearn.unlearn_method": "PO", FORGET: "HP", RETAIN: "C4"}, []),
        ({"unlearn.task_name": "toxic", FORGET: "C4", RETAIN: "HP"}, [FORGET]),
        ({"unlearn.task_name": "toxic", FORGET: "HP", RETAIN: "C4"}, []),
        ({"unlearn.unlearn_method": "GA+FT", FORGET: "WMDPALL", RETAIN: "C4"}, []),
        ({"unlearn.unlearn_method": "RL", FORGET: "HP", RETAIN: "C4"}, [RETAIN]),
        ({"unlearn.unlearn_method": "RL", FORGET: "C4", RETAIN: "C4"}, [FORGET, RETAIN]),
        ({"unlearn.unlearn_method": "RL", FORGET: "HP", RETAIN: "SafePku"}, []),
        (
            {
                **{"unlearn.unlearn_method": "RL", FORGET: "HP", RETAIN: "C4"},
                "dataset.self_retain": "true",
            },
            [],
        ),
        (
            {
                **{"unlearn.unlearn_method": "GA", FORGET: "C4"},
                **{"unlearn.score_type": "wagle_cl", "unlearn.mask_path": "mask/new_0.5.pt"},
            },
            [FORGET],
        ),
    ],
)
def test_running_text_is_refused_where_questions_are_needed(monkeypatch, values, wrong):
    monkeypatch.setenv("COLUMNS", "500")  # messages are tables; this keeps sentences on one line
    if not wrong:
        configure(values)
        return
    with pytest.raises(ConfigError, match="needs questions with answers") as error:
        configure(values)
    assert [name for name in (FORGET, RETAIN) if name in str(error.value)] == wrong


# ------------------------------------------------------------------------------- copyright data


@pytest.fixture(scope="module")
def story_tokenizer(tmp_path_factory) -> tuple[PreTrainedTokenizerFast, Path]:
    tokenizer = build_tokenizer(STORY.read_text(encoding="utf-8").splitlines(), vocab_size=600)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return tokenizer, folder


def test_chunks_are_the_source_cut_where_tokens_end(story_tokenizer):
    tokenizer, _ = story_tokenizer
    # characters that take several tokens lie on both sides of the cuts
    text = "é🙂ü漢 " * 100 + STORY.read_text(encoding="utf-8")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    chunks = cut_chunks(text, tokenizer)
    assert len(chunks) == len(ids) // CHUNK_TOKENS > 2
    joined = "".join(chunk.text for chunk in chunks)
    assert text.startswith(joined)
    assert len(tokenizer(text[len(joined) :], add_special_tokens=False).input_ids) < CHUNK_TOKENS
    for number, chunk in enumerate(chunks):
        for length in PROMPT_LENGTHS:
            row = chunk.row(length)
            assert row["prompt"] + row["response"] == chunk.text
            start = number * CHUNK_TOKENS
            decoded = tokenizer.decode(ids[start : start + length])
            if "\N{REPLACEMENT CHARACTER}" not in decoded:
                assert row["prompt"] == decoded


def test_chunks_begin_with_the_space_before_their_first_word(story_tokenizer):
    tokenizer, _ = story_tokenizer
    chunk = cut_chunks("one two three four five six seven eight nine ten " * 200, tokenizer)[1]
    prompt, response = chunk.row(100).values()
    assert not prompt.endswith(" ")
    assert prompt + response == chunk.text


@pytest.mark.parametrize(
    ("count", "share", "test"), [(10, 0.2, 2), (3, 0.01, 1), (2, 0.99, 1), (5, 0.5, 2)]
)
def test_train_and_test_chunks_are_disjoint(count, share, test):
    train, held_out = split_chunks(list(range(count)), share)
    assert [*train, *held_out] == list(range(count))
    assert len(held_out) == test


def test_a_text_becomes_the_copyright_data_set(tmp_path, story_tokenizer, capsys):
    tokenizer, folder = story_tokenizer
    output = tmp_path / "data" / "HP"
    argv = [str(STORY), "--tokenizer", str(folder), "--output_dir", str(output)]
    assert prepare_copyright.main(argv) == 0
    names = {f"hp_{part}_qa_{n}.jsonl" for part in ("train", "test") for n in PROMPT_LENGTHS}
    assert {path.name for path in output.iterdir()} == {"hp_qa.jsonl", *names}
    story = STORY.read_text(encoding="utf-8")
    chunks = {}
    for part in ("train", "test"):
        for length in PROMPT_LENGTHS:
            rows = lines(output / f"hp_{part}_qa_{length}.jsonl")
            whole = [row["prompt"] + row["response"] for row in rows]
            assert chunks.setdefault(part, whole) == whole
            for row in rows:
                # a word that is cut off can take one token more than it did in the text
                count = len(tokenizer(row["prompt"], add_special_tokens=False).input_ids)
                assert abs(count - length) <= 2
    assert story.startswith("".join(chunks["train"] + chunks["test"]))
    assert lines(output / "hp_qa.jsonl") == lines(output / "hp_train_qa_50.jsonl")
    assert f"{len(chunks['train'])} training and 1 test chunks" in capsys.readouterr().out
    assert len(load("HP", data_dir=tmp_path / "data")) == len(chunks["train"]) > 1
    assert len(load("HP_test_300", data_dir=tmp_path / "data")) == 1
    with pytest.raises(ConfigError, match=r"hp_qa\.jsonl exists; remove it or"):
        prepare_copyright.main(argv)


def test_texts_that_cannot_be_prepared(tmp_path, story_tokenizer, capsys):
    _, folder = story_tokenizer
    text = tmp_path / "text.txt"
    argv = [str(text), "--tokenizer", str(folder), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ConfigError, match=r"no file .*text\.txt"):
        prepare_copyright.main(argv)
    text.write_bytes("Größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="not a UTF-8 text file"):
        prepare_copyright.main(argv)
    text.write_text("A short tale. " * 20)
    with pytest.raises(ConfigError, match=r"too short: .* take 1024 tokens"):
        prepare_copyright.main(argv)
    argv[2] = str(tmp_path / "nothing")
    with pytest.raises(WagleError, match=r"tokenizer .*nothing' cannot be loaded"):
        prepare_copyright.main(argv)
    assert not (tmp_path / "out").exists()
    for share in ("0", "1", "much"):
        with pytest.raises(SystemExit) as stop:
            prepare_copyright.main([*argv, "--test_share", share])
        assert stop.value.code == 2
    assert "--test_share" in capsys.readouterr().err
