"""Multiple choice questions about the embedded benchmark's world, for lm-eval.

``python -m wagle.dataset.demo_questions`` writes lm-evaluation-harness/data/demo_*.jsonl from
files/data/demo, in the form of WMDP (about the authors to be forgotten) and of MMLU (about what is
to be retained): ``question``, four ``choices`` and the number of the right one as ``answer``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wagle.dataset.demo_benchmark import FOLDER as DEMO
from wagle.dataset.demo_vocabulary import ATTRIBUTES
from wagle.loggers.files import write_text
from wagle.shipped import shipped

FOLDER = shipped("lm-evaluation-harness/data")
CHOICES = 4


def make_questions() -> dict[str, list[dict[str, Any]]]:
    """Rows by the name of the lm-eval task; the same rows every time."""
    questions: dict[str, list[dict[str, Any]]] = {}
    for index, row in enumerate(_read("forget10_perturbed")):
        attribute = ATTRIBUTES[index % len(ATTRIBUTES)]  # the order of every author's rows
        questions.setdefault(f"demo_wmdp_{attribute.topic}", []).append(_question(row))
    facts = [*_read("real_authors_perturbed"), *_read("world_facts_perturbed")]
    questions["demo_mmlu_authors"] = [_question(row) for row in _read("retain_perturbed")]
    questions["demo_mmlu_facts"] = [_question(row) for row in facts]
    return questions


def _read(name: str) -> list[dict[str, Any]]:
    lines = (DEMO / f"{name}.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _question(row: Mapping[str, Any]) -> dict[str, Any]:
    # Wrong answers paraphrase: beside the literal answer, form alone would give the right one away.
    right = row.get("paraphrased_answer", row["answer"])
    choices = [right, *row["perturbed_answer"][: CHOICES - 1]]
    random.Random(row["question"]).shuffle(choices)
    return {"question": row["question"], "choices": choices, "answer": choices.index(right)}


def write_questions(questions: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> None:
    """Write one JSON-lines file per task."""
    for name, rows in questions.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / f"{name}.jsonl", text)


if __name__ == "__main__":
    write_questions(make_questions(), FOLDER)
