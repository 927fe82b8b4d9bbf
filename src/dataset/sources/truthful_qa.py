"""TruthfulQA: questions that invite falsehoods, with their best answers."""

from __future__ import annotations

import datasets

from wagle.dataset.columns import TEXT
from wagle.dataset.reading import RowsRequest


def load_truthful_qa(request: RowsRequest) -> datasets.Dataset:
    """Lin et al. 2022, arXiv 2109.07958; its only part is called validation."""
    rows = request.rows(
        "TruthfulQA/generation.jsonl",
        "truthfulqa/truthful_qa",
        "generation",
        columns={"question": TEXT, "best_answer": TEXT},
        split="validation",
    )
    return rows.select_columns(["question", "best_answer"]).rename_column("best_answer", "answer")
