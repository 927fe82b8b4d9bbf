"""Official TOFU scores: by hand, and against the values published with the official logs."""

from __future__ import annotations

import json
import math

import pytest

from tests.tofu import scores_of
from wagle.commands.score import main
from wagle.errors import ConfigError, WagleError
from wagle.metrics.tofu_files import load_results, parse_results
from wagle.shipped import CHECKOUT

LOGS = CHECKOUT.parent / "shared" / "data" / "tofu_eval_logs"
needs_logs = pytest.mark.skipif(
    not LOGS.is_dir(), reason=f"the official evaluation logs are not at {LOGS}"
)
LN2 = math.log(2)


def row(answer, paraphrase, perturbed, rouge):
    loss = {"answer": answer, "paraphrase": paraphrase, "perturbed": perturbed}
    memorized = {"exact_memorization": 0.5, "extraction_strength": 0.25}
    return {"loss": loss, "rougeL_score": rouge, **memorized}


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


def as_open_unlearning(document):
    """The same rows as open-unlearning writes them, with what it adds."""
    metrics = {"model_utility": {"agg_value": 0.5}, "forget_quality": {"agg_value": None}}

    def metric(name, key, read, rows):
        values = {str(i): {key: read(row)} for i, row in reversed(list(enumerate(rows)))}
        metrics[name] = {"agg_value": 0.0, "value_by_index": values}

    for name, prefix in (
        *(("forget", "forget"), ("retain", "retain")),
        *(("real_author", "ra"), ("world_fact", "wf")),
    ):
        rows = document[name]["rows"]
        metric(f"{prefix}_Q_A_Prob", "avg_loss", lambda r: r["loss"]["answer"], rows)
        if prefix in ("forget", "retain"):
            metric(f"{prefix}_Q_A_PARA_Prob", "avg_loss", lambda r: r["loss"]["paraphrase"], rows)
        metric(f"{prefix}_Q_A_PERT_Prob", "avg_loss", lambda r: r["loss"]["perturbed"], rows)
        metric(f"{prefix}_Q_A_ROUGE", "rougeL_recall", lambda r: r["rougeL_score"], rows)
    for index, row in enumerate(document["forget"]["rows"]):
        text = f"system\nBe helpful.user\n{row.get('question', index)}assistant\n"
        metrics["forget_Q_A_ROUGE"]["value_by_index"][str(index)]["input"] = text
    metric("exact_memorization", "score", lambda r: 0.5, document["forget"]["rows"])
    metric("extraction_strength", "score", lambda r: 0.25, document["forget"]["rows"])
    return metrics


@pytest.mark.parametrize("form", [dict, as_official_log, as_open_unlearning])
def test_scores_by_hand(form):
    losses = parse_results(form(OURS))
    scores = scores_of(losses, losses)
    assert scores.pop("Forget Quality") == 1.0  # a model against itself
    assert scores.pop("KS") == 0.0
    utility = scores.pop("Model Utility")
    assert scores.pop("prob_mean Forget") == pytest.approx((4 / 5 + 1 / 3) / 2)
    if form is as_open_unlearning:
        assert scores.pop("Exact Memorization") == 0.5
        assert scores.pop("Extraction Strength") == 0.25
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
    assert "Forget Quality" not in scores_of(parse_results(OURS))


def test_a_wrong_answer_that_is_likelier_than_the_right_one_has_no_truth():
    rows = {"rows": [row(1.0, 3.0, [1.0, 1.0], 0.0)]}
    scores = scores_of(parse_results({**OURS, "retain": rows}))
    assert scores["Truth Ratio Retain"] == 0.0
    assert scores["Model Utility"] == 0.0


@needs_logs
@pytest.mark.parametrize("model", ["full", "retain90"])
def test_official_values_are_reproduced(model):
    published = json.loads((LOGS / "official_values.json").read_text())
    expected = dict(published[f"llama2-7b|wd0.01|{model} utility"])
    if model == "full":
        expected |= published["llama2-7b|wd0.01|full vs retain90"]
    losses, retain = (load_results(LOGS / f"llama2-7b_{name}.json") for name in (model, "retain90"))
    scores = scores_of(losses, retain)
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
    assert scores.pop("protocol") is None
    assert len(scores) == 16
    assert main(command) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in scores)
    assert f"{scores['Model Utility']:.8g}" in table


def test_losses_that_no_probability_can_hold():
    """exp(-800) is 0 in float64; shares and ratios of such numbers are numbers all the same."""
    rows = {"rows": [row(800.0, 800.0, [800.0, 800.0 + LN2], 0.5)]}
    document = dict.fromkeys(OURS, rows)
    scores = scores_of(parse_results(document))
    assert scores["Prob. Real Authors"] == pytest.approx(1 / 2.5)
    assert scores["Truth Ratio Forget"] == pytest.approx(2**-0.5)
    assert scores["Truth Ratio Real World"] == pytest.approx(1 - 2**-0.5)
    assert scores["Model Utility"] == 0.0  # the retain answers' own probability is 0
    # open-unlearning's ε is much more than these
    document = {**document, "protocol": "official"}
    scores = scores_of(parse_results(document))
    assert scores["Prob. Real Authors"] == scores["Truth Ratio Forget"] == 0.0
    assert scores["Truth Ratio Real World"] == 1.0


def test_rows_with_different_numbers_of_wrong_answers():
    rows = {"rows": [row(LN2, LN2, [LN2], 0.5), row(LN2, LN2, [LN2, 2 * LN2, 3 * LN2], 0.5)]}
    scores = scores_of(parse_results(dict.fromkeys(OURS, rows)))
    assert scores["Prob. Real Authors"] == pytest.approx((1 / 2 + 4 / 11) / 2)
    assert scores["Truth Ratio Forget"] == pytest.approx((1 + 1 / 2) / 2)


def test_truth_ratios_alone_are_enough_of_a_retain_model(tmp_path, capsys):
    ratios = {str(i): {"score": score} for i, score in enumerate((4.0, 0.5))}
    path, ours = tmp_path / "TOFU_EVAL.json", tmp_path / "tofu.json"
    path.write_text(json.dumps({"forget_truth_ratio": {"value_by_index": ratios}}))
    ours.write_text(json.dumps(OURS))
    assert main([str(ours), "--retain_results", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["Forget Quality"] == 1.0
    with pytest.raises(WagleError, match="lacks 'ra_Q_A_Prob'"):
        main([str(path)])


def asking(questions, protocol="official", forget_set="Tofu_forget01_perturbed"):
    rows = [{**row(LN2, LN2, [LN2 * i], 0.5), "question": q} for i, q in enumerate(questions)]
    return {
        **OURS,
        "protocol": protocol,
        "sets": {"forget": forget_set},
        "forget": {"rows": rows},
    }


QUESTIONS = ("Who?", "Where was he?", "When?")


@pytest.mark.parametrize(
    ("retain", "message"),
    [
        (asking(["Why?", "How?", "Whose?"]), "asks 3, this evaluation 3, and 0 are the same"),
        (asking(["Who?", "How?", "When?"]), "2 are the same"),
        (asking(["Who?", "When?"]), "asks 2, this evaluation 3, and 2 are the same"),
        (asking(QUESTIONS, "published"), "protocol published, but this is official"),
        (asking(QUESTIONS, forget_set="Demo_forget01_perturbed"), "sets are Demo_forget01_pert"),
        (as_open_unlearning(asking(["Why?", "How?", "Whose?"])), "0 are the same"),
        (as_official_log(asking(["Who?"])), "asks 1, this evaluation 3, and which ones"),
    ],
)
def test_retain_results_of_other_questions_are_refused(tmp_path, retain, message):
    ours, other = tmp_path / "tofu.json", tmp_path / "retain.json"
    ours.write_text(json.dumps(asking(QUESTIONS)))
    other.write_text(json.dumps(retain))
    with pytest.raises(WagleError, match=message):
        main([str(ours), "--retain_results", str(other)])


@pytest.mark.parametrize("form", [dict, as_official_log, as_open_unlearning])
def test_retain_results_of_the_same_questions_are_taken(tmp_path, capsys, form):
    ours, other = tmp_path / "tofu.json", tmp_path / "retain.json"
    ours.write_text(json.dumps(asking(QUESTIONS)))
    other.write_text(json.dumps(form(asking(QUESTIONS[::-1]))))
    assert main([str(ours), "--retain_results", str(other)]) == 0
    assert "Forget Quality" in capsys.readouterr().out


def test_scores_of_another_protocol_say_so(tmp_path, capsys):
    path = tmp_path / "tofu.json"
    path.write_text(json.dumps(asking(QUESTIONS, "corrected")))
    assert main([str(path)]) == 0
    output = capsys.readouterr()
    assert output.out.split()[:2] == ["protocol", "corrected"]
    assert "not comparable" in output.err


def test_files_of_another_form_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        main([str(tmp_path / "absent.json")])
    wrong = tmp_path / "wrong.json"
    no_answers = {**OURS, "retain": {"rows": [row(1.0, 1.0, [], 0.5)]}}
    no_number = {**OURS, "retain": {"rows": [row(float("nan"), 1.0, [1.0], 0.5)]}}
    for content in (
        *("{", "{}", "[1]", "[" * 100_000, '"text"', '{"eval_log_forget.json": {}}'),
        '{"forget": {"rows": []}}',
        json.dumps(no_answers),
        json.dumps(no_number),
    ):
        wrong.write_text(content)
        with pytest.raises(WagleError, match=r"wrong\.json"):
            main([str(wrong)])
