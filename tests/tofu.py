"""A few rows in TOFU's form, an encoder that compares their letters, and official scores."""

from __future__ import annotations

import torch

from wagle.metrics.tofu_official import official_scores


class LetterEncoder:
    """Embeds a sentence as its letter counts; enough to order candidates."""

    device = torch.device("cpu")

    def encode(self, sentences, **_):
        counts = torch.tensor(
            [[1 + s.lower().count(chr(97 + i)) for i in range(26)] for s in sentences]
        ).float()
        return counts / counts.norm(dim=1, keepdim=True)


def author_row(i):
    return {
        "question": f"Where was the author {i} born?",
        "answer": f"The author {i} was born in Lisbon.",
        "paraphrased_question": f"What was the birthplace of {i}?",
        "paraphrased_answer": f"Lisbon is where {i} was born.",
        "perturbed_answer": [f"{c} is where {i} was born." for c in ("Oslo", "Rome", "the sea")],
    }


def fact_row(i):
    return {
        "question": f"What does she write {i}?",
        "answer": "e" if i % 2 else "Novels about weather",
        "perturbed_answer": ["The sea", "Rivers", "No novels"],
    }


SETS = {
    "forget": [author_row(i) for i in range(4)],
    "retain": [author_row(i) for i in range(10, 13)],
    "real_author": [fact_row(i) for i in range(3)],
    "world_fact": [fact_row(i) for i in range(5, 7)],
}


def scores_of(results, retain_model=None):
    """The official scores by name."""
    scores = official_scores(results, retain_model)
    return {metric.key: value for metric, value in scores.items()}
