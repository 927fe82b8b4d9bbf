"""From a data set's rows to token ids and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import datasets
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


def cut_into_pieces(
    name: str, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase
) -> datasets.Dataset:
    """Running text as a stream: joined by blank lines, and cut into pieces of as many tokens.

    Without special tokens; the last piece is shorter. Of other data sets the rows as they are.
    """
    source = find_source(name)
    if not source.pieces or "text" not in rows.column_names:
        return rows
    ids = tokenizer("\n\n".join(rows["text"]), add_special_tokens=False, verbose=False).input_ids
    pieces = [ids[i : i + source.max_length] for i in range(0, len(ids), source.max_length)]
    return datasets.Dataset.from_dict({"text": tokenizer.batch_decode(pieces), "input_ids": pieces})


def _encode_row(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
    eos: bool,
    row: Mapping[str, Any],
) -> Encoded:
    if "input_ids" in row:
        return Encoded(list(row["input_ids"]), list(row["input_ids"]))
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
