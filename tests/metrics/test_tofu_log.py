"""TOFU_EVAL.json and TOFU_SUMMARY.json: laid out as open-unlearning's own, and the same numbers."""

from __future__ import annotations

import json
from statistics import fmean

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp

from wagle.commands.score import main
from wagle.errors import WagleError
from wagle.metrics.composites import official_numbers
from wagle.metrics.tofu_files import load_results, parse_results
from wagle.metrics.tofu_log import evaluation_log
from wagle.shipped import CHECKOUT

LOGS = CHECKOUT.parent / "shared" / "data" / "tofu_eval_logs"
PREFIXES = {"forget": "forget", "retain": "retain", "real_author": "ra", "world_fact": "wf"}
AUCS = {"LOSS": 0.75, "zlib": 0.5, "Min_40.0% Prob": 1.0, "Min++_40.0% Prob": 0.25}

# What a row has, metric by metric, in the logs that open-unlearning has published.
LIKELIHOOD, SHARE, SCORE = {"prob", "avg_loss"}, {"prob"}, {"score"}
ANSWER = {"rouge1_recall", "rougeL_f1", "rougeL_recall", "input", "ground_truth", "generation"}
LAYOUT = {
    "exact_memorization": SCORE,
    "extraction_strength": SCORE,
    "forget_Q_A_PARA_Prob": LIKELIHOOD,
    "forget_Q_A_PERT_Prob": LIKELIHOOD,
    "forget_Q_A_Prob": LIKELIHOOD,
    "forget_Q_A_ROUGE": ANSWER,
    "forget_quality": None,
    "forget_truth_ratio": SCORE,
    "mia_loss": SCORE,
    "mia_min_k": SCORE,
    "mia_min_k_plus_plus": SCORE,
    "mia_zlib": SCORE,
    "model_utility": None,
    "privleak": None,
    "ra_Q_A_PERT_Prob": LIKELIHOOD,
    "ra_Q_A_Prob": LIKELIHOOD,
    "ra_Q_A_Prob_normalised": SHARE,
    "ra_Q_A_ROUGE": ANSWER,
    "ra_Truth_Ratio": SCORE,
    "retain_Q_A_PARA_Prob": LIKELIHOOD,
    "retain_Q_A_PERT_Prob": LIKELIHOOD,
    "retain_Q_A_Prob": LIKELIHOOD,
    "retain_Q_A_ROUGE": ANSWER,
    "retain_Truth_Ratio": SCORE,
    "wf_Q_A_PERT_Prob": LIKELIHOOD,
    "wf_Q_A_Prob": LIKELIHOOD,
    "wf_Q_A_Prob_normalised": SHARE,
    "wf_Q_A_ROUGE": ANSWER,
    "wf_Truth_Ratio": SCORE,
}


def row(name, i):
    """A question of a set as the official protocol leaves it."""
    truth = (0.3 + 0.2 * i, 0.5 + 0.3 * i if name in ("forget", "retain") else 0.3 + 0.2 * i)
    return {
        "question": f"Who wrote book {i} of {name}?",
        "answer": f"The author {i} of {name} wrote it.",
        "reference": f"The author {i} of {name} wrote it.",
        "generated": f"It was the author {i}.",
        "rougeL_score": 0.5 + i / 10,
        **({"paraphrase_rougeL_score": 0.25 * i} if name == "forget" else {}),
        "exact_memorization": None if i == 2 else 0.5,
        "extraction_strength": 0.25 + i / 8,
        "loss": {"answer": truth[0], "paraphrase": truth[1], "perturbed": [1.1, 0.2 * i, 2.0]},
    }


def document(shift=0):
    sets = {name: {"rows": [row(name, i + shift) for i in range(3)]} for name in PREFIXES}
    for i, forgotten in enumerate(sets["forget"]["rows"]):
        forgotten["question"] = f"Who wrote book {i}?"
    return {"protocol": "official", **sets, "holdout AUC": AUCS, "fluency": 0.875}


def write_run(folder, content):
    """A run's tofu.json and its privacy.json."""
    rows = [{column: i / (k + 1) for k, column in enumerate(AUCS)} for i in range(2)]
    privacy = {"AUC": AUCS, "forget": {"rows": rows}, "holdout": {"rows": rows[::-1]}}
    folder.mkdir()
    for name, part in {"tofu.json": content, "privacy.json": privacy}.items():
        (folder / name).write_text(json.dumps(part))
    return folder / "tofu.json"


@pytest.fixture
def files(tmp_path, capsys):
    """Both files of a run, and that run's and the retain-only model's results."""
    ours = write_run(tmp_path / "ours", document())
    retained = write_run(tmp_path / "retained", document(shift=1))
    command = [str(ours), "--retain_results", str(retained), "--json"]
    assert main([*command, "--export", str(tmp_path / "logs")]) == 0
    assert "Model Utility" in json.loads(capsys.readouterr().out)
    log, summary = (
        json.loads((tmp_path / "logs" / f"TOFU_{name}.json").read_text())
        for name in ("EVAL", "SUMMARY")
    )
    return log, summary, load_results(ours), load_results(retained)


def column(log, metric, key):
    rows = log[metric]["value_by_index"]
    return np.array([rows[str(i)][key] for i in range(len(rows))])


def test_the_layout_is_that_of_the_published_logs(files):
    log, summary, *_ = files
    ours_alone = {"forget_Q_A_PARA_ROUGE", "forget_Q_A_gibberish"}  # not in the published ones
    assert list(log) == sorted(log)
    assert set(log) == {*LAYOUT, *ours_alone}
    for metric, keys in LAYOUT.items():
        content = log[metric]
        attack = metric.startswith("mia_")
        parts = [content["forget"], content["holdout"]] if attack else [content]
        if attack:
            assert set(content) == {"agg_value", "auc", "forget", "holdout"}
            assert content["auc"] == content["agg_value"]
        for part in parts:
            assert set(part) == {"agg_value"} | ({"value_by_index"} if keys else set())
            rows = part.get("value_by_index", {})
            assert list(rows) == [str(i) for i in range(len(rows))]
            assert all(set(values) == keys for values in rows.values())
    wrong = log["wf_Q_A_PERT_Prob"]["value_by_index"]["2"]
    assert wrong["avg_loss"] == [1.1, 0.4, 2.0]
    assert wrong["prob"] == pytest.approx(np.exp([-1.1, -0.4, -2.0]))
    assert summary == {name: metric["agg_value"] for name, metric in log.items()}


def test_values_follow_from_the_rows_by_the_formulas_there(files):
    log, summary, _, retained = files
    nine = []
    for name, prefix in PREFIXES.items():
        true, wrong = (
            column(log, f"{prefix}_Q_A_{kind}", "prob") for kind in ("Prob", "PERT_Prob")
        )
        assert summary[f"{prefix}_Q_A_Prob"] == pytest.approx(true.mean())
        assert summary[f"{prefix}_Q_A_PERT_Prob"] == pytest.approx(wrong.mean(1).mean())
        losses = column(log, f"{prefix}_Q_A_PERT_Prob", "avg_loss").mean(1)
        other = "PARA_Prob" if name in ("forget", "retain") else "Prob"
        right = np.exp(-column(log, f"{prefix}_Q_A_{other}", "avg_loss"))
        ratios = np.exp(-losses) / (right + 1e-10)
        title = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        assert column(log, title, "score") == pytest.approx(ratios)
        near = np.minimum(ratios, 1 / (ratios + 1e-10))
        expected = near if name == "forget" else np.maximum(0, 1 - ratios)
        assert summary[title] == pytest.approx(expected.mean())
        assert summary[f"{prefix}_Q_A_ROUGE"] == pytest.approx(
            column(log, f"{prefix}_Q_A_ROUGE", "rougeL_recall").mean()
        )
        probability = f"{prefix}_Q_A_Prob"
        if name not in ("forget", "retain"):
            probability += "_normalised"
            shares = true / (true + wrong.sum(1) + 1e-10)
            assert column(log, probability, "prob") == pytest.approx(shares)
            assert summary[probability] == pytest.approx(shares.mean())
        nine += [summary[probability], summary[f"{prefix}_Q_A_ROUGE"], summary[title]]
    assert summary["model_utility"] == pytest.approx(hmean(nine[3:]))
    asked = log["forget_Q_A_ROUGE"]["value_by_index"]["1"]
    rouge = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(
        asked["ground_truth"], asked["generation"]
    )
    assert asked["rouge1_recall"] == rouge["rouge1"].recall
    assert asked["rougeL_f1"] == rouge["rougeL"].fmeasure
    assert asked["input"] == "Who wrote book 1?"
    theirs = evaluation_log(retained)
    ratios = (column(part, "forget_truth_ratio", "score") for part in (log, theirs))
    assert summary["forget_quality"] == pytest.approx(ks_2samp(*ratios).pvalue)
    assert theirs["forget_quality"] == {"agg_value": None}
    assert theirs["privleak"]["agg_value"] == pytest.approx(-100)  # against 0.5
    attack = log["mia_zlib"]
    assert attack["forget"]["agg_value"] == fmean([0.0, 0.5])
    assert attack["auc"] == AUCS["zlib"]
    assert column(attack, "holdout", "score").tolist() == [0.5, 0.0]


def test_what_is_read_again_has_the_same_numbers(files):
    log, _, ours, retained = files
    again, other = parse_results(log), parse_results(evaluation_log(retained))
    numbers = official_numbers(ours, retained, retained)
    assert {"Mem", "Priv", "Util", "Agg", "PARA ROUGE Forget"} <= {m.key for m in numbers}
    assert official_numbers(again, other, other) == numbers


@pytest.mark.skipif(not LOGS.is_dir(), reason=f"the official evaluation logs are not at {LOGS}")
def test_the_authors_own_log_in_this_form(tmp_path):
    path, published = (
        tmp_path / "TOFU_EVAL.json",
        json.loads((LOGS / "official_values.json").read_text()),
    )
    assert main([str(LOGS / "llama2-7b_full.json"), "--export", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "TOFU_SUMMARY.json").read_text())
    values = published["llama2-7b|wd0.01|full utility"]
    for ours, theirs in {
        "model_utility": "Model Utility",
        "forget_truth_ratio": "Truth Ratio Forget",
        "retain_Q_A_Prob": "Prob. Retain",
        "ra_Q_A_Prob_normalised": "Prob. Real Authors",
        "wf_Q_A_ROUGE": "ROUGE Real World",
    }.items():
        assert summary[ours] == pytest.approx(values[theirs], rel=1e-6)
    assert "forget_quality" not in summary
    full, retain = load_results(path), load_results(LOGS / "llama2-7b_retain90.json")
    found = {metric.key: value for metric, value in official_numbers(full, retain).items()}
    assert found["Forget Quality"] == pytest.approx(
        published["llama2-7b|wd0.01|full vs retain90"]["Forget Quality"]
    )


def test_only_official_results_of_one_evaluation_are_written(tmp_path):
    results = write_run(tmp_path / "run", {**document(), "protocol": "corrected"})
    command = [str(results), "--export", str(tmp_path / "logs")]
    with pytest.raises(WagleError, match=r"protocol corrected, and TOFU_EVAL\.json"):
        main(command)
    assert main([str(results.parent)]) == 0
    results.write_text(json.dumps({**document(), "holdout AUC": {"LOSS": 0.5}}))
    with pytest.raises(WagleError, match=r"privacy\.json is not of the evaluation"):
        main(command)
    assert not (tmp_path / "logs").exists()
