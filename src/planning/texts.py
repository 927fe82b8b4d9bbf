"""How long the texts are that a command reads."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from wagle.config import Config
from wagle.dataset.encoding import IGNORED
from wagle.dataset.reading import ColumnNames
from wagle.dataset.sources import find_source, load_rows, row_encoder
from wagle.dataset.templates import resolve_template
from wagle.errors import WagleError
from wagle.model.loading import find_saved_template, read_tokenizer

Role = Literal["forget", "retain"]

_MOST_ROWS = 5000  # are looked at; the longest of so many is as good as the longest


class Length(NamedTuple):
    """Of the longest text of a data set.

    Attributes:
        tokens: how many it has.
        labelled: the most that one text has of tokens that are predicted.
        known: whether the rows were looked at; else these are the data set's limits.
    """

    tokens: int
    labelled: int
    known: bool


def longest_text(config: Config, name: str, role: Role, architecture: str) -> Length:
    """The length of a data set's longest text, from its rows, or its limit where they are not here.

    Args:
        architecture: ``model_type`` of the model's configuration.
    """
    limit = find_source(name).max_length
    model_name, cache_dir = config.overall.model_name, Path(config.overall.cache_dir)
    data_dir = config.dataset.data_dir
    try:
        tokenizer = read_tokenizer(model_name, cache_dir)
        template = resolve_template(
            config.dataset,
            tokenizer,
            protocol=config.get("evaluation.protocol", ""),
            model_name=model_name,
            dataset_name=name,
            architecture=architecture,
            saved=find_saved_template(model_name, cache_dir),
        )
        rows = load_rows(
            name,
            data_dir=Path(data_dir) if data_dir else None,
            cache_dir=cache_dir,
            role=role,
            columns=ColumnNames.of(config.dataset),
        )
        if "text" in rows.column_names:
            return Length(limit, limit - 1, known=True)
        encode = row_encoder(name, tokenizer, template)
        examples = [encode(row) for row in islice(rows, _MOST_ROWS)]
    except WagleError:
        return Length(limit, limit - 1, known=False)
    return Length(
        max(len(example.input_ids) for example in examples),
        max(sum(label != IGNORED for label in example.labels[1:]) for example in examples),
        known=True,
    )
