"""Text to token ids and labels, and examples to padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from wagle.dataset.templates import ChatTemplate, Template
from wagle.errors import WagleError

IGNORED = -100  # PyTorch's cross_entropy leaves these labels out


@dataclass(frozen=True)
class Encoded:
    """One tokenised example.

    Attributes:
        input_ids: token ids.
        labels: as long as ``input_ids``; ``labels[t]`` is ``input_ids[t]`` where the token is
            scored and ``IGNORED`` elsewhere. Not shifted: a model predicts ``labels[t]`` from the
            tokens before ``t``.
    """

    input_ids: list[int]
    labels: list[int]

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.labels):
            raise ValueError(f"{len(self.input_ids)} ids but {len(self.labels)} labels")


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> list[int]:
    """Token ids with the tokenizer's leading special tokens, at most ``max_length`` of them.

    An EOS that the tokenizer itself appends is dropped, so that a prefix of a text has a prefix of
    its tokens.
    """
    ids = tokenizer(text, truncation=True, max_length=max_length).input_ids
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not _ends_with_eos(tokenizer, text):
        ids = ids[:-1]
    return ids


def _ends_with_eos(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return bool(tokenizer.eos_token) and text.endswith(tokenizer.eos_token)


def encode_answer(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    question: str,
    answer: str,
    *,
    max_length: int,
    eos: bool,
) -> Encoded:
    """Encode a question with its answer; only the answer part (``answer_start`` on) is labelled.

    The question part is as many tokens as it has when tokenised alone, special tokens included, as
    in the published code. With ``eos``, one EOS token follows (and is labelled) where
    ``max_length`` leaves room.

    Raises:
        WagleError: ``max_length`` leaves no token of the answer, or it has none.
    """
    prompt = template.question(question)
    ids = tokenize(tokenizer, prompt + template.answer_start + answer, max_length)
    question_length = len(tokenize(tokenizer, prompt, max_length))
    if eos and len(ids) < max_length:
        ids = [*ids, tokenizer.eos_token_id]
    if question_length >= len(ids):
        if len(ids) < max_length:
            raise WagleError(f"the answer {answer!r} to {question[:80]!r} has no tokens")
        raise WagleError(
            f"the question fills all {max_length} tokens and leaves none for its answer: "
            f"{question[:80]!r}…"
        )
    return Encoded(ids, [IGNORED] * question_length + ids[question_length:])


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    question: str,
    answer: str,
    *,
    max_length: int,
) -> tuple[list[int], Encoded]:
    """Encode a question with its answer and EOS as the TOFU authors and open-unlearning do.

    The prompt goes on to where the answer starts, a trailing space included, and everything behind
    as many tokens as it has when tokenised alone is labelled. One EOS follows, unless a chat
    template has just written one.

    Args:
        max_length: of the text without that EOS; a chat is not cut, since its template ends it.

    Returns:
        The prompt's token ids, and the whole with its labels.

    Raises:
        WagleError: nothing is labelled.
    """
    is_chat = isinstance(template, ChatTemplate)
    prompt, ids = (
        tokenizer(text, add_special_tokens=False).input_ids
        if is_chat
        else tokenize(tokenizer, text, max_length)
        for text in template.conversation(question, answer)
    )
    if ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, tokenizer.eos_token_id]
    if len(prompt) >= len(ids):
        raise WagleError(f"no token of the answer {answer[:80]!r} follows {question[:80]!r}")
    return prompt, Encoded(ids, [IGNORED] * len(prompt) + ids[len(prompt) :])


def encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, *, max_length: int, eos: bool = False
) -> Encoded:
    """Encode running text; every token is labelled (padding, added later, is not)."""
    ids = tokenize(tokenizer, text, max_length)
    if eos and len(ids) < max_length:
        ids = [*ids, tokenizer.eos_token_id]
    return Encoded(ids, list(ids))


def pad_batch(examples: Sequence[Encoded], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Right-pad to the longest example.

    Returns:
        int64 tensors ``input_ids``, ``attention_mask`` and ``labels``, each ``(batch, longest)``;
        padding has attention 0 and label ``IGNORED``. And int64 places in the flat batch, which on
        an accelerator could not be found without waiting for it: ``real``, of the tokens that are
        no padding, and ``predicted`` (:func:`predicted_from`).
    """
    longest = max(len(example.input_ids) for example in examples)
    shape = (len(examples), longest)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids)
        labels[row, :length] = torch.tensor(example.labels)
        attention_mask[row, :length] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "real": attention_mask.flatten().nonzero()[:, 0],
        "predicted": predicted_from(labels),
    }


def predicted_from(labels: torch.Tensor) -> torch.Tensor:
    """The places of the tokens that come before labelled ones.

    For the labels ``[[-100, 6, 7], [-100, 8, -100]]`` they are 0, 1 and 3. The first token of a row
    is never predicted, labelled or not.

    Args:
        labels: ``(B, T)``.

    Returns:
        int64 ``(M,)``, in the tensor as a flat one, in order.
    """
    after = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return (after != IGNORED).flatten().nonzero()[:, 0]
