"""Chunks of a text that the user owns, from files that ``prepare_copyright`` makes."""

from __future__ import annotations

import datasets

from wagle.dataset.columns import TEXT
from wagle.dataset.json_lines import read_json_lines
from wagle.dataset.reading import RowsRequest
from wagle.errors import WagleError
from wagle.shipped import here_or_shipped


def load_copyright(request: RowsRequest) -> datasets.Dataset:
    """Chunks of a text that the user owns; a subset ``train_300`` is one of the evaluation sets."""
    folder = (
        here_or_shipped("files/data/hp") if request.data_dir is None else request.data_dir / "HP"
    )
    part, _, length = request.subset.partition("_")
    path = folder / (f"hp_{part}_qa_{length}.jsonl" if part else "hp_qa.jsonl")
    if not path.is_file():
        raise WagleError(
            f"there is no data file {path}; make it from a text that you own: "
            f"python src/exec/prepare_copyright.py TEXT --tokenizer NAME --output_dir {folder}"
        )
    rows = read_json_lines(path, {"prompt": TEXT, "response": TEXT})
    # Chunks begin and end within sentences; the template puts a space of its own at the seams.
    questions, answers = ([text.lstrip() for text in rows[name]] for name in ("prompt", "response"))
    return datasets.Dataset.from_dict({"question": questions, "answer": answers})
