"""TOFU and the embedded benchmark, which has the same subsets."""

from __future__ import annotations

import datasets

from wagle.dataset.columns import TEXT, TEXTS
from wagle.dataset.json_lines import read_json_lines
from wagle.dataset.reading import RowsRequest
from wagle.shipped import shipped


def _tofu_columns(subset: str) -> dict[str, str]:
    columns = {"question": TEXT, "answer": TEXT}
    if subset.endswith("_perturbed"):
        columns["perturbed_answer"] = TEXTS
        if subset.startswith(("forget", "retain")):
            columns |= {"paraphrased_question": TEXT, "paraphrased_answer": TEXT}
    return columns


def load_tofu(request: RowsRequest) -> datasets.Dataset:
    """Maini et al. 2024, arXiv 2401.06121."""
    subset = request.subset
    columns = _tofu_columns(subset)
    return request.rows(f"TOFU/{subset}.json", "locuslab/TOFU", subset, columns=columns)


def load_demo(request: RowsRequest) -> datasets.Dataset:
    """The embedded benchmark's files."""
    folder = (request.data_dir or shipped("files/data")) / "demo"
    columns = {"text": TEXT} if request.subset == "dialogues" else _tofu_columns(request.subset)
    return read_json_lines(folder / f"{request.subset}.json", columns)
