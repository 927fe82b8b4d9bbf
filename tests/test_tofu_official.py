"""Official TOFU scores: by hand, and against the values published with the official logs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from src.errors import ConfigError, WagleError
from src.exec.score_tofu import main
from src.metrics.tofu_official import load_losses, official_scores, parse_losses

LOGS = Path(__file__).resolve().parents[2] / "shared" / "data" / "tofu_eval_logs"
needs_logs = pytest.mark.skipif(
    not LOGS.is_dir(), reason=f"the official evaluation logs are not at {LOGS}"
)
LN2 = math.log(2)


def row(answer, paraphrase, perturbed, rouge):
    loss = {"answer": answer, "paraphrase": paraphrase, "perturbed": perturbed}
    return {"loss": loss, "rougeL_score": rouge}


OURS = {
    # R = 2^(mean(2, 4) − 1) = 4 and 2^(mean(0, 2) − 2) = 1/2
    "forget": {
        "rows": [
            row(LN2, LN2, [2 * LN2, 4 * LN2], 1.0),
            row(2 * LN2, 2 * LN2, [0.0, 2 * LN2], 0.5),
        ]
    },
    "retain": {"rows": [row(LN2, LN2, [3 * LN2], 0.75)]},  # R = 4
    "real_author": {"rows": [row(LN2, LN2, [2 * LN2, 2 * LN2], 0.5)]},  # p = ½ / (½ + ¼ + ¼)
    "world_fact": {"rows": [row(2 * LN2, 2 * LN2, [3 * LN2] * 2, 0.25)]},
}


def as_official_log(document):
    """The same rows in the official form; the order of its keys means nothing there."""
    names = {
        "forget": "eval_log_forget.json",
        "retain": "eval_log.json",
        "real_author": "eval_real_author_wo_options.json",
        "world_fact": "eval_real_world_wo_options.json",
    }

    def column(name, read):
        rows = list(enumerate(document[name]["rows"]))
        return {str(i): read(r) for i, r in reversed(rows)}

    return {
        log: {
            "avg_gt_loss": column(name, lambda r: r["loss"]["answer"]),
            "avg_paraphrased_loss": column(name, lambda r: r["loss"]["paraphrase"]),
            "average_perturb_loss": column(name, lambda r: r["loss"]["perturbed"]),
            "rougeL_recall": column(name, lambda r: r["rougeL_score"]),
        }
        for name, log in names.items()
    }


@pytest.mark.parametrize("form", [dict, as_official_log])
def test_scores_by_hand(form):
    losses = parse_losses(form(OURS))
    scores = official_scores(losses, losses)
    assert scores.pop("Forget Quality") == 1.0  # a model against itself
    assert scores.pop("KS") == 0.0
    utility = scores.pop("Model Utility")
    assert scores == pytest.approx(
        {
            "ROUGE Forget": 0.75,
            "Prob. Forget": (1 / 2 + 1 / 4) / 2,
            "Truth Ratio Forget": (1 / 4 + 1 / 2) / 2,
            "ROUGE Retain": 0.75,
            "Prob. Retain": 1 / 2,
            "Truth Ratio Retain": 3 / 4,
            "ROUGE Real Authors": 0.5,
            "Prob. Real Authors": 1 / 2,
            "Truth Ratio Real Authors": 1 / 2,
            "ROUGE Real World": 0.25,
            "Prob. Real World": 1 / 2,
            "Truth Ratio Real World": 1 / 2,
        }
    )
    nine = [0.75, 1 / 2, 3 / 4, 0.5, 1 / 2, 1 / 2, 0.25, 1 / 2, 1 / 2]
    assert utility == pytest.approx(9 / sum(1 / value for value in nine))


def test_without_a_retain_model_there_is_no_forget_quality():
    assert "Forget Quality" not in official_scores(parse_losses(OURS))


def test_a_wrong_answer_that_is_likelier_than_the_right_one_has_no_truth():
    rows = {"rows": [row(1.0, 3.0, [1.0, 1.0], 0.0)]}
    scores = official_scores(parse_losses({**OURS, "retain": rows}))
    assert scores["Truth Ratio Retain"] == 0.0
    assert scores["Model Utility"] == 0.0


@needs_logs
@pytest.mark.parametrize("model", ["full", "retain90"])
def test_official_values_are_reproduced(model):
    published = json.loads((LOGS / "official_values.json").read_text())
    expected = dict(published[f"llama2-7b|wd0.01|{model} utility"])
    if model == "full":
        expected |= published["llama2-7b|wd0.01|full vs retain90"]
    losses = load_losses(LOGS / f"llama2-7b_{model}.json")
    scores = official_scores(losses, load_losses(LOGS / "llama2-7b_retain90.json"))
    assert len(expected) >= 13
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=1e-6), name


def test_command_prints_all_fields(tmp_path, capsys):
    ours, official = tmp_path / "tofu.json", tmp_path / "eval_log_aggregated.json"
    ours.write_text(json.dumps(OURS))
    official.write_text(json.dumps(as_official_log(OURS)))
    command = [str(ours), "--retain_results", str(official)]
    assert main([*command, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert len(scores) == 15
    assert main(command) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in scores)
    assert f"{scores['Model Utility']:.8g}" in table


def test_files_of_another_form_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        main([str(tmp_path / "absent.json")])
    wrong = tmp_path / "wrong.json"
    for content in ("{", "{}", "[1]", '{"eval_log_forget.json": {}}'):
        wrong.write_text(content)
        with pytest.raises(WagleError, match=r"wrong\.json"):
            main([str(wrong)])
