"""Rows from which nothing can be learnt or forgotten, found before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from wagle.dataset.encoding import Encoded
from wagle.errors import WagleError

SHORT_TEXT = 300  # characters; a longer text has more than one token in any vocabulary
SHORT_QUESTION = 100  # characters; leave room for an answer, at four tokens or fewer a character


def check_rows(
    name: str,
    rows: Sequence[Mapping[str, str]],
    encode: Callable[[Mapping[str, str]], Encoded],
    numbers: Iterable[int] | None = None,
) -> None:
    """Refuse rows that training would make nothing, or something else, of.

    A question or answer of white space is none: only the end of the answer would be learnt. A text
    of a single token has nothing to predict. A question must leave room for its answer.

    Args:
        name: of the data set, for the message.
        encode: raises a ``WagleError`` for a row that cannot be used. Only rows that may be such
            are encoded, which takes a moment where encoding all takes minutes.
        numbers: of the rows to look at, from 0; ``None``: all.

    Raises:
        WagleError: names the row, from 1.
    """
    for number in range(len(rows)) if numbers is None else numbers:
        row = rows[number]
        try:
            for column in ("question", "answer"):
                if not row.get(column, "-").strip():
                    raise WagleError(f"the {column} {row[column]!r} holds no text")
            if _may_fail(row):
                encode(row)
        except WagleError as error:
            raise WagleError(
                f"{name}, row {number + 1}: {error}; mend the row or take it out"
            ) from error


def _may_fail(row: Mapping[str, str]) -> bool:
    if "text" in row:
        return len(row["text"]) < SHORT_TEXT
    return len(row["question"]) > SHORT_QUESTION
