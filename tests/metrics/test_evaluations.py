"""What each task's evaluation keeps and reports, on a tiny model and local data."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tests.evaluations import DATA, TOFU, check_rows, configure, rows
from tests.tiny import make_model
from wagle.dataset.pairing import draw_forget_rows
from wagle.dataset.sources import load_rows
from wagle.dataset.templates import TEMPLATES
from wagle.errors import ConfigError, WagleError
from wagle.metrics.benchmarks import benchmark_of, find_metric
from wagle.metrics.copyright import evaluate_copyright
from wagle.metrics.text import bleu, rouge_l_recall
from wagle.metrics.toxicity import evaluate_toxicity, load_toxicity_classifier, toxicity_scores
from wagle.model.evaluation import check_evaluation, evaluate
from wagle.model.evaluation_context import EvaluationContext
from wagle.model.loading import save_model
from wagle.model.measured import Measured

TEMPLATE = TEMPLATES["question_answer"]


@pytest.fixture(scope="module")
def classifier_folder(tokenizer, tmp_path_factory):
    torch.manual_seed(1)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            initializer_range=1.0,
            problem_type="multi_label_classification",
            id2label={0: "obscene", 1: "toxic"},
            label2id={"obscene": 0, "toxic": 1},
        )
    )
    folder = tmp_path_factory.mktemp("classifier")
    save_model(model.eval(), tokenizer, folder)
    return folder


def run(tokenizer, config, seed=4, load=rows):
    """Flat results, documents by name, and the order in which documents were saved."""
    documents, saved = {}, []

    def save(name, content):
        saved.append(name)
        documents[name] = json.loads(json.dumps(content, allow_nan=False))

    context = EvaluationContext(
        config=config,
        model=make_model(seed=seed),
        tokenizer=tokenizer,
        template=TEMPLATE,
        load_rows=load,
        forget_rows=lambda: load(config["dataset.forget_dataset_name"]),
        save=save,
        measured=Measured(None, {}),
    )
    check_evaluation(config, load)
    flat = evaluate(context)
    benchmark = benchmark_of(config)
    assert [name for name in flat if find_metric(benchmark, name) is None] == []
    if benchmark.recount:
        check_rows(documents, config, flat)
    return flat, documents, saved


def greedy(model, tokenizer, question, limit):
    ids = tokenizer(TEMPLATE.question(question) + TEMPLATE.answer_start.rstrip()).input_ids
    output = model.generate(torch.tensor([ids]), max_length=limit, do_sample=False, pad_token_id=2)
    return tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()


def test_wmdp(tokenizer):
    results, documents, saved = run(tokenizer, configure(unlearn__task_name="wmdp"))
    assert saved == ["wmdp.json"] * 3 + ["mmlu.json", "ppl.json"]
    bio, chem, cyber = (
        1 - documents["wmdp.json"][name][name]["acc"]
        for name in ("demo_wmdp_lives", "demo_wmdp_craft", "demo_wmdp_works")
    )
    assert results == {
        "UE 1-FA bio": bio,
        "UE 1-FA cyber": cyber,
        "UE Avg": (bio + cyber) / 2,
        "1-FA chem": chem,
        "UT MMLU": documents["mmlu.json"]["demo_mmlu"]["demo_mmlu"]["acc"],
        "PPL": documents["ppl.json"]["demo_text"]["demo_text"]["word_perplexity"],
    }


def test_copyright(tokenizer):
    config = configure(unlearn__task_name="copyright", evaluation__prompt_tokens=50)
    results, documents, saved = run(tokenizer, config)
    assert saved == ["copyright.json", "ppl.json"] + ["few_shots.json"] * 3
    for title, part in (("seen", "train"), ("unseen", "test")):
        document = documents["copyright.json"][part]
        sources = load_rows(f"HP_{part}_50", data_dir=DATA, cache_dir=Path(".cache"))
        assert [row["question"] for row in document["rows"]] == list(sources["question"])[:2]
        for name, key in (("BLEU", "bleu"), ("RougeL", "rougeL_score")):
            mean = statistics.fmean(row[key] for row in document["rows"])
            assert results[f"{title} {name}"] == document[key] == pytest.approx(mean)
    shots = documents["few_shots.json"]
    accuracies = [shots[name][name]["acc"] for name in ("demo_forget", "demo_retain")]
    assert results["UT zero-shot acc"] == pytest.approx(statistics.fmean(accuracies))
    assert results["UT TruthfulQA"] == shots["demo_mmlu_facts"]["demo_mmlu_facts"]["acc"]
    assert results["PPL"] > 1


def test_continuations_are_compared_with_the_true_ones(tokenizer, monkeypatch):
    monkeypatch.setattr("wagle.metrics.copyright.MAX_TOTAL_LENGTH", 60)
    model = make_model(seed=4)
    parts = {
        "train": [{"question": "The author was", "answer": "born in Lisbon by the river"}] * 2,
        "test": [{"question": "She writes", "answer": "novels about the sea"}],
    }
    parts["train"][0] = {
        "question": "I do not know",
        "answer": greedy(model, tokenizer, "I do not know", 60),
    }
    result = evaluate_copyright(model, tokenizer, TEMPLATE, parts, batch_size=2)
    for part, asked in parts.items():
        for row, document in zip(asked, result[part]["rows"], strict=True):
            text = greedy(model, tokenizer, row["question"], 60)
            assert document["generated"] == text
            assert document["bleu"] == bleu(row["answer"], text)
            assert document["rougeL_score"] == rouge_l_recall(row["answer"], text)
    assert result["train"]["rows"][0]["rougeL_score"] == 1.0


def test_toxic(tokenizer, classifier_folder):
    config = configure(
        unlearn__task_name="toxic",
        evaluation__toxicity_model=classifier_folder,
        dataset__forget_dataset_name="SafePku",
    )
    results, documents, saved = run(tokenizer, config)
    names = ["forget.json", "harmful.json", "harmful.json", "ppl.json"]
    assert saved == names + ["few_shots.json"] * 3
    judged = {"forget": documents["forget.json"], **documents["harmful.json"]}
    assert list(judged) == ["forget", "SafePku_test", "RealToxicityPrompts"]
    for name, document in judged.items():
        scores = [row["score"] for row in document["rows"]]
        assert len({row["question"] for row in document["rows"]}) == 2
        assert results[f"toxicity {name} score"] == pytest.approx(statistics.fmean(scores))
        rate = sum(score > 0.5 for score in scores) / len(scores)
        assert results[f"toxicity {name} rate"] == pytest.approx(rate)


def test_toxicity_is_the_labels_sigmoid(tokenizer, classifier_folder):
    folder, cpu = str(classifier_folder), torch.device("cpu")
    classifier = load_toxicity_classifier(folder, device=cpu, cache_dir=Path(".cache"))
    texts = ["She writes novels about the sea.", "", "No!", " \n", "I do not know. " * 300]
    scores = toxicity_scores(classifier, texts, batch_size=2)
    assert scores[1] == scores[3] == 0.0  # who says nothing says nothing harmful
    model = BertForSequenceClassification.from_pretrained(folder)
    for text, score in zip(texts[::2], scores[::2], strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :512]
        with torch.no_grad():
            expected = model(ids).logits[0, 1].sigmoid()
        assert score == pytest.approx(float(expected), abs=1e-5)
    assert len(set(scores)) == 4

    model = make_model(seed=4)
    result = evaluate_toxicity(
        model,
        tokenizer,
        TEMPLATE,
        ["Where was she born?", "What does he write?"],
        classifier=classifier,
        batch_size=2,
        description="",
    )
    texts = [greedy(model, tokenizer, row["question"], 200) for row in result["rows"]]
    assert [row["generated"] for row in result["rows"]] == texts  # the prompt is not judged
    expected = toxicity_scores(classifier, texts, batch_size=1)
    assert [row["score"] for row in result["rows"]] == pytest.approx(expected, abs=1e-5)


def test_classifiers_that_do_not_fit_are_refused(tokenizer, tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(WagleError, match=r"no-such-classifier.*toxicity_model"):
        load_toxicity_classifier("no-such-classifier", device=cpu, cache_dir=tmp_path)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), intermediate_size=8, **small)
    )
    save_model(model, tokenizer, tmp_path)
    with pytest.raises(WagleError, match="no label 'toxic' but LABEL_0, LABEL_1"):
        load_toxicity_classifier(str(tmp_path), device=cpu, cache_dir=tmp_path)


def test_tofu(tokenizer, tmp_path):
    reference = tmp_path / "reference"
    save_model(make_model(seed=7), tokenizer, reference)
    _, documents, _ = run(tokenizer, configure(**TOFU), seed=7)
    retain_results = tmp_path / "tofu.json"
    retain_results.write_text(json.dumps(documents["tofu.json"]))
    config = configure(
        **TOFU,
        evaluation__retain_results=retain_results,
        evaluation__attacks="loss,reference",
        evaluation__reference_model=reference,
        evaluation__tasks="demo_wmdp,demo_text",
    )
    results, documents, saved = run(tokenizer, config)
    assert saved == ["tofu.json", "lm_eval.json", "lm_eval.json"]
    assert 0 < results["tofu_corrected Forget Quality"] <= 1
    assert {"tofu_corrected Model Utility", "tofu_corrected Prob. Forget"} <= set(results)
    assert not [name for name in results if name.startswith("tofu_official")]
    forget = documents["tofu.json"]["forget"]
    assert results["Exact Memorization"] == forget["exact_memorization"]
    assert results["Extraction Strength"] == forget["extraction_strength"]
    assert results["MIA LOSS"] == documents["tofu.json"]["MIA"]["LOSS"]
    assert "MIA reference" in results
    # where the two models' losses are equal, the reference attack sees nothing
    again, documents, _ = run(tokenizer, config, seed=7)
    for row in documents["tofu.json"]["forget"]["rows"]:
        assert row["MIA"]["reference"] == pytest.approx(0, abs=1e-5)
    assert again["tofu_corrected Forget Quality"] == 1.0
    flat = {name for name in results if name.startswith("lm_eval ")}
    assert flat == {
        "lm_eval demo_wmdp acc",
        "lm_eval demo_text word_perplexity",
        "lm_eval demo_text byte_perplexity",
        "lm_eval demo_text bits_per_byte",
    }


def test_tofu_as_its_authors_evaluate_it(tokenizer, tmp_path):
    official = {**TOFU, "evaluation__protocol": "official"}
    _, documents, _ = run(tokenizer, configure(**official), seed=7)
    retain_results = tmp_path / "tofu.json"
    retain_results.write_text(json.dumps(documents["tofu.json"]))
    without = configure(**official, evaluation__sentence_model="no/encoder")  # it needs none
    results, documents, _ = run(tokenizer, without)
    assert documents["tofu.json"]["protocol"] == "official"
    assert documents["tofu.json"]["sets"]["forget"] == "Demo_forget10_perturbed"
    assert all(name.startswith("tofu_official ") for name in results)
    assert "tofu_official Forget Quality" not in results
    results, _, _ = run(tokenizer, configure(**official, evaluation__retain_results=retain_results))
    assert 0 < results["tofu_official Forget Quality"] <= 1
    for changes, message in (
        ({**TOFU}, "protocol official, but this is corrected"),
        ({**official, "evaluation__limit": 3}, "asks 2, this evaluation 3, and 2 are the same"),
        ({**official, "dataset__forget_dataset_name": "Demo_forget01"}, "other forget questions"),
    ):
        config = configure(**changes, evaluation__retain_results=retain_results)
        with pytest.raises(WagleError, match=message):
            check_evaluation(config, rows)


def test_rows_that_were_retained_on_purpose_are_not_asked_about(tokenizer):
    config = configure(
        **{**TOFU, "evaluation__protocol": "official", "evaluation__limit": 40},
        dataset__self_retain=True,
        dataset__forget_ratio=3,
        dataset__dataset_seed=5,
    )
    asked = [row["question"] for row in rows("Demo_forget10_perturbed")]
    drawn = [asked[i] for i in draw_forget_rows(len(asked), 3, 5)]
    context = EvaluationContext(config, *[None] * 3, rows, *[None] * 3)
    assert {row["question"] for row in context.asked_rows()["forget"]} == set(drawn)
    assert len(context.asked_rows()["retain"]) > 3
    check_evaluation(config, rows)


RUSSIAN = "Она родилась в Лиссабоне."


@pytest.mark.parametrize(
    ("chosen", "protocol", "used", "said"),
    [
        ("auto", "corrected", "unicode", "words of every script"),
        ("unicode", "corrected", "unicode", ""),
        ("rouge_score", "corrected", "rouge_score", "warning: 100% of the letters"),
        ("auto", "official", "rouge_score", "warning: 100% of the letters"),
    ],
)
def test_answers_in_other_scripts(tokenizer, capsys, monkeypatch, chosen, protocol, used, said):
    ids = tokenizer(RUSSIAN).input_ids
    for name, answer in (("tofu.answer_questions", RUSSIAN), ("tofu_field.generate_greedy", ids)):
        monkeypatch.setattr(
            f"wagle.metrics.{name}", lambda *a, answer=answer, **_: [answer] * len(a[-1])
        )

    def russian(name):
        found = list(rows(name))[:2]
        return [{**row, "answer": RUSSIAN} for row in found] if "forget" in name else found

    config = configure(**TOFU, evaluation__protocol=protocol, evaluation__word_tokenizer=chosen)
    _, documents, _ = run(tokenizer, config, load=russian)
    assert documents["tofu.json"]["word_tokenizer"] == used
    assert documents["tofu.json"]["forget"]["rougeL_score"] == (used == "unicode")
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"perturbed_answer": []}, "perturbed_answer is empty"),
        ({"perturbed_answer": ["Oslo", " "]}, "perturbed_answer 2 is empty"),
        ({"answer": ""}, "answer is empty"),
        ({"paraphrased_answer": "\n"}, "paraphrased_answer is empty"),
    ],
)
def test_evaluated_rows_that_cannot_be_scored_show_before_training(changes, named):
    def damaged(name):
        found = list(rows(name))
        if name == "Demo_forget10_perturbed":
            found[2] = {**found[2], **changes}
        return found

    with pytest.raises(WagleError, match=f"Demo_forget10_perturbed, row 3: {named}"):
        check_evaluation(configure(**TOFU), damaged)


def test_the_official_protocol_has_no_attacks():
    with pytest.raises(ConfigError, match="leave this"):
        configure(**TOFU, evaluation__protocol="official", evaluation__attacks="loss")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**TOFU, "dataset__forget_dataset_name": "HP"}, "Tofu_forget10"),
        ({**TOFU, "evaluation__retain_results": "{folder}/wrong.json"}, "wrong.json"),
        ({**TOFU, "evaluation__sentence_model": "no/encoder"}, "sentence encoder 'no/encoder'"),
        (
            {**TOFU, "evaluation__attacks": "reference", "evaluation__reference_model": "no/model"},
            "model 'no/model'",
        ),
        ({"unlearn__task_name": "copyright", "evaluation__prompt_tokens": 7}, "HP_train_7"),
        (
            {"unlearn__task_name": "toxic", "evaluation__toxicity_model": "no/classifier"},
            "toxicity classifier 'no/classifier'",
        ),
    ],
)
def test_what_is_wrong_shows_before_training(tmp_path, changes, message):
    (tmp_path / "wrong.json").write_text("{}")
    changes = {
        key: value.format(folder=tmp_path) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(WagleError, match=message):
        check_evaluation(configure(**changes), rows)


def test_the_reference_attack_needs_a_model():
    with pytest.raises(ConfigError, match=r"evaluation\.reference_model"):
        configure(**TOFU, evaluation__attacks="reference")
