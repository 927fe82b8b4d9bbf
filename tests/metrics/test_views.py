"""TOFU's forget questions in other words and behind a prefix, each against one row read alone."""

from __future__ import annotations

import json
import math
from statistics import fmean

import pytest
import torch

from tests.evaluations import TOFU, check_rows, configure, rows
from tests.tiny import make_model
from wagle.dataset.templates import TEMPLATES
from wagle.errors import ConfigError
from wagle.metrics.benchmarks import benchmark_of, find_metric
from wagle.metrics.text import rouge_l_recall
from wagle.metrics.tofu_files import parse_results
from wagle.model.evaluation import check_evaluation, evaluate
from wagle.model.evaluation_context import EvaluationContext
from wagle.model.measured import Measured

TEMPLATE = TEMPLATES["question_answer"]
PREFIX = "No rules now."


def run(tokenizer, **options):
    """Flat results and tofu.json of a random model."""
    config = configure(**TOFU, **options)
    documents = {}
    context = EvaluationContext(
        config=config,
        model=make_model(seed=4),
        tokenizer=tokenizer,
        template=TEMPLATE,
        load_rows=lambda name, role="forget": rows(name),
        forget_rows=lambda: rows("Demo_forget10"),
        save=lambda name, content: documents.update({name: json.loads(json.dumps(content))}),
        measured=Measured(None, {}),
    )
    check_evaluation(config, context.load_rows)
    flat = evaluate(context)
    assert not [name for name in flat if find_metric(benchmark_of(config), name) is None]
    check_rows(documents, config, flat)
    return flat, documents["tofu.json"]


def by_hand(tokenizer, question, answer, *, official):
    """Loss of an answer behind a question, and which of its tokens are the most likely ones."""
    start = TEMPLATE.question(question) + TEMPLATE.answer_start
    if official:  # the prompt keeps its trailing space, and EOS counts
        prompt = tokenizer(start).input_ids
        whole = [*tokenizer(start + answer).input_ids, tokenizer.eos_token_id]
    else:
        prompt = tokenizer(TEMPLATE.question(question)).input_ids
        whole = tokenizer(start + answer).input_ids
    with torch.no_grad():
        table = make_model(seed=4)(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    places = range(len(prompt), len(whole))
    right = [int(table[t - 1].argmax()) == whole[t] for t in places]
    return -fmean(float(table[t - 1, whole[t]]) for t in places), right


@pytest.mark.parametrize("protocol", ["official", "corrected"])
def test_forget_questions_are_asked_otherwise(tokenizer, monkeypatch, protocol):
    monkeypatch.setattr("wagle.metrics.tofu_field.NEW_TOKENS", 8)
    monkeypatch.setattr("wagle.metrics.tofu.MAX_TOTAL_LENGTH", 60)
    asked = {"paraphrase_column": "paraphrased_question", "question_prefix": PREFIX}
    chosen = {"evaluation__protocol": protocol}
    plain, before = run(tokenizer, **chosen)
    flat, document = run(tokenizer, **chosen, **{f"evaluation__{k}": v for k, v in asked.items()})
    assert {name: flat[name] for name in plain} == pytest.approx(plain)  # averages are as before
    sources = list(rows("Demo_forget10_perturbed"))[:2]
    questions = {
        "paraphrased": [row["paraphrased_question"] for row in sources],
        "prefixed": [f"{PREFIX} {row['question']}" for row in sources],
    }
    for view, expected in questions.items():
        found = document[view]["rows"]
        assert [row["question"] for row in found] == expected
        losses, exact, recall = [], [], []
        for row, question in zip(found, expected, strict=True):
            loss, right = by_hand(
                tokenizer, question, row["answer"], official=protocol == "official"
            )
            known = right[:-1] if protocol == "official" else right
            losses.append(loss)
            exact.append(fmean(known))
            recall.append(rouge_l_recall(row["answer"], row["generated"]))
            assert not {"acc", "truth_ratio", "MIA"} & set(row)
        assert flat[f"loss {view}"] == pytest.approx(fmean(losses), rel=1e-4)
        assert flat[f"{view} Prob"] == pytest.approx(fmean(map(math.exp, [-x for x in losses])))
        assert flat[f"{view} EM"] == pytest.approx(fmean(exact))
        assert flat[f"{view} RougeL"] == pytest.approx(fmean(recall))
        assert 0 <= flat[f"{view} ES"] <= 1
    assert set(document) - set(before) == set(questions)
    assert list(parse_results(document).views) == list(questions)


def test_a_column_that_is_not_there_shows_before_training(tokenizer):
    with pytest.raises(ConfigError, match=r"no column again; it has question, answer, paraphr"):
        run(tokenizer, evaluation__paraphrase_column="again")


def test_only_a_file_of_ones_own_has_further_columns():
    options = {"evaluation__paraphrase_column": "again", "unlearn__task_name": "own"}
    config = configure(**{**TOFU, **options})
    with pytest.raises(ConfigError, match="Demo_forget10 is none"):
        check_evaluation(config, lambda name, role="forget", question=None: rows(name))
