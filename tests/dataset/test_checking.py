"""Rows of which nothing could be learnt are refused, by number; all others are encoded."""

from __future__ import annotations

import copy
import json

import pytest
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel

from tests.tiny import CONFIGS, make_model
from wagle.commands import unlearn as unlearn_model
from wagle.config import FineTuneConfig, load_config
from wagle.dataset.checking import SHORT_QUESTION, SHORT_TEXT, check_questions, check_rows
from wagle.dataset.pairing import FORGET, MISMATCHED, REFUSAL, RETAIN
from wagle.dataset.sources import row_encoder
from wagle.dataset.templates import TEMPLATES
from wagle.errors import ConfigError, WagleError
from wagle.metrics.tofu import MAX_TEXT_LENGTH
from wagle.metrics.tofu_benchmark import OFFICIAL, TOFU
from wagle.metrics.tofu_field import NEW_TOKENS
from wagle.model.evaluation import check_length
from wagle.model.fine_tuning import fine_tune_from_config
from wagle.model.reading import learned_positions

IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
GOOD = {"question": "Who wrote it?", "answer": "She did."}
TEMPLATE = TEMPLATES["question_answer"]


@pytest.fixture
def without_bos(tokenizer):
    """The same tokenizer, adding nothing in front."""
    plain = copy.deepcopy(tokenizer)
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", special_tokens=[]
    )
    return plain


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Who?", "answer": ""}, "the answer '' holds no text"),
        ({"question": "Who?", "answer": " \n"}, "the answer .* holds no text"),
        ({"question": "\t ", "answer": "She did."}, "the question .* holds no text"),
        ({"question": "Who? " * 400, "answer": "She did."}, "the question fills all 512 tokens"),
    ],
)
def test_an_answer_that_cannot_be_learnt_is_named(tokenizer, row, message):
    encode = row_encoder("Tofu_forget10", tokenizer, TEMPLATE)
    rows = [GOOD, row, GOOD]
    with pytest.raises(WagleError, match=f"mine, row 2: {message}"):
        check_rows("mine", rows, encode)
    check_rows("mine", rows, encode, [0, 2])  # a row that is not drawn does no harm


def test_a_text_of_one_token_is_named_where_it_has_no_bos(tokenizer, without_bos):
    rows = [{"text": "the author was born"}, {"text": "a"}]
    check_rows("mine", rows, row_encoder("WMDPCyber", tokenizer, TEMPLATE))  # BOS predicts it
    with pytest.raises(WagleError, match="mine, row 2: the text 'a' is a single token"):
        check_rows("mine", rows, row_encoder("WMDPCyber", without_bos, TEMPLATE))


def test_long_rows_are_cut_at_the_limit(tokenizer):
    encode = row_encoder("Tofu_forget10", tokenizer, TEMPLATE)
    short, long = (encode({"question": "Who?", "answer": "She " * n}) for n in (3, 600))
    assert short.input_ids[-1] == tokenizer.eos_token_id
    assert len(long.input_ids) == 512
    assert long.input_ids[-1] != tokenizer.eos_token_id
    assert long.labels[-1] == long.input_ids[-1]
    text = row_encoder("WMDPCyber", tokenizer, TEMPLATE)({"text": "a b " * 1000})
    assert len(text.input_ids) == 1024
    check_rows("mine", [{"question": "Who?", "answer": "She " * 600}], encode)


def test_only_rows_that_may_fail_are_encoded():
    rows = [GOOD, {"text": "long " * SHORT_TEXT}, {"text": "short"}]
    rows.append({"question": "x" * (SHORT_QUESTION + 1), "answer": "y"})
    seen = []
    check_rows("mine", rows, seen.append)
    assert seen == rows[2:]


def test_a_bad_row_ends_both_commands_before_anything_is_made(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model().save_pretrained("model")
    tokenizer.save_pretrained("model")
    (tmp_path / "data" / "TOFU").mkdir(parents=True)
    for name, rows in {
        "forget10": [GOOD] * 3 + [{**GOOD, "answer": ""}],
        "retain90": [GOOD],
    }.items():
        path = tmp_path / "data" / "TOFU" / f"{name}.json"
        path.write_text("\n".join(map(json.dumps, rows)))
    shared = ["--overall.model_name", "model", "--dataset.data_dir", "data"]
    output = ["--finetune.dataset_name", "Tofu_forget10", "--finetune.output_dir", "out"]
    output += ["--finetune.batch_size", "1"]
    config = load_config([*shared, *output], FineTuneConfig, prog="p", description="d")
    with pytest.raises(WagleError, match="Tofu_forget10, row 4: the answer '' holds no text"):
        fine_tune_from_config(config)
    options = {
        "unlearn.unlearn_method": "GA",
        "unlearn.mask_path": "mask_0.5.pt",
        "unlearn.task_name": "own",
        "dataset.forget_dataset_name": "Tofu_forget10",
        "dataset.retain_dataset_name": "Tofu_retain90",
        "dataset.forget_ratio": "1.0",
        "dataset.batch_size": "2",
        "unlearn.num_epochs": "2",
    }
    command = [*shared, *(part for key, value in options.items() for part in (f"--{key}", value))]
    with pytest.raises(WagleError, match="Tofu_forget10, row 4: the answer '' holds no text"):
        unlearn_model.main(command)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "mask_0.5.pt").exists()


# ------------------------------------------------------------- what a method and a model can read

QUESTIONS, TEXTS = ("mine.csv", [GOOD]), ("texts.csv", [{"text": "once upon a time"}])


@pytest.mark.parametrize(
    ("views", "forget", "retain", "named"),
    [
        ((FORGET, RETAIN), TEXTS, TEXTS, None),
        ((REFUSAL, RETAIN), QUESTIONS, TEXTS, None),
        ((REFUSAL, RETAIN), TEXTS, QUESTIONS, "texts.csv"),
        ((MISMATCHED,), QUESTIONS, TEXTS, "texts.csv"),
        ((MISMATCHED,), TEXTS, QUESTIONS, "texts.csv"),
        ((MISMATCHED,), QUESTIONS, QUESTIONS, None),
    ],
)
def test_running_text_is_no_answer(views, forget, retain, named):
    if named is None:
        check_questions("CL", views, forget, retain)
        return
    with pytest.raises(ConfigError, match=f"CL needs questions with answers, and {named} is"):
        check_questions("CL", views, forget, retain)


def test_learned_positions_are_counted_and_others_are_endless():
    counted = {"gpt2": 1024, "opt": 2048}
    for architecture in CONFIGS:
        assert learned_positions(make_model(architecture)) == counted.get(architecture)
    assert learned_positions(make_model("gpt2"), 1024) is None
    assert learned_positions(make_model("gpt2"), 1025) == 1024


def test_rows_longer_than_the_learned_positions_end_both_commands(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=1, n_head=2, **IDS)
    GPT2LMHeadModel(config).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = [GOOD, {**GOOD, "answer": "She did so. " * 20}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "good.jsonl").write_text(json.dumps(GOOD))
    said = r"rows.jsonl, row 2: it has \d+ tokens, .* learned no more than 64 positions"
    output = ["--finetune.dataset_name=rows.jsonl", "--finetune.output_dir=out"]
    output += ["--finetune.batch_size=1"]
    shared = ["--overall.model_name", "model", "--dataset.template", "question_answer"]
    config = load_config([*shared, *output], FineTuneConfig, prog="p", description="d")
    with pytest.raises(WagleError, match=said):
        fine_tune_from_config(config)
    command = [*shared, "--unlearn.unlearn_method", "GA", "--unlearn.task_name", "none"]
    for forget, retain in (("rows", "good"), ("good", "rows")):
        names = {"forget": forget, "retain": retain}.items()
        sets = [f"--dataset.{kind}_dataset_name={name}.jsonl" for kind, name in names]
        with pytest.raises(WagleError, match=said):
            unlearn_model.main([*command, *sets])


def test_a_benchmark_longer_than_the_learned_positions_is_refused():
    assert TOFU.longest == MAX_TEXT_LENGTH
    assert OFFICIAL.longest == MAX_TEXT_LENGTH + NEW_TOKENS
    small = GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_positions=300, n_embd=16, n_layer=1, n_head=2, **IDS)
    )
    for task, longest in {"tofu": 512, "copyright": 600, "toxic": 0, "wmdp": 0, "own": 0}.items():
        argv = ["--overall.model_name=m", f"--unlearn.task_name={task}"]
        config = load_config(argv, prog="p", description="d")
        check_length(config, make_model("gpt2"))  # has 1024
        check_length(config, make_model("llama"))  # computes its positions
        if not longest:
            check_length(config, small)
            continue
        with pytest.raises(WagleError, match=f"to {longest} tokens, .* no more than 300 positions"):
            check_length(config, small)
