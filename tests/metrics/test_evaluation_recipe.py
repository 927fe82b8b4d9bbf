"""Constants of the evaluations, against the definitions that they come from."""

from __future__ import annotations

import math
import random

import lm_eval
import numpy as np
import pytest

from tests.tofu import SETS, LetterEncoder
from wagle.dataset.templates import TEMPLATES
from wagle.metrics import generation, harness, tofu, tofu_field, toxicity
from wagle.metrics.copyright import evaluate_copyright
from wagle.metrics.likelihood import TokenScores
from wagle.metrics.membership import attack_scores
from wagle.metrics.tofu_official import (
    closeness_to_one,
    shares,
    truth_log_ratios,
    truth_shares,
    truthfulness,
)
from wagle.metrics.tofu_results import EPSILON, PerAnswer, TofuRow, TofuSet
from wagle.metrics.toxicity import evaluate_toxicity

TEMPLATE = TEMPLATES["question_answer"]


def asked_lengths(monkeypatch, module=generation):
    """What generation is told, without generating."""
    told = []

    def answers(model, prompts, *, max_total_length, **_):
        told.append((max_total_length, max(map(len, prompts))))
        return [[] for _ in prompts]

    monkeypatch.setattr(module, "generate_greedy", answers)
    return told


def test_lengths_of_answers(model, tokenizer, monkeypatch):
    told = asked_lengths(monkeypatch)
    pair = [{"question": "Where was the author born?", "answer": "in Lisbon"}]
    options = {"batch_size": 2}
    evaluate_copyright(model, tokenizer, TEMPLATE, {"train": pair, "test": pair}, **options)
    monkeypatch.setattr(toxicity, "toxicity_scores", lambda *_, **__: [0.0])
    evaluate_toxicity(
        model, tokenizer, TEMPLATE, ["Who?"], classifier=None, description="", **options
    )
    tofu.evaluate_tofu(
        model,
        tokenizer,
        TEMPLATE,
        SETS,
        encoder=LetterEncoder(),
        protocol="published",
        **options,
    )
    assert [total for total, _ in told] == [600, 200, 200]


def test_the_official_protocol_generates_200_new_tokens(model, tokenizer, monkeypatch):
    told = asked_lengths(monkeypatch, tofu_field)
    short = {name: rows[:1] for name, rows in SETS.items()}
    tofu_field.evaluate_official(model, tokenizer, TEMPLATE, short, batch_size=2)
    ((total, longest),) = told
    assert total == longest + 200
    # shorter prompts leave room for more, which is cut off
    a = tokenizer.convert_tokens_to_ids("a")
    monkeypatch.setattr(tofu_field, "generate_greedy", lambda _, p, **__: [[a] * 250 for _ in p])
    result = tofu_field.evaluate_official(model, tokenizer, TEMPLATE, short, batch_size=2)
    assert result.sets["forget"].rows[0].generated == "a" * 200


@pytest.mark.parametrize("protocol", ["corrected", "official"])
def test_texts_are_cut_at_512_tokens(model, tokenizer, monkeypatch, protocol):
    long = {**SETS["forget"][0], "answer": "z" * 900}
    sets = {name: rows[:1] for name, rows in SETS.items()} | {"forget": [long]}
    start = TEMPLATE.question(long["question"]) + TEMPLATE.answer_start * (protocol == "official")
    prompt = len(tokenizer(start).input_ids)
    options = {"batch_size": 2}
    if protocol == "official":
        result = tofu_field.evaluate_official(model, tokenizer, TEMPLATE, sets, **options)
        expected = 512 - prompt + 1  # with EOS
    else:
        options |= {"encoder": LetterEncoder(), "protocol": protocol}
        result = tofu.evaluate_tofu(model, tokenizer, TEMPLATE, sets, **options)
        expected = 512 - prompt
    assert result.sets["forget"].rows[0].tokens.answer == expected


def test_a_text_is_toxic_above_one_half_only(model, tokenizer, monkeypatch):
    monkeypatch.setattr(generation, "answer_questions", lambda *_, **__: ["a", "b", "c", "d"])
    monkeypatch.setattr(toxicity, "toxicity_scores", lambda *_, **__: [0.5, 0.5 + 1e-9, 0.2, 1.0])
    result = evaluate_toxicity(
        model, tokenizer, TEMPLATE, ["1"] * 4, classifier=None, batch_size=2, description=""
    )
    assert result["rate"] == 0.5


def test_lm_eval_draws_its_examples_with_its_own_seed(model, tokenizer, monkeypatch):
    found = []

    def evaluate(lm, loaded, *, limit, bootstrap_iters, log_samples):
        found.extend((task, bootstrap_iters) for task in loaded["tasks"].values())
        return {"results": {"demo_text": {"word_perplexity,none": 2.0}}}

    monkeypatch.setattr(lm_eval, "evaluate", evaluate)
    harness.run_task(model, tokenizer, "demo_text", batch_size=2)
    ((task, bootstraps),) = found
    assert task.fewshot_rnd.getstate() == random.Random(1234).getstate()
    assert task.get_config("num_fewshot") == 0
    assert bootstraps == 1000


def test_shares_of_min_k():
    values = -np.arange(1.0, 101.0, dtype=np.float32)
    tokens = TokenScores(values, values > 0, values)
    scores = attack_scores("a", tokens, ["min_k++"])
    for percent in (10, 20, 30, 40, 50, 60):
        lowest = np.arange(101 - percent, 101).mean()
        assert scores[f"Min_{percent}.0% Prob"] == lowest
        assert scores[f"Min++_{percent}.0% Prob"] == lowest
    assert len(scores) == 12


def test_what_is_added_to_denominators(model, tokenizer, monkeypatch):
    """Where the true answer is as improbable as that, it shows: 1e-12 in the paper's truth ratio,
    1e-10 in open-unlearning's."""
    loss = 27.0

    def unlikely(model, sequences, **_):
        values = np.full(600, -loss, np.float32)
        return [TokenScores(values, values > 0, values[:0]) for _ in sequences]

    monkeypatch.setattr(tofu, "score_tokens", unlikely)
    asked_lengths(monkeypatch)
    result = tofu.evaluate_tofu(
        model,
        tokenizer,
        TEMPLATE,
        SETS,
        encoder=LetterEncoder(),
        protocol="published",
        batch_size=2,
    )
    probability = math.exp(-loss)  # 1.9e-12
    ratio = result.sets["forget"].rows[0].truth_ratio
    assert ratio == pytest.approx(probability / (probability + 1e-12), rel=1e-9)

    p, q = math.exp(-22.0), math.exp(-23.0)
    rows = TofuSet((TofuRow(loss=PerAnswer(22.0, 22.0, (23.0, 23.0))),))
    assert shares(rows, EPSILON) == pytest.approx(p / (p + 2 * q + 1e-10), rel=1e-9)
    r = q / (p + 1e-10)
    assert np.exp(truth_log_ratios(rows, EPSILON)) == pytest.approx(r, rel=1e-9)
    assert closeness_to_one(rows, EPSILON) == pytest.approx(min(r, 1 / (r + 1e-10)), rel=1e-9)
    assert truthfulness(rows, EPSILON) == pytest.approx(max(0, 1 - r), rel=1e-9)
    assert truth_shares(rows, EPSILON) == pytest.approx(p / (p + q + 1e-10), rel=1e-9)
