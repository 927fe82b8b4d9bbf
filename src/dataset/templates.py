"""Prompt templates: how a question and an answer become one text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from wagle.config import DataSection, read_date
from wagle.dataset.names import family_of
from wagle.errors import ConfigError, WagleError
from wagle.families import DEFAULT_DATE, Family, family_of_model

TEMPLATE_FILE = "prompt_template.json"
"""Beside a saved model's tokenizer: the template that the model was trained with."""


@dataclass(frozen=True)
class Template:
    """``question_start + question + question_end + answer_start + answer`` is the full text."""

    name: str
    question_start: str
    question_end: str
    answer_start: str

    def question(self, text: str) -> str:
        """The question part: everything that precedes ``answer_start``."""
        return self.question_start + text + self.question_end

    def conversation(self, question: str, answer: str) -> tuple[str, str]:
        """The prompt up to where the answer starts, and the whole text."""
        prompt = self.question(question) + self.answer_start
        return prompt, prompt + answer

    def record(self) -> dict[str, str]:
        """What the template is, in JSON: for a saved model, a manifest, a fingerprint."""
        return {"template": self.name}

    def __str__(self) -> str:
        return _described(self.record())


@dataclass(frozen=True)
class ChatTemplate(Template):
    """The tokenizer's own chat template: a system turn where it has one, then one user turn.

    Attributes:
        system_prompt: content of the system turn; empty: the template decides.
        date_string: the date that the template writes; empty: it writes none.
    """

    tokenizer: PreTrainedTokenizerBase = field(kw_only=True, repr=False, compare=False)
    system_prompt: str = field(default="", kw_only=True)
    date_string: str = field(default="", kw_only=True)

    def question(self, text: str) -> str:
        # The encoder adds the tokenizer's special tokens to every text; a chat template that
        # spells out BOS would make it appear twice.
        rendered = self.render(text)
        bos = self.tokenizer.bos_token
        adds_bos = bos and self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id]
        return rendered.removeprefix(bos) if adds_bos else rendered

    def conversation(self, question: str, answer: str) -> tuple[str, str]:
        """As the template itself writes both turns, with all special tokens spelt out."""
        return self.render(question), self.render(question, answer)

    def render(self, question: str, answer: str | None = None) -> str:
        """The chat up to where the answer begins, or, with one, to its end."""
        turns = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        turns.append({"role": "user", "content": question})
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        variables: dict[str, Any] = {"date_string": self.date_string} if self.date_string else {}
        with _clock_at(read_date(self.date_string or DEFAULT_DATE)):
            text = self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=answer is None,
                enable_thinking=False,  # Qwen3's answers would begin with thoughts
                **variables,
            )
        assert isinstance(text, str)  # a list for several chats only
        return text

    def record(self) -> dict[str, str]:
        given = {"system_prompt": self.system_prompt, "date_string": self.date_string}
        text = self.tokenizer.get_chat_template()
        return {
            **super().record(),
            **{key: value for key, value in given.items() if value},
            "chat_template": hashlib.sha256(text.encode()).hexdigest()[:16],
        }


@contextmanager
def _clock_at(moment: datetime) -> Iterator[None]:
    """Chat templates find this date, whatever the day: in transformers they read its clock."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Clock:
            return cls.combine(moment.date(), moment.time())

    clocked: Any = chat_template_utils  # does not export the clock that it has imported
    before, clocked.datetime = clocked.datetime, Clock
    try:
        yield
    finally:
        clocked.datetime = before


TEMPLATES = {
    template.name: template
    for template in (
        # The backslash is the published spelling; numbers in the paper were made with it.
        Template("llama2_published", "[INST] ", r" [\INST]", " "),
        Template("llama2", "[INST] ", " [/INST]", " "),
        # Open-unlearning's checkpoints of Llama 2 were trained without a space before the answer.
        Template("llama2_open_unlearning", "[INST] ", " [/INST]", ""),
        Template("question_answer", "### Question: ", "\n", "### Answer: "),
    )
}


def find_family(architecture: str, tokenizer: PreTrainedTokenizerBase) -> Family | None:
    """The family of a model by its ``model_type`` and its tokenizer."""
    chat = tokenizer.get_chat_template() if tokenizer.chat_template else None
    return family_of_model(architecture, tokenizer.vocab_size, chat)


def resolve_template(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    protocol: str = "",
    model_name: str,
    dataset_name: str,
    architecture: str = "",
    saved: Mapping[str, str] | None = None,
) -> Template:
    """The template that ``dataset.template`` means for a model.

    ``auto``: the one saved with the model; else, under ``evaluation.protocol published``, the
    published rule; else the tokenizer's chat template where it has one, with what is usual for the
    model's family, ``llama2`` for a Llama with Llama 2's vocabulary, and ``question_answer`` for
    everything else.

    The published rule: ``llama2_published`` where "llama" occurs in the model's name and the data
    is TOFU or Demo, ``question_answer`` everywhere else. It is not for Llamas of a later family.

    Args:
        data: its ``template``, ``system_prompt`` and ``date_string`` count.
        protocol: ``evaluation.protocol``, where there is one.
        model_name: for the published rule and for messages.
        dataset_name: for the published rule.
        architecture: ``model_type`` of the model's configuration.
        saved: what :func:`read_saved_template` found.

    Raises:
        ConfigError: ``chat`` with a tokenizer that has no chat template; a system prompt or date
            for a template that has none.
    """
    saved = saved or {}
    family = find_family(architecture, tokenizer)
    name = saved.get("template") if data.template == "auto" else data.template
    later = family is not None and "llama" in family.model_types and family.template != "llama2"
    if name is None and protocol == "published" and not later:
        dialogue = family_of(dataset_name) in ("Tofu", "Demo")
        is_llama = "llama" in model_name.lower()
        name = "llama2_published" if dialogue and is_llama else "question_answer"
    name = name or _usual(tokenizer, family)
    if name == "chat":
        if not tokenizer.chat_template:
            raise ConfigError(
                f"dataset.template is chat, but {model_name} has no chat template; "
                f"choose one of {', '.join(TEMPLATES)}"
            )
        return _chat(data, tokenizer, family, saved if saved.get("template") == "chat" else {})
    for key, value in (("system_prompt", data.system_prompt), ("date_string", data.date_string)):
        if value:
            raise ConfigError(f"dataset.{key} belongs to the template chat, and this is {name}")
    return TEMPLATES[name]


def announcement(
    template: Template, saved: Mapping[str, str] | None, family: Family | None = None
) -> str:
    """One line that says which template is used, and whether the model was saved with another.

    And the model's family, where it is one that is known.
    """
    line = f"template: {template}"
    if family:
        line = f"model family: {family.name}, {line}"
    if saved and saved != template.record():
        line += f"; but the model was saved with {_described(saved)}"
    return line


def _described(record: Mapping[str, str]) -> str:
    details = [f"{key} {value!r}" for key, value in record.items() if key != "template"]
    return ", ".join([record["template"], *details])


def _usual(tokenizer: PreTrainedTokenizerBase, family: Family | None) -> str:
    if tokenizer.chat_template:
        return "chat"
    # Others may have as many tokens as Llama 2; this is one of its own.
    if family and tokenizer.convert_tokens_to_ids("▁the") not in (None, tokenizer.unk_token_id):
        return family.template
    return "question_answer"


def _chat(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    family: Family | None,
    saved: Mapping[str, str],
) -> ChatTemplate:
    """The chat template with its system prompt and date: as given, as saved, or the family's."""
    system, date = data.system_prompt, data.date_string
    usual_system, usual_date = (family.system_prompt, family.date_string) if family else (None,) * 2
    if saved:
        usual_system, usual_date = saved.get("system_prompt"), saved.get("date_string")
    chat = ChatTemplate("chat", "", "", "", tokenizer=tokenizer)

    def rendered(**changes: Any) -> str:
        try:
            return replace(chat, **changes).render("the question")
        except TemplateError as error:
            what = " ".join(changes) or "a user's question"
            raise ConfigError(
                f"the model's chat template takes no {what} ({error}); change "
                "dataset.system_prompt, or choose another dataset.template"
            ) from error

    if "the question" not in rendered():
        raise ConfigError("the model's chat template leaves the question out; choose another")
    system_prompt = (usual_system if system is None else system) or ""
    if system_prompt and rendered(system_prompt=system_prompt) == rendered(
        system_prompt=f"{system_prompt} More."
    ):
        raise ConfigError("dataset.system_prompt: the model's chat template leaves it out")
    chat = replace(chat, system_prompt=system_prompt)
    # The two differ in year, month, day, weekday and their spelling.
    dated = rendered(date_string="10 Apr 2025") != rendered(date_string="26 Jul 2023")
    if date and not dated:
        raise ConfigError("dataset.date_string: the model's chat template writes no date")
    if dated:
        chat = replace(chat, date_string=date or usual_date or DEFAULT_DATE)
    return replace(chat, answer_start=_between(chat))


def _between(chat: ChatTemplate) -> str:
    """What the chat template puts between its generation prompt and an answer."""
    prompt, answer = chat.render("the question"), "an answer"
    whole = chat.render("the question", answer)
    start = whole.rfind(answer)
    return whole[len(prompt) : start] if whole.startswith(prompt) and start >= 0 else ""


def read_saved_template(folder: Path) -> dict[str, str] | None:
    """What :meth:`Template.record` left in a model's folder; ``None`` where there is nothing.

    Raises:
        WagleError: the file is damaged.
    """
    path = folder / TEMPLATE_FILE
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        known = isinstance(saved, dict) and saved["template"] in (*TEMPLATES, "chat")
        if not known or not all(isinstance(value, str) for value in saved.values()):
            raise ValueError("it names no known template")
        if "date_string" in saved:
            read_date(saved["date_string"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WagleError(
            f'{path} is damaged ({error}); it should hold {{"template": NAME}}'
        ) from error
    return saved
