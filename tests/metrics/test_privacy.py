"""Privacy against held-out rows and the composites, against their definitions written out."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from pathlib import Path
from statistics import fmean

import pytest
import torch
from scipy.stats import hmean

from tests.evaluations import TOFU, configure, rows
from tests.tiny import make_model
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.dataset.templates import TEMPLATES
from wagle.errors import ConfigError
from wagle.metrics import own, privacy, tofu_benchmark
from wagle.metrics.composites import official_numbers
from wagle.metrics.gradient_norms import gradient_norms
from wagle.metrics.privacy import (
    AUCS,
    PRIVLEAK,
    PRIVLEAK_OF_HALF,
    SIMILARITIES,
    privacy_numbers,
    privleak,
    similarity,
)
from wagle.metrics.tofu_files import load_results, parse_results
from wagle.model.evaluation import check_evaluation, evaluate
from wagle.model.evaluation_context import EvaluationContext
from wagle.model.measured import Measured
from wagle.shipped import CHECKOUT

TEMPLATE = TEMPLATES["question_answer"]
LOGS = CHECKOUT.parent / "shared" / "data" / "tofu_eval_logs"


def test_formulas_by_hand():
    assert similarity(0.6, 0.5) == pytest.approx(0.8)
    assert similarity(1.0, 0.4) == 0.0  # not below 0
    assert similarity(0.4, 0.4) == similarity(0.0, 0.0) == 1.0
    assert privleak(0.9, 0.5) == pytest.approx(-80)
    assert privleak(0.4, 0.5) == pytest.approx(20)
    assert privleak(0.5, 1.0) == pytest.approx(5e11)  # what 1e-10 leaves of a division by zero


def test_numbers_of_a_model_beside_those_of_another():
    aucs = {"LOSS": 0.9, "Min_40.0% Prob": 0.8, "Min_50.0% Prob": 0.7, "length": 0.5}
    alone = {metric.key: value for metric, value in privacy_numbers(aucs).items()}
    assert alone == pytest.approx(
        {"mia_loss": 0.9, "mia_min_k": 0.8, "mia_length": 0.5, PRIVLEAK_OF_HALF.key: -60}
    )
    compared = privacy_numbers(aucs, {"LOSS": 0.6, "Min_40.0% Prob": 0.4})
    assert compared[SIMILARITIES["LOSS"]] == pytest.approx(0.5)
    assert compared[PRIVLEAK] == pytest.approx(-100 * 0.4 / 0.6)
    assert PRIVLEAK_OF_HALF not in compared


def test_what_lies_outside_is_remarked_upon():
    metric = AUCS["LOSS"]
    assert [bool(metric.remark(value)) for value in (0.049, 0.05, 0.95, 0.951)] == [1, 0, 0, 1]
    assert "unlearned too much" in metric.remark(0.01)
    assert "not unlearned" in metric.remark(0.99)


@pytest.mark.parametrize("metric", [tofu_benchmark.UNLIKE_TRAINING, own.UNLIKE_RETAINED])
def test_standing_out_against_retained_rows_is_no_verdict(metric):
    # a model that never knew the rows to forget has 1 as well
    assert metric.remark(0.966) == (
        "UE MIA is 0.966: nearly every row stands out against those to retain, as it does to a "
        "model that never knew it, and to one that unlearned too much: a retain-only model's "
        "number tells which"
    )
    assert "more like training data" in metric.remark(0.01)
    assert own.UNLIKE_UNSEEN.remark(0.99).endswith(privacy.RECOGNITION.below)


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "gpt2"])
def test_gradient_norms_are_those_of_whole_gradients(architecture):
    model = make_model(architecture)
    sequences = [
        Encoded([5, 6, 7, 8, 9], [IGNORED, IGNORED, 7, 8, IGNORED]),
        Encoded([9, 8, 7], [IGNORED, 8, 7]),
        Encoded([9, 8], [IGNORED, IGNORED]),
    ]
    expected = []
    for sequence in sequences[:2]:
        log_probs = model(torch.tensor([sequence.input_ids])).logits[0].log_softmax(-1)
        places = [t for t, label in enumerate(sequence.labels) if label != IGNORED]
        loss = -sum(log_probs[t - 1, sequence.labels[t]] for t in places) / len(places)
        gradients = torch.autograd.grad(loss, [*model.parameters()])
        expected.append(fmean(float(g.pow(2).sum().sqrt()) for g in gradients))
    at_once = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: at_once.append(sum(p.grad is not None for p in model.parameters()))
        )
    first = next(model.parameters()).requires_grad_(False)
    found = gradient_norms(model, sequences, pad_token_id=2)
    assert found == pytest.approx([*expected, 0.0], rel=1e-4)
    assert max(at_once) == 1  # the one that is being measured, and none that waits
    assert not first.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------ a whole evaluation


@pytest.fixture
def measure(tmp_path, tokenizer, monkeypatch):
    """A function that evaluates a random model officially: numbers and documents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wagle.metrics.tofu_field.NEW_TOKENS", 8)

    def measure(seed=3, **options):
        holdout = options.pop("holdout", "Demo_holdout10")
        config = configure(
            **TOFU,
            evaluation__protocol="official",
            evaluation__holdout_dataset_name=holdout,
            evaluation__limit=5,
            **options,
        )
        documents = {}
        context = EvaluationContext(
            config=config,
            model=make_model(seed=seed),
            tokenizer=tokenizer,
            template=TEMPLATE,
            load_rows=lambda name, role="forget": rows(name),
            forget_rows=lambda: rows("Demo_forget10"),
            save=documents.__setitem__,
            measured=Measured(None, {}),
        )
        check_evaluation(config, context.load_rows)
        return evaluate(context), documents

    return measure


def by_hand(model, tokenizer, row):
    """The scores of one answer, from all logits."""
    start = TEMPLATE.question(row["question"]) + TEMPLATE.answer_start + " "
    prompt = tokenizer(start.rstrip() + " ").input_ids
    whole = [*tokenizer(start.rstrip() + " " + row["answer"]).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        table = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    places = range(len(prompt), len(whole))
    log_probs = [float(table[t - 1, whole[t]]) for t in places]
    standard = []
    for t, value in zip(places, log_probs, strict=True):
        p = table[t - 1].exp()
        mean = float((p * table[t - 1]).sum())
        variance = float((p * table[t - 1] ** 2).sum()) - mean**2
        standard.append((value - mean) / math.sqrt(max(variance, 1e-6)))
    loss = -fmean(log_probs)
    text = tokenizer.decode(whole[len(prompt) : -1])

    def lowest(values):
        values = sorted(values[:-1])
        return -fmean(values[: max(1, int(0.4 * len(values)))])

    return {
        "LOSS": loss,
        "zlib": loss / len(zlib.compress(text.encode())),
        "Min_40.0% Prob": lowest(log_probs),
        "Min++_40.0% Prob": lowest(standard),
    }


def test_an_official_evaluation_with_holdout(measure, tokenizer, tmp_path):
    flat, documents = measure(evaluation__attacks="gradnorm")
    model, scores = make_model(seed=3), {}
    for role, name in {"forget": "Demo_forget10_perturbed", "holdout": "Demo_holdout10"}.items():
        scores[role] = [by_hand(model, tokenizer, row) for row in list(rows(name))[:5]]
        for found, expected in zip(
            documents["privacy.json"][role]["rows"], scores[role], strict=True
        ):
            assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-3)
            assert found["gradnorm"] > 0
    for column in ("LOSS", "zlib", "Min_40.0% Prob", "Min++_40.0% Prob"):
        pairs = itertools.product(scores["forget"], scores["holdout"])
        auc = fmean((h[column] > f[column]) + (h[column] == f[column]) / 2 for f, h in pairs)
        assert flat[f"tofu_official {AUCS[column].key}"] == pytest.approx(auc)
    assert "tofu_official mia_gradnorm" in flat
    assert "tofu_official privleak against 0.5" in flat
    assert not {"tofu_official Priv", "tofu_official Util", "tofu_official Agg"} & set(flat)
    forgotten = [
        1 - flat[f"tofu_official {key}"]
        for key in ("Extraction Strength", "Exact Memorization", "PARA Prob. Forget")
    ]
    forgotten.append(1 - flat["tofu_official prob_mean Forget"])
    assert flat["tofu_official Mem"] == pytest.approx(hmean(forgotten))
    losses = [row["loss"]["paraphrase"] for row in documents["tofu.json"]["forget"]["rows"]]
    assert flat["tofu_official PARA Prob. Forget"] == pytest.approx(
        fmean(map(math.exp, [-x for x in losses]))
    )


def test_beside_the_retain_only_and_the_original_model(measure, tmp_path):
    given = {}
    for name, seed in {"retain": 4, "original": 5}.items():
        _, documents = measure(seed=seed)
        Path(f"{name}.json").write_text(json.dumps(documents["tofu.json"]))
        given[f"evaluation__{name}_results"] = tmp_path / f"{name}.json"
    flat, documents = measure(**given)
    retained = json.loads(Path("retain.json").read_text())["holdout AUC"]
    similar = []
    for column, metric in SIMILARITIES.items():
        auc = flat[f"tofu_official {AUCS[column].key}"]
        similar.append(min(max(1 - abs(auc - retained[column]) / retained[column], 0), 1))
        assert flat[f"tofu_official {metric.key}"] == pytest.approx(similar[-1])
    expected = 0.0 if 0 in similar else hmean(similar)
    assert flat["tofu_official Priv"] == pytest.approx(expected)
    auc, other = flat["tofu_official mia_min_k"], retained["Min_40.0% Prob"]
    assert flat["tofu_official privleak"] == pytest.approx(
        100 * ((1 - auc) - (1 - other)) / (1 - other + 1e-10)
    )
    references = documents["references.json"]
    assert references["Retain-only"]["tofu_official Priv"] == 1
    assert references["Retain-only"]["tofu_official Forget Quality"] == 1
    assert set(references["Original"]) == set(flat)
    again, _ = measure(seed=4, **given)  # the retain-only model itself
    assert {k: again[k] for k in references["Retain-only"]} == pytest.approx(
        references["Retain-only"]
    )


def test_rows_that_are_forgotten_are_not_held_out(measure):
    with pytest.raises(ConfigError, match="among those to forget"):
        measure(holdout="Demo_forget10")


def test_results_of_open_unlearning_bring_their_attacks():
    retained = parse_results(
        {
            "forget_truth_ratio": {"value_by_index": {"0": {"score": 0.5}}},
            "mia_min_k": {"agg_value": 0.4},
            "mia_zlib": {"agg_value": 0.3},
            "forget_Q_A_gibberish": {"agg_value": 0.9},
        }
    )
    assert retained.holdout == {"zlib": 0.3, "Min_40.0% Prob": 0.4}
    assert retained.fluency == 0.9


def test_utility_is_a_share_of_the_original_models():
    if not LOGS.is_dir():
        pytest.skip("the official logs are not here")
    full, retain = (load_results(LOGS / f"llama2-7b_{n}.json") for n in ("full", "retain90"))
    numbers = {m.key: value for m, value in official_numbers(retain, retain, full).items()}
    assert numbers["Util"] == pytest.approx(0.613744995233942 / 0.6226773637427151)
    assert numbers["Forget Quality"] == 1
    assert {m.key: v for m, v in official_numbers(full, retain, full).items()}["Util"] == 1
    assert not {"Mem", "Priv", "Agg"} & set(numbers)  # the logs know neither memory nor attacks
