"""Which template a model is asked in, and what chat templates make of system prompts and dates."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from tests.tiny import sentence_model
from wagle.commands import fine_tune
from wagle.commands import unlearn as unlearn_model
from wagle.config import load_config
from wagle.dataset.encoding import encode_answer
from wagle.dataset.templates import (
    TEMPLATE_FILE,
    announcement,
    read_saved_template,
    resolve_template,
)
from wagle.errors import ConfigError, WagleError
from wagle.families import DEFAULT_DATE, FAMILIES, family_of_model, steered_layer
from wagle.model.loading import save_model
from wagle.model.tiny import build_tiny_llama

PLAIN = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DIARY = "It is {{ strftime_now('%A, %d %b %Y') }}. " + PLAIN
LLAMA3 = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Cutting Knowledge Date: December 2023, Today Date: {{ date_string }}. " + PLAIN
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + PLAIN
)
DEAF = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"


@pytest.fixture
def chatty(tokenizer):
    """A function that gives the tokenizer a chat template."""

    def make(text):
        own = copy.deepcopy(tokenizer)
        own.chat_template = text
        return own

    return make


@pytest.fixture
def resolve(tokenizer):
    def resolve(tokenizer=tokenizer, *, model="m", data="Tofu_forget10", **given):
        saved, architecture = given.pop("saved", None), given.pop("architecture", "llama")
        protocol = given.pop("protocol", "corrected")
        options = [f"--dataset.{key}={value}" for key, value in given.items() if value is not None]
        config = load_config(["--overall.model_name=m", *options], prog="p", description="d")
        return resolve_template(
            config.dataset,
            tokenizer,
            protocol=protocol,
            model_name=model,
            dataset_name=data,
            architecture=architecture,
            saved=saved,
        )

    return resolve


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        ("locuslab/tofu_ft_llama2-7b", "Tofu_forget10", "llama2_published"),
        ("files/models/demo_llama", "Demo_forget10", "llama2_published"),
        ("locuslab/tofu_ft_llama2-7b", "WMDPALL", "question_answer"),
        ("microsoft/phi-1_5", "Tofu_forget10", "question_answer"),
    ],
)
def test_the_published_rule_is_for_the_published_protocol_alone(resolve, model, data, expected):
    assert resolve(model=model, data=data, protocol="published").name == expected
    assert resolve(model=model, data=data).name == "question_answer"


def test_what_was_saved_with_the_model_comes_before_any_rule(resolve, chatty):
    saved = {"template": "llama2"}
    assert resolve(saved=saved).name == "llama2"
    assert resolve(chatty(PLAIN), saved=saved).name == "llama2"
    assert resolve(model="llama", saved=saved, protocol="published").name == "llama2"
    asked = resolve(template="question_answer", saved=saved)
    assert asked.name == "question_answer"
    assert announcement(asked, saved) == (
        "template: question_answer; but the model was saved with llama2"
    )


def test_without_a_saved_one_the_tokenizer_decides(resolve, chatty, tokenizer):
    assert resolve(chatty(PLAIN)).name == "chat"
    llama2 = copy.deepcopy(tokenizer)
    llama2.add_tokens(["▁the", *(f"piece{i}" for i in range(32_000))])
    assert resolve(llama2).name == "question_answer"
    llama2.__class__ = type("Llama2", (type(llama2),), {"vocab_size": 32_000})
    assert resolve(llama2).name == "llama2"
    assert resolve(llama2, architecture="mistral").name == "question_answer"


@pytest.mark.parametrize(
    ("architecture", "says", "vocabulary", "family"),
    [
        ("llama", "[INST] ", 0, "Llama 2"),
        ("llama", "", 32_000, "Llama 2"),
        ("llama", "Cutting Knowledge Date: ", 0, "Llama 3"),
        ("llama", "", 128_000, "Llama 3"),
        ("llama", "named SmolLM, ", 0, "SmolLM2"),
        ("llama", "", 49_152, "SmolLM2"),
        ("llama", "", 400, None),
        ("llama", "<|user|>", 32_000, None),  # TinyLlama
        ("qwen2", "created by Alibaba Cloud", 0, "Qwen2.5"),
        ("qwen2", "", 0, "Qwen2.5"),
        ("qwen3", "enable_thinking", 0, "Qwen3"),
        ("gemma2", "<start_of_turn>", 0, "Gemma"),
        ("phi", "", 0, "Phi 1.5 and 2"),
        ("phi3", "<|system|>", 0, "Phi 3"),
        ("mistral", "<|user|>", 0, "Zephyr"),
        ("mistral", "[INST] ", 0, None),
        ("mistral", "", 32_000, None),
        ("olmo2", "<|assistant|>", 0, "OLMo"),
        ("gpt2", "", 50_257, None),
    ],
)
def test_families_are_told_by_type_and_chat_template_or_vocabulary(
    architecture, says, vocabulary, family
):
    found = family_of_model(architecture, vocabulary, says or None)
    assert (found and found.name) == family


def test_rmu_steers_what_was_published_or_a_quarter_of_the_way_through():
    zephyr, qwen = (next(f for f in FAMILIES if f.name == name) for name in ("Zephyr", "Qwen3"))
    assert [steered_layer(zephyr, layers) for layers in (32, 8, 6, 2)] == [7, 7, 0, 0]
    assert [steered_layer(qwen, layers) for layers in (36, 28)] == [8, 6]
    assert steered_layer(None, 32) == 7


def test_a_later_llama_is_not_asked_in_the_tags_of_llama_2(resolve, chatty):
    given = {"model": "open-unlearning/tofu_Llama-3.2-1B-Instruct_full", "protocol": "published"}
    template = resolve(chatty(LLAMA3), **given)
    assert template.name == "chat"
    assert announcement(template, None, FAMILIES[1]).startswith("model family: Llama 3, template:")
    assert resolve(chatty(PLAIN), **given).name == "llama2_published"  # as it ever was


def test_qwen3_is_asked_not_to_think(resolve, chatty):
    thinking = chatty(
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think></think>"
        "{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
        "{% endif %}"
    )
    template = resolve(thinking, architecture="qwen3")
    assert template.question("Who?").endswith("<assistant><think></think>")
    assert template.answer_start == ""
    assert template.conversation("Who?", "Me.")[1].endswith("<assistant><think></think>Me.")


def test_chat_template_does_not_double_bos(resolve, chatty, tokenizer):
    own = chatty(PLAIN)
    encoded = encode_answer(own, resolve(own), "Who?", "Me.", max_length=64, eos=True)
    assert own.decode(encoded.input_ids) == "<s><user>Who?</user><assistant>Me.</s>"
    with pytest.raises(ConfigError, match="no chat template"):
        resolve(tokenizer, template="chat")


def test_what_a_chat_template_puts_before_an_answer_is_kept(resolve, chatty):
    spaced = chatty(
        "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else "
        "' ' + m.content + eos_token }}{% endfor %}"
    )
    template = resolve(spaced)
    assert template.question("Who?") + template.answer_start + "Me." == "[INST] Who? [/INST] Me."


@pytest.mark.parametrize(
    ("text", "written"),
    [(DIARY, "It is Thursday, 10 Apr 2025. "), (LLAMA3, "Today Date: 10 Apr 2025. ")],
)
@pytest.mark.parametrize("year", [2024, 2031])
def test_no_day_changes_a_prompt(resolve, chatty, monkeypatch, text, written, year):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(year, 7, 26)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    template = resolve(chatty(text))
    assert written in template.question("Who?")
    assert template.record()["date_string"] == DEFAULT_DATE == "10 Apr 2025"
    assert "date_string '10 Apr 2025'" in announcement(template, None)
    other = resolve(chatty(text), date_string="2024-12-24").question("Who?")
    assert ("2024-12-24" if text is LLAMA3 else "Tuesday, 24 Dec 2024") in other
    assert chat_template_utils.datetime is Clock  # only the template's clock stands still


def test_usual_system_prompts(resolve, chatty):
    llama = resolve(chatty(LLAMA3))
    assert "<system>You are a helpful assistant.</system><user>" in llama.question("Who?")
    qwen = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    asked = resolve(chatty(PLAIN + f"{{# {qwen} #}}"), architecture="qwen2")
    assert f"<system>{qwen}</system>" in asked.question("Who?")
    assert "<system>" not in resolve(chatty(LLAMA3), system_prompt="").question("Who?")
    assert "<system>" not in resolve(chatty(PLAIN)).question("Who?")


def test_a_saved_chat_template_keeps_its_system_prompt_and_date(resolve, chatty, tmp_path):
    own = chatty(DIARY)
    template = resolve(own, system_prompt="Be brief.", date_string="2 Jan 2020")
    save_model(build_tiny_llama(["a"], hidden_size=8)[0], own, tmp_path / "m", template=template)
    saved = read_saved_template(tmp_path / "m")
    assert resolve(own, saved=saved) == template
    assert resolve(own, saved=saved).question("Who?") == template.question("Who?")
    assert resolve(own, saved=saved, date_string="3 Jan 2020").system_prompt == "Be brief."
    assert resolve(own, system_prompt="Be long.").record() != template.record()
    assert "saved with" not in announcement(template, saved)
    own.chat_template += " "  # such as a tokenizer that was updated since
    changed = resolve(own, saved=saved)
    assert "; but the model was saved with chat, system_prompt" in announcement(changed, saved)


def test_a_date_in_the_system_turn_alone_is_found(resolve, chatty):
    own = chatty(
        "{% for m in messages %}{{ m.content }}{% if m.role == 'system' %} Today is "
        "{{ strftime_now('%d.%m.%Y') }}.{% endif %}{% endfor %}"
    )
    assert resolve(own).record().get("date_string") is None
    template = resolve(own, system_prompt="Be brief.")
    assert template.question("Who?") == "Be brief. Today is 10.04.2025.Who?"
    assert template.record()["date_string"] == DEFAULT_DATE


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (NO_SYSTEM, {"system_prompt": "Be brief."}, "System role not supported"),
        (DEAF, {"system_prompt": "Be brief."}, "leaves it out"),
        (PLAIN, {"date_string": "10 Apr 2025"}, "writes no date"),
        ("{{ bos_token }}Hello.", {}, "leaves the question out"),
        ("{{ raise_exception('no') }}", {}, "takes no a user's question"),
        (None, {"system_prompt": "Be brief."}, "belongs to the template chat"),
        (None, {"date_string": "10 Apr 2025"}, "belongs to the template chat"),
    ],
)
def test_what_a_template_cannot_take_is_refused(resolve, chatty, text, given, message):
    with pytest.raises(ConfigError, match=message):
        resolve(chatty(text), **given)


@pytest.mark.parametrize("date", ["tomorrow", "2025-13-01", "10.4.2025", ""])
def test_dates_are_dates(date):
    with pytest.raises(ConfigError, match="date like 10 Apr 2025"):
        load_config(
            ["--overall.model_name", "m", "--dataset.date_string", date], prog="p", description=""
        )


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"template": "mine"}', '{"template": ["chat"]}', '{"template": null}']
)
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / TEMPLATE_FILE).write_text(text)
    with pytest.raises(WagleError, match=TEMPLATE_FILE):
        read_saved_template(tmp_path)


def test_chat_templates_travel_to_loader_workers(resolve, chatty):
    template = resolve(chatty(DIARY))
    assert pickle.loads(pickle.dumps(template)).question("Who?") == template.question("Who?")


def test_a_model_is_asked_the_same_whatever_its_folder_is_called(tmp_path, monkeypatch, undrawn):
    """By name, as a copy elsewhere, and as resume_path; after fine-tuning and after unlearning."""
    monkeypatch.chdir(tmp_path)
    assert (
        fine_tune.main(
            [
                *("--overall.model_name", "llama", "--finetune.from_scratch", "true"),
                *("--finetune.dataset_name", "Demo_forget10", "--finetune.max_steps", "2"),
                *("--finetune.output_dir", "llama/model", "--dataset.template", "llama2"),
            ]
        )
        == 0
    )
    shutil.copytree("llama/model", "copy")

    def results(run, *options):
        arguments = [
            *("--overall.logger", "json", "--logger.json.root", "runs", "--logger.name", run),
            *("--unlearn.task_name", "tofu", "--evaluation.limit", "1"),
            *("--evaluation.sentence_model", sentence_model()),
            *("--dataset.forget_dataset_name", "Demo_forget10", "--dataset.forget_ratio", "4"),
            *("--dataset.retain_dataset_name", "Demo_retain90", "--dataset.batch_size", "2"),
            *options,
        ]
        assert unlearn_model.main(arguments) == 0
        manifest = json.loads((tmp_path / "runs" / run / "manifest.json").read_text())
        assert manifest["template"] == {"template": "llama2"}
        numbers = json.loads((tmp_path / "runs" / run / "results.json").read_text())
        numbers.pop("density")  # of a resumed model it is what its own run says
        return {key: value for key, value in numbers.items() if isinstance(value, float)}

    by_name = results("a", "--overall.model_name", "llama/model")
    assert results("b", "--overall.model_name", "copy") == by_name
    resumed = ("--overall.model_name", "llama/model", "--unlearn.resume_path", "copy")
    assert results("c", *resumed) == by_name

    unlearning = ("--unlearn.unlearn_method", "GA", "--unlearn.max_steps", "2")
    after = results("d", "--overall.model_name", "copy", *unlearning)
    assert after != by_name
    checkpoints = "runs/d/checkpoints"
    assert results("e", "--overall.model_name", checkpoints) == after
    resumed = ("--overall.model_name", "copy", "--unlearn.resume_path", checkpoints)
    assert results("f", *resumed) == after
