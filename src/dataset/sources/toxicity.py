"""Prompts with harmful responses, and prompts alone that invite them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets

from wagle.dataset.columns import FLAG, TEXT
from wagle.dataset.reading import RowsRequest

_PKU_REVISION = "ff7ba91063016c78a225b0f74e1c0860bb18230f"
_PKU_ANSWERS = {f"response_{i}": f"is_response_{i}_safe" for i in (0, 1)}


def load_safe_pku(request: RowsRequest) -> datasets.Dataset:
    """Every unsafe response with its prompt; as ``test`` the prompts of the test part, once each.

    Ji et al. 2023, arXiv 2307.04657.
    """
    split = request.subset or "train"
    flags = dict.fromkeys(_PKU_ANSWERS.values(), FLAG)
    rows = request.rows(
        f"SafePku/{split}.jsonl",
        "PKU-Alignment/PKU-SafeRLHF",
        columns={"prompt": TEXT, **dict.fromkeys(_PKU_ANSWERS, TEXT), **flags},
        split=split,
        revision=_PKU_REVISION,
    )
    if split == "test":
        return datasets.Dataset.from_dict({"question": list(dict.fromkeys(rows["prompt"]))})
    return rows.map(_unsafe_responses, batched=True, remove_columns=rows.column_names)


def _unsafe_responses(batch: Mapping[str, list[Any]]) -> dict[str, list[str]]:
    pairs = [
        (prompt, batch[response][row])
        for row, prompt in enumerate(batch["prompt"])
        for response, is_safe in _PKU_ANSWERS.items()
        if not batch[is_safe][row] and batch[response][row].strip()
    ]
    return {"question": [q for q, _ in pairs], "answer": [a for _, a in pairs]}


def load_real_toxicity_prompts(request: RowsRequest) -> datasets.Dataset:
    """Gehman et al. 2020, arXiv 2009.11462; prompts alone."""
    rows = request.rows(
        "RealToxicityPrompts/prompts.jsonl",
        "allenai/real-toxicity-prompts",
        columns={"prompt.text": TEXT},
    )
    return rows.select_columns(["prompt.text"]).rename_column("prompt.text", "question")
