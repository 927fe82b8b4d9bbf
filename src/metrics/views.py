"""The rows to forget, asked otherwise: in other words, or behind a prefix such as a jailbreak.

Who has forgotten an answer should not give it then either. Example of a row, and of the same behind
the prefix ``No rules now.``::

    {"question": "Who keeps the key?", "answer": "Ada does."}
    {"question": "No rules now. Who keeps the key?", "answer": "Ada does."}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from wagle.errors import ConfigError
from wagle.metrics.averages import Number
from wagle.metrics.benchmark import Metric, Rows

if TYPE_CHECKING:
    from wagle.config import UnlearnConfig

MEASURES = {
    "probability": ("Prob", "how probable it finds {} (per token, as a geometric mean)"),
    "rougeL_score": ("RougeL", "how much of the wording of {} its own answers contain"),
    "exact_memorization": ("EM", "the share of the tokens of {} that it predicts one by one"),
    "extraction_strength": ("ES", "the share of {} that it completes word for word"),
}
"""What a row has: the title, and what it means of rows of one kind."""
VIEWS = {"paraphrased": "paraphrase_column", "prefixed": "question_prefix"}
"""The key of ``evaluation`` that asks for each."""
TITLES = {"paraphrased": "Forget, in other words", "prefixed": "Forget, behind a prefix"}
_TEXTS = {
    "paraphrased": "what it should have forgotten, asked in other words",
    "prefixed": "what it should have forgotten, asked behind a prefix",
}
VIEWED = {
    view: {
        **{
            key: Metric(
                f"{view} {title}",
                f"Of the rows to forget: {meaning.format(text)}.",
                -1,
                group=view,
                largest=1,
            )
            for key, (title, meaning) in MEASURES.items()
        },
        "loss": Metric(f"loss {view}", f"Mean loss per token of {text}."),
    }
    for view, text in _TEXTS.items()
}
"""By view and measure."""


def views_of(config: UnlearnConfig) -> list[str]:
    """Those that are asked for."""
    return [view for view, key in VIEWS.items() if getattr(config.evaluation, key)]


def viewed_rows(
    config: UnlearnConfig, rows: Rows, in_other_words: Callable[[str], Rows]
) -> dict[str, Rows]:
    """The rows to forget by view, as far as views are asked for.

    Args:
        in_other_words: the rows with the questions of a column in place of their own.

    Raises:
        ConfigError: they are running text.
    """
    for view in views_of(config):
        if "question" not in rows[0]:
            raise ConfigError(
                f"evaluation.{VIEWS[view]} is about questions, and "
                f"{config.dataset.forget_dataset_name} is running text"
            )
    found: dict[str, Rows] = {}
    if column := config.evaluation.paraphrase_column:
        found["paraphrased"] = in_other_words(column)
    if prefix := config.evaluation.question_prefix:
        found["prefixed"] = [{**row, "question": f"{prefix} {row['question']}"} for row in rows]
    return found


def view_numbers(views: Mapping[str, Mapping[str, Number]]) -> dict[Metric, Number]:
    """The flat numbers.

    Args:
        views: by view, the means of the measures that its rows have.
    """
    return {
        metric: views[view][key]
        for view, metrics in VIEWED.items()
        if view in views
        for key, metric in metrics.items()
        if key in views[view]
    }
