"""From a data set's rows to token ids and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from transformers import PreTrainedTokenizerBase

from wagle.dataset.encoding import Encoded, encode_answer, encode_text
from wagle.dataset.sources.registry import find_source
from wagle.dataset.templates import Template
from wagle.errors import WagleError


def row_encoder(
    name: str, tokenizer: PreTrainedTokenizerBase, template: Template, *, eos: bool = True
) -> Callable[[Mapping[str, str]], Encoded]:
    """A function from a row of the data set to ids and labels, which can be sent to processes.

    Rows with a question are encoded in the template and labelled on the answer part; running text
    is labelled throughout. It raises a ``WagleError`` for a row of which no token is predicted.
    """
    max_length = find_source(name).max_length
    return partial(_encode_row, tokenizer, template, max_length, eos)


def _encode_row(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
    eos: bool,
    row: Mapping[str, str],
) -> Encoded:
    if "text" in row:
        encoded = encode_text(tokenizer, row["text"], max_length=max_length)
        if len(encoded.input_ids) < 2:
            raise WagleError(
                f"the text {row['text'][:80]!r} is a single token, so nothing of it is predicted"
            )
        return encoded
    return encode_answer(
        tokenizer, template, row["question"], row["answer"], max_length=max_length, eos=eos
    )


def refusal_encoder(
    name: str, tokenizer: PreTrainedTokenizerBase, template: Template
) -> Callable[[Mapping[str, str], str], Encoded]:
    """A function from a row of the data set and a refusal to ids and labels; as above."""
    return partial(_encode_refusal, row_encoder(name, tokenizer, template))


def _encode_refusal(
    encode: Callable[[Mapping[str, str]], Encoded], row: Mapping[str, str], refusal: str
) -> Encoded:
    return encode({"question": row["question"], "answer": refusal})
