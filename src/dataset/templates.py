"""Prompt templates: how a question and an answer become one text."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from src.errors import ConfigError


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


@dataclass(frozen=True)
class ChatTemplate(Template):
    """The tokenizer's own chat template with one user turn; the answer follows at once."""

    tokenizer: PreTrainedTokenizerBase = field(kw_only=True, repr=False, compare=False)

    def question(self, text: str) -> str:
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        # The encoder adds the tokenizer's special tokens to every text; a chat template that
        # spells out BOS would make it appear twice.
        bos = self.tokenizer.bos_token
        adds_bos = bos and self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id]
        return rendered.removeprefix(bos) if adds_bos else rendered


TEMPLATES = {
    template.name: template
    for template in (
        # The backslash is the published spelling; numbers in the paper were made with it.
        Template("llama2_published", "[INST] ", r" [\INST]", " "),
        Template("llama2", "[INST] ", " [/INST]", " "),
        Template("question_answer", "### Question: ", "\n", "### Answer: "),
    )
}


def resolve_template(
    name: str, model_name: str, dataset_name: str, tokenizer: PreTrainedTokenizerBase
) -> Template:
    """Find the template called ``name``; ``auto`` applies the published rule.

    The published rule: ``llama2_published`` where "llama" occurs in the model's name and the data
    is TOFU or Demo, ``question_answer`` everywhere else.

    Raises:
        ConfigError: ``chat`` with a tokenizer that has no chat template.
    """
    if name == "chat":
        if not tokenizer.chat_template:
            raise ConfigError(
                f"dataset.template is chat, but {model_name} has no chat template; "
                f"choose one of {', '.join(TEMPLATES)}"
            )
        return ChatTemplate("chat", "", "", "", tokenizer=tokenizer)
    if name == "auto":
        dialogue = dataset_name.startswith(("Tofu_", "Demo_"))
        is_llama = "llama" in model_name.lower()
        name = "llama2_published" if dialogue and is_llama else "question_answer"
    return TEMPLATES[name]
