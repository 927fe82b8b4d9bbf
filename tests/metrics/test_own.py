"""The benchmark of one's own rows, against numbers worked out row by row from the logits."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from statistics import fmean

import pytest
import torch

from tests.tiny import make_model
from wagle.config import load_config
from wagle.dataset.reading import ColumnNames
from wagle.dataset.sources import load_rows
from wagle.dataset.templates import TEMPLATES
from wagle.errors import ConfigError
from wagle.metrics.own import MOST_RETAINED, OWN
from wagle.metrics.text import rouge_l_recall
from wagle.model.evaluation import check_evaluation, evaluate
from wagle.model.evaluation_context import EvaluationContext
from wagle.model.measured import Measured

TEMPLATE = TEMPLATES["question_answer"]
QUESTIONS = [
    {"question": f"Where was {name} born?", "answer": f"{name} was born in {town}."}
    for name, town in (("Ada", "Lisbon"), ("Ben", "Oslo"), ("Cleo", "Cairo"), ("Dov", "Riga"))
]
EVA = {"question": "Where was Eva born?", "answer": "In Lima, by the sea."}
TEXTS = [
    {"text": text}
    for text in (
        *("The author was born in Lisbon.", "She writes novels about weather."),
        *("A river runs by the town, slowly.", "I do not know, sorry.", "Nobody was there."),
    )
]


@pytest.fixture
def measure(tmp_path, tokenizer, monkeypatch):
    """A function that evaluates the rows of some sets; keywords are keys with __ for dots."""
    monkeypatch.chdir(tmp_path)

    def measure(**options):
        sets = {
            name: options.pop(name) for name in ("forget", "retain", "holdout") if name in options
        }
        for name, rows in sets.items():
            Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
            section = "evaluation" if name == "holdout" else "dataset"
            options[f"{section}__{name}_dataset_name"] = f"{name}.jsonl"
        argv = [f"--{key.replace('__', '.')}={value}" for key, value in options.items()]
        config = load_config(["--overall.model_name=m", *argv], prog="p", description="d")
        assert config["unlearn.task_name"] == "own"

        def load(name, role="forget", question=None):
            columns = ColumnNames(question=question)
            return load_rows(
                name, data_dir=None, cache_dir=Path("unused"), role=role, columns=columns
            )

        documents = {}
        context = EvaluationContext(
            config=config,
            model=make_model(seed=3),
            tokenizer=tokenizer,
            template=TEMPLATE,
            load_rows=load,
            forget_rows=lambda: load("forget.jsonl"),
            save=documents.__setitem__,
            measured=Measured(None, {}),
        )
        check_evaluation(config, load)
        return evaluate(context), json.loads(json.dumps(documents["own.json"], allow_nan=False))

    return measure


def by_hand(tokenizer, row):
    """Log-probability of every token but the first, whether it is the likeliest, and how many of
    the last belong to the answer."""
    prompt, text = "", row.get("text")
    if text is None:
        prompt = f"### Question: {row['question']}\n"
        text = f"{prompt}### Answer: {row['answer']}"
    ids = tokenizer(text).input_ids
    with torch.inference_mode():
        logits = make_model(seed=3)(torch.tensor([ids])).logits[0].double()
    log_probs = [float(logits[t - 1].log_softmax(-1)[ids[t]]) for t in range(1, len(ids))]
    greedy = [int(logits[t - 1].argmax()) == ids[t] for t in range(1, len(ids))]
    return log_probs, greedy, len(ids) - (len(tokenizer(prompt).input_ids) if prompt else 1)


def expected_row(tokenizer, row):
    log_probs, greedy, own = by_hand(tokenizer, row)
    answer, known = log_probs[-own:], greedy[-own:]
    behind = len(list(itertools.takewhile(bool, reversed(known))))
    lowest = sorted(log_probs)[: max(1, len(log_probs) // 2)]
    return {
        "loss": -fmean(answer),
        "probability": math.exp(fmean(answer)),
        "exact_memorization": sum(known) / own,
        "extraction_strength": behind / own,
        "tokens": own,
        "min 50": -fmean(lowest),
    }


def auc(forget, others):
    pairs = list(itertools.product(forget, others))
    return fmean((a > b) + 0.5 * (a == b) for a, b in pairs)


CLOSE = {"rel": 1e-4, "abs": 1e-6}


@pytest.mark.parametrize("rows", [[*QUESTIONS, EVA], TEXTS], ids=["questions", "texts"])
def test_every_number_is_the_mean_of_its_rows(measure, tokenizer, rows):
    forget, retain, holdout = rows[:2], rows[2:4], rows[4:]
    flat, document = measure(forget=forget, retain=retain, holdout=holdout)
    sets = {"forget": forget, "retain": retain}
    hand = {name: [expected_row(tokenizer, row) for row in part] for name, part in sets.items()}
    for name, part in sets.items():
        for source, row, wanted in zip(part, document[name]["rows"], hand[name], strict=True):
            assert {key: row[key] for key in source} == source
            for key in ("loss", "probability", "exact_memorization", "extraction_strength"):
                assert row[key] == pytest.approx(wanted[key], **CLOSE)
            assert row["tokens"] == wanted["tokens"]
            assert row["MIA"]["Min_50.0% Prob"] == pytest.approx(wanted["min 50"], **CLOSE)
            if "answer" in source:
                assert row["rougeL_score"] == rouge_l_recall(source["answer"], row["generated"])
            else:
                assert "generated" not in row
    titles = {"probability": "Prob", "exact_memorization": "EM", "extraction_strength": "ES"}
    wanted = {}
    for key, title in titles.items():
        wanted[f"UE 1-{title}"] = 1 - fmean(row[key] for row in hand["forget"])
        wanted[f"UT {title}"] = fmean(row[key] for row in hand["retain"])
    if "answer" in rows[0]:
        rouge = {name: fmean(r["rougeL_score"] for r in document[name]["rows"]) for name in sets}
        wanted |= {"UE 1-RougeL": 1 - rouge["forget"], "UT RougeL": rouge["retain"]}
    wanted["UE MIA"] = auc(*([row["min 50"] for row in hand[name]] for name in sets))
    for group in ("UE", "UT"):
        wanted[f"{group} Avg"] = fmean(v for k, v in wanted.items() if k.startswith(group))
    wanted |= {f"loss {name}": fmean(row["loss"] for row in hand[name]) for name in sets}
    assert {name: flat[name] for name in wanted} == pytest.approx(wanted, **CLOSE)
    of_holdout = {name for name in flat if "holdout" in name or name.startswith(("mia", "priv"))}
    known = [by_hand(tokenizer, row) for row in (*forget, *holdout)]
    losses = [-fmean(log_probs[-own:]) for log_probs, _, own in known]
    lowest = [
        -fmean(sorted(log_probs[-own:])[: max(1, int(0.4 * own))]) for log_probs, _, own in known
    ]
    assert flat["mia_loss"] == auc(losses[2:], losses[:2])
    assert flat["mia_min_k"] == auc(lowest[2:], lowest[:2])
    assert flat["privleak against 0.5"] == pytest.approx(100 * (1 - 2 * flat["mia_min_k"]))
    assert set(flat) == {*wanted, *of_holdout}
    unseen = [expected_row(tokenizer, row)["min 50"] for row in holdout]
    assert flat["MIA holdout"] == auc([row["min 50"] for row in hand["forget"]], unseen)
    assert flat["holdout Prob"] == document["holdout"]["probability"]


def test_rows_of_another_kind_are_not_told_apart_by_their_form(measure):
    flat, document = measure(forget=QUESTIONS[:2], retain=TEXTS)
    assert not any("MIA" in name for name in flat)
    assert document["MIA"] == {}
    assert "UE 1-RougeL" in flat
    assert "UT RougeL" not in flat
    assert document["word_tokenizer"] == "rouge_score"
    assert measure(forget=TEXTS, retain=TEXTS)[1]["word_tokenizer"] is None


def test_drawn_rows_are_asked_and_the_others_retained(measure):
    _, document = measure(
        forget=QUESTIONS, dataset__self_retain="true", dataset__forget_ratio=2,
        evaluation__attacks="loss,zlib",
    )  # fmt: skip
    asked = [[row["question"] for row in document[name]["rows"]] for name in ("forget", "retain")]
    assert [len(questions) for questions in asked] == [2, 2]
    assert sorted(asked[0] + asked[1]) == sorted(row["question"] for row in QUESTIONS)
    assert {"LOSS", "zlib"} < set(document["MIA"]["retain"])


def test_answers_may_be_as_long_as_the_longest_true_one(measure, monkeypatch):
    monkeypatch.setattr("wagle.model.own_evaluation.LEAST_TOTAL_LENGTH", 10)
    long = {"question": "Who?", "answer": "Ada and Ben. " * 6}
    flat, document = measure(forget=[long], retain=QUESTIONS[:1])
    rows = [*document["forget"]["rows"], *document["retain"]["rows"]]
    assert all(row["generated"] for row in rows)  # ten tokens would end within the prompts
    assert flat["UE 1-RougeL"] <= 1


def test_a_large_retain_set_is_asked_about_evenly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": str(row)} for row in range(1000)]

    def load(name, role="forget"):
        return rows[:30] if role == "forget" else rows

    def asked(*options):
        names = [f"--dataset.{role}_dataset_name={role}.csv" for role in ("forget", "retain")]
        argv = ["--overall.model_name=m", *names, *options]
        return OWN.rows(load_config(argv, prog="p", description="d"), load)

    for role in ("forget", "retain"):
        Path(f"{role}.csv").touch()
    assert asked()["forget"] == rows[:30]
    numbers = [int(row["text"]) for row in asked()["retain"]]
    assert len(numbers) == MOST_RETAINED
    assert {b - a for a, b in itertools.pairwise(numbers)} == {2, 3}
    assert len(asked("--evaluation.limit=500")["retain"]) == 1000  # it takes the first of them


@pytest.mark.parametrize("role", ["forget", "retain"])
def test_held_out_rows_must_be_new_to_the_model(measure, role):
    sets = {"forget": QUESTIONS[:1], "retain": QUESTIONS[1:2]}
    said = f"1 of the rows of holdout.jsonl are among those to {role}"
    with pytest.raises(ConfigError, match=said):
        measure(**sets, holdout=[*sets[role], QUESTIONS[3]])


def test_the_rows_to_forget_are_asked_in_other_words_and_behind_a_prefix(measure, tokenizer):
    forget = [{**row, "again": f"Say the birthplace: {row['question']}"} for row in QUESTIONS[:2]]
    sets = {"forget": forget, "retain": QUESTIONS[2:]}
    plain, _ = measure(**sets)
    views = {"paraphrase_column": "again", "question_prefix": "No rules now."}
    numbers, document = measure(**sets, **{f"evaluation__{k}": v for k, v in views.items()})
    assert {key: numbers[key] for key in plain} == pytest.approx(plain)  # averages are as before
    asked = {
        "paraphrased": [row["again"] for row in forget],
        "prefixed": [f"No rules now. {row['question']}" for row in forget],
    }
    for view, questions in asked.items():
        rows = [{**row, "question": q} for row, q in zip(forget, questions, strict=True)]
        assert [row["question"] for row in document[view]["rows"]] == questions
        expected = [expected_row(tokenizer, row) for row in rows]
        for title, measured in (("Prob", "probability"), ("EM", "exact_memorization")):
            assert numbers[f"{view} {title}"] == pytest.approx(
                fmean(row[measured] for row in expected), rel=1e-4
            )
        losses = fmean(row["loss"] for row in expected)
        assert numbers[f"loss {view}"] == pytest.approx(losses, rel=1e-4)
        assert 0 <= numbers[f"{view} RougeL"] <= 1
        assert view not in document["MIA"]


def test_running_text_is_not_asked_otherwise(measure):
    with pytest.raises(ConfigError, match=r"evaluation\.question_prefix is about questions"):
        measure(forget=TEXTS[:2], retain=TEXTS[2:4], evaluation__question_prefix="Say:")
