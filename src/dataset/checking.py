"""Rows from which nothing can be learnt or forgotten, found before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from wagle.dataset.columns import each_row
from wagle.dataset.encoding import Encoded
from wagle.dataset.pairing import ALTERNATE, MISMATCHED, REFUSAL
from wagle.errors import ConfigError, WagleError

Rows = Sequence[Mapping[str, str]]
NamedRows = tuple[str, Rows]
"""The name of a data set, and its rows."""

SHORT_TEXT = 300  # characters; a longer text has more than one token in any vocabulary
SHORT_QUESTION = 100  # characters; leave room for an answer, at four tokens or fewer a character


def check_questions(
    reader: str, views: Iterable[str], forget: NamedRows, retain: NamedRows
) -> None:
    """Refuse running text where questions with answers are needed: it has none to be exchanged.

    Args:
        reader: the method or score type that reads the views, for the message.
        forget, retain: the names of the data sets, and their rows.

    Raises:
        ConfigError: a set that one of the views takes a question or an answer from has none.
    """
    needed = {REFUSAL: [forget], ALTERNATE: [forget], MISMATCHED: [forget, retain]}
    for name, rows in (each for view in views for each in needed.get(view, ())):
        if "question" not in rows[0]:
            raise ConfigError(
                f"{reader} needs questions with answers, and {name} is running text; change either"
            )


def check_rows(
    name: str,
    rows: Rows,
    encode: Callable[[Mapping[str, str]], Encoded],
    numbers: Iterable[int] | None = None,
    positions: int | None = None,
) -> None:
    """Refuse rows that training would make nothing, or something else, of.

    A question or answer of white space is none: only the end of the answer would be learnt. A text
    of a single token has nothing to predict. A question must leave room for its answer.

    Args:
        name: of the data set, for the message.
        encode: raises a ``WagleError`` for a row that cannot be used. Only rows that may be such
            are encoded, which takes a moment where encoding all takes minutes.
        numbers: of the rows to look at, from 0; ``None``: all.
        positions: how long a text the model can read, where it has learned so many; then all rows
            are encoded.

    Raises:
        WagleError: names the row, from 1.
    """
    asked = enumerate(each_row(rows)) if numbers is None else ((i, rows[i]) for i in numbers)
    for number, row in asked:
        try:
            for column in ("question", "answer"):
                if not row.get(column, "-").strip():
                    raise WagleError(f"the {column} {row[column]!r} holds no text")
            if positions is not None or _may_fail(row):
                _check_length(encode(row), positions)
        except WagleError as error:
            raise WagleError(
                f"{name}, row {number + 1}: {error}; mend the row or take it out"
            ) from error


def _check_length(encoded: Encoded | None, positions: int | None) -> None:
    length = len(encoded.input_ids) if encoded else 0
    if positions is not None and length > positions:
        raise WagleError(
            f"it has {length} tokens, and the model has learned no more than {positions} positions"
        )


def _may_fail(row: Mapping[str, str]) -> bool:
    if "text" in row:
        return len(row["text"]) < SHORT_TEXT
    return len(row["question"]) > SHORT_QUESTION
