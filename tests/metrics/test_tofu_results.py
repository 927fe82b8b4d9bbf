"""TOFU's rows on their way: filled in, written down, read back, and kept when an attempt fails."""

from __future__ import annotations

import json
import math

import pytest

from tests.evaluations import TOFU, configure, rows
from tests.tiny import make_model
from tests.tofu import SETS, LetterEncoder
from wagle.dataset.templates import TEMPLATES
from wagle.errors import WagleError
from wagle.loggers.files import write_json
from wagle.metrics import tofu, tofu_field
from wagle.metrics.tofu import evaluate_tofu
from wagle.metrics.tofu_field import evaluate_official
from wagle.metrics.tofu_results import (
    PerAnswer,
    TofuResults,
    TofuRow,
    TofuSet,
    from_document,
    to_document,
)
from wagle.model.evaluation import evaluate
from wagle.model.evaluation_context import EvaluationContext
from wagle.model.measured import Measured

TEMPLATE = TEMPLATES["question_answer"]


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch):
    monkeypatch.setattr(tofu, "MAX_TOTAL_LENGTH", 80)


def measure(protocol, tokenizer):
    asked = (make_model(seed=4), tokenizer, TEMPLATE, SETS)
    if protocol == "official":
        return evaluate_official(*asked, batch_size=3)
    return evaluate_tofu(
        *asked,
        encoder=LetterEncoder(),
        protocol=protocol,
        batch_size=3,
        attacks=["loss", "zlib", "min_k++", "reference"],
        reference_losses=lambda texts: [0.5] * len(texts),
    )


@pytest.mark.parametrize("protocol", ["corrected", "published", "official"])
def test_what_is_written_is_read_back(tokenizer, protocol):
    results = measure(protocol, tokenizer)
    text = json.dumps(to_document(results))
    assert from_document(json.loads(text)) == results
    assert "null" not in text
    keys = set(json.loads(text)["forget"]["rows"][0])
    assert ("truth_ratio" in keys, "MIA" in keys, "reference" in keys) == (
        (False, False, True) if protocol == "official" else (True, True, False)
    )


def test_a_document_by_hand():
    row = TofuRow(
        question="Who?",
        answer="She.",
        generated="He.",
        rouge=0.25,
        loss=PerAnswer(math.log(2), 0.5, (1.5, 2.5)),
        tokens=PerAnswer(3, 4, (5, 6)),
    )
    other = TofuRow(question="When?", rouge=0.75, exact_memorization=1.0, loss=row.loss)
    results = TofuResults({"forget": TofuSet((row, other))}, data_sets={"forget": "Demo_forget01"})
    document = to_document(results)
    assert document == {
        "sets": {"forget": "Demo_forget01"},
        "forget": {
            "truth_prob": pytest.approx(0.5),
            "rougeL_score": 0.5,
            "exact_memorization": 1.0,  # of the row that has something to be memorised
            "rows": [
                {
                    "question": "Who?",
                    "answer": "She.",
                    "generated": "He.",
                    "truth_prob": pytest.approx(0.5),
                    "rougeL_score": 0.25,
                    "exact_memorization": None,
                    "loss": {
                        "answer": math.log(2),
                        "paraphrase": 0.5,
                        "perturbed": [1.5, 2.5],
                    },
                    "tokens": {"answer": 3, "paraphrase": 4, "perturbed": [5, 6]},
                },
                {
                    "question": "When?",
                    "truth_prob": pytest.approx(0.5),
                    "rougeL_score": 0.75,
                    "exact_memorization": 1.0,
                    "loss": {
                        "answer": math.log(2),
                        "paraphrase": 0.5,
                        "perturbed": [1.5, 2.5],
                    },
                },
            ],
        },
    }
    assert list(document["forget"]["rows"][0]) == [
        *("question", "answer", "generated", "truth_prob", "rougeL_score"),
        *("exact_memorization", "loss", "tokens"),
    ]


def test_rows_that_are_not_finished_have_no_numbers():
    rows = TofuSet((TofuRow(question="Who?"), TofuRow(question="When?", acc=1.0)))
    assert to_document(TofuResults({"forget": rows})) == {
        "forget": {"rows": [{"question": "Who?"}, {"question": "When?", "acc": 1.0}]}
    }
    assert rows.known(lambda row: row.acc) == [1.0]
    with pytest.raises(ValueError, match="without some of the numbers"):
        rows.mean(lambda row: row.acc)


# ------------------------------------------------------------------------- attempts that failed


def attempt(tokenizer, folder, **changes):
    """One attempt at an evaluation, which keeps documents in a folder; its flat results."""
    config = configure(**TOFU, **changes)
    return evaluate(
        EvaluationContext(
            config=config,
            model=make_model(seed=4),
            tokenizer=tokenizer,
            template=TEMPLATE,
            load_rows=rows,
            forget_rows=lambda: rows(config["dataset.forget_dataset_name"]),
            save=lambda name, content: write_json(folder / name, content),
            measured=Measured(folder / "kept", {}),
        )
    )


def measured_in(folder):
    return list(json.loads((folder / "kept").read_text())["measured"])


def no_memory(*_, **__):
    raise WagleError("no memory left")


def never(*_, **__):
    pytest.fail("this has been measured already")


@pytest.mark.parametrize(
    ("protocol", "module", "generate", "before"),
    [
        ("corrected", tofu, "answer_questions", 4),
        ("published", tofu, "answer_questions", 4),
        ("official", tofu_field, "generate_greedy", 6),  # forget rows have a paraphrase each
    ],
)
def test_an_attempt_that_failed_goes_on_where_it_stopped(
    tokenizer, monkeypatch, tmp_path, protocol, module, generate, before
):
    """First while it generates, then in the third set (of two rows); the same bytes at the end."""
    options = {"evaluation__protocol": protocol}
    straight, folder = tmp_path / "straight", tmp_path / "failed"
    expected = attempt(tokenizer, straight, **options)
    rouge, judged = module.rouge_l_recall, []

    def third_set_fails(*texts):
        judged.append(texts)
        if len(judged) > before:
            raise WagleError("no ROUGE today")
        return rouge(*texts)

    with monkeypatch.context() as failing:
        failing.setattr(module, generate, no_memory)
        with pytest.raises(WagleError, match="no memory left"):
            attempt(tokenizer, folder, **options)
    assert measured_in(folder) == ["tofu scores"]

    monkeypatch.setattr(tofu, "score_tokens", never)
    with monkeypatch.context() as failing:
        failing.setattr(module, "rouge_l_recall", third_set_fails)
        with pytest.raises(WagleError, match="no ROUGE today"):
            attempt(tokenizer, folder, **options)
    pieces = ("scores", "answers", "forget", "retain")
    assert measured_in(folder) == [f"tofu {piece}" for piece in pieces]

    monkeypatch.setattr(module, generate, never)
    monkeypatch.setattr(module, "rouge_l_recall", lambda *t: judged.append(t) or rouge(*t))
    del judged[:]
    results = attempt(tokenizer, folder, **options)
    assert len(judged) == 4
    assert json.dumps(results) == json.dumps(expected)
    assert (folder / "tofu.json").read_bytes() == (straight / "tofu.json").read_bytes()
