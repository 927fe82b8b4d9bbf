"""Families of models, a line each: how they are asked, and which layer RMU steers.

What is said here holds where a configuration does not say otherwise. Sources: the model
configurations of open-unlearning (arXiv 2506.12618) for system prompts, dates and Llama's layer;
Li et al. 2024 (arXiv 2403.03218) for Zephyr's.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_DATE = "10 Apr 2025"
"""For chat templates that would otherwise write today's date; open-unlearning's choice."""

_HELPFUL = "You are a helpful assistant."
_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


@dataclass(frozen=True)
class Family:
    """What is usual for a family of models.

    Attributes:
        name: for people.
        model_types: ``model_type`` of its models' configurations.
        chat: what their chat templates say, and those of others of these types do not.
        vocabulary: tokens of their tokenizers, which tells models without a chat template apart.
        template: their prompt template where the tokenizer has no chat template.
        system_prompt: content of the system turn; ``None``: the chat template decides.
        date_string: the date that their chat templates write.
        steered_layer: decoder layer that RMU steers; ``None``: a quarter of the way through.
    """

    name: str
    model_types: tuple[str, ...]
    chat: str
    vocabulary: int | None = None
    template: str = "question_answer"
    system_prompt: str | None = None
    date_string: str | None = None
    steered_layer: int | None = None

    def has(self, model_type: str, vocabulary: int, chat_template: str | None) -> bool:
        """Whether a model of this description belongs to the family."""
        if model_type not in self.model_types:
            return False
        if chat_template:
            return self.chat in chat_template
        return self.vocabulary in (None, vocabulary)


FAMILIES = (
    Family("Llama 2", ("llama",), "[INST]", 32_000, template="llama2", steered_layer=7),
    Family(
        *("Llama 3", ("llama",), "Cutting Knowledge Date", 128_000),
        system_prompt=_HELPFUL,
        date_string=DEFAULT_DATE,
        steered_layer=7,
    ),
    Family("SmolLM2", ("llama",), "SmolLM", 49_152),
    Family("Qwen2.5", ("qwen2",), "created by Alibaba Cloud", system_prompt=_QWEN),
    Family("Qwen3", ("qwen3", "qwen3_moe"), "enable_thinking"),
    Family("Gemma", ("gemma", "gemma2", "gemma3", "gemma3_text"), "<start_of_turn>"),
    Family("Phi 1.5 and 2", ("phi",), "<|assistant|>"),
    Family("Phi 3", ("phi3",), "<|system|>", system_prompt=_HELPFUL),
    Family("Zephyr", ("mistral",), "<|user|>", 0, system_prompt=_HELPFUL, steered_layer=7),
    Family("OLMo", ("olmo", "olmo2", "olmo3"), "<|assistant|>"),
)
"""The first that a model belongs to is its own. Nobody's vocabulary is 0: a Mistral without a chat
template is no Zephyr."""


def family_of_model(model_type: str, vocabulary: int, chat_template: str | None) -> Family | None:
    """The family that a model belongs to, ``None`` where it is none of these.

    Args:
        model_type: of its configuration.
        vocabulary: ``vocab_size`` of its tokenizer.
        chat_template: its tokenizer's.
    """
    known = (family for family in FAMILIES if family.has(model_type, vocabulary, chat_template))
    return next(known, None)


def steered_layer(family: Family | None, layers: int) -> int:
    """Which of a model's decoder layers RMU steers, from 0.

    A quarter of the way through where the family does not say, or has fewer: 7 of 32, 5 of 24.
    """
    usual = family.steered_layer if family else None
    return usual if usual is not None and usual < layers else max(layers // 4 - 1, 0)
