"""Running text: C4 and wikitext."""

from __future__ import annotations

import datasets

from wagle.dataset.columns import TEXT
from wagle.dataset.reading import RowsRequest


def without_blanks(rows: datasets.Dataset) -> datasets.Dataset:
    """The column ``text`` of the rows that have any."""
    written = [row for row, text in enumerate(rows["text"]) if text.strip()]
    return rows.select_columns(["text"]).select(written)


_C4_FILES = {
    "train": "en/c4-train.00001-of-01024.json.gz",
    "validation": "en/c4-validation.00000-of-00008.json.gz",
}


def load_c4(request: RowsRequest) -> datasets.Dataset:
    """One file of C4 (Raffel et al. 2020, arXiv 1910.10683), which has a thousand of them."""
    split = request.subset or "train"
    rows = request.rows(
        f"C4/{split}.jsonl",
        "allenai/c4",
        columns={"text": TEXT},
        split=split,
        data_files={split: _C4_FILES[split]},
    )
    return without_blanks(rows)


def load_wikitext(request: RowsRequest) -> datasets.Dataset:
    """Merity et al. 2016, arXiv 1609.07843; a row is a line of an article."""
    rows = request.rows(
        "wikitext/train.jsonl", "Salesforce/wikitext", "wikitext-2-raw-v1", columns={"text": TEXT}
    )
    return without_blanks(rows)
