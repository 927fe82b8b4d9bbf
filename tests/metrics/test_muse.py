"""MUSE, on its miniature, against its definitions written out."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score

from tests.evaluations import check_rows, configure
from tests.tiny import make_model
from tests.unlearning import batches, make_objective
from wagle.commands import score
from wagle.dataset.sources import cut_into_pieces, load_rows, row_encoder
from wagle.dataset.templates import TEMPLATES
from wagle.errors import ConfigError, WagleError
from wagle.metrics import muse
from wagle.metrics.muse import MUSE, continuation, cut_answer
from wagle.metrics.muse_files import load_results
from wagle.metrics.resampling import Draws
from wagle.model.evaluation import check_evaluation, evaluate
from wagle.model.evaluation_context import EvaluationContext
from wagle.model.head import Head
from wagle.model.measured import Measured
from wagle.unlearn.objectives import no_reference

SCORER = RougeScorer(["rougeL"], use_stemmer=True)


def rows(name, role="forget"):
    return load_rows(name, data_dir=None, cache_dir=Path("unused"), role=role)


def test_training_text_is_a_stream_in_pieces(tokenizer):
    texts = rows("DemoMuse_retain1")
    pieces = cut_into_pieces("DemoMuse_retain1", texts, tokenizer)
    stream = tokenizer("\n\n".join(texts["text"]), add_special_tokens=False).input_ids
    assert len(stream) > 2048
    assert [len(piece) for piece in pieces["input_ids"]][:-1] == [2048] * (len(stream) // 2048)
    encode = row_encoder("DemoMuse_retain1", tokenizer, TEMPLATES["question_answer"])
    encoded = [encode(row) for row in pieces]
    assert list(itertools.chain.from_iterable(row.input_ids for row in encoded)) == stream
    assert all(row.labels == row.input_ids for row in encoded)
    others = rows("Demo_forget01")
    assert cut_into_pieces("Demo_forget01", others, tokenizer) is others


def test_the_miniature_has_all_parts():
    forget = rows("DemoMuse_forget")["text"]
    assert not set(forget) & {*rows("DemoMuse_retain1")["text"], *rows("DemoMuse_holdout")["text"]}
    assert not set(rows("DemoMuse_retain1")["text"]) & set(rows("DemoMuse_retain2")["text"])
    scaled, chained = (
        [rows(f"DemoMuse_{part}_forget_{step}")["text"] for step in (1, 2, 3, 4)]
        for part in ("scal", "sust")
    )
    for step in range(1, 4):
        assert scaled[step][: len(scaled[step - 1])] == scaled[step - 1]  # growing
        assert not set(chained[step]) & set(chained[step - 1])  # one after the other
    row = rows("DemoMuse_verbmem_forget")[0]
    assert f"{row['prompt']} {row['gt']}" == forget[0]


def test_answers_end_where_the_model_asks_on():
    assert cut_answer(" In Rome.\n\nQuestion: and?") == "In Rome."
    assert cut_answer("In Rome.\nQuestion: and?") == "In Rome."
    assert cut_answer("In RomeQuestion: and?") == "In Rome"
    assert cut_answer("In Rome,\nby the sea") == "In Rome,\nby the sea"


def test_a_text_is_continued_as_it_stands(tokenizer):
    """Where words begin with their space, as in byte-level BPE, the first one has it too."""
    prompt, text = "The author was born in Lisbon,", "by the river."
    ids = continuation(tokenizer, prompt, text)
    assert tokenizer(prompt).input_ids + ids == tokenizer(f"{prompt} {text}").input_ids
    assert tokenizer.decode(ids) == f" {text}"


@pytest.fixture
def measure(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(muse, "CONTINUED_TOKENS", 12)
    monkeypatch.setattr(muse, "ANSWER_TOKENS", 6)

    def measure(**options):
        config = configure(
            dataset__forget_dataset_name="DemoMuse_forget",
            dataset__retain_dataset_name="DemoMuse_retain1",
            **options,
        )
        assert config["unlearn.task_name"] == "muse"
        documents = {}
        context = EvaluationContext(
            config=config,
            model=make_model(seed=3),
            tokenizer=tokenizer,
            template=TEMPLATES["question_answer"],
            load_rows=rows,
            forget_rows=lambda: rows("DemoMuse_forget"),
            save=documents.__setitem__,
            measured=Measured(None, {}),
        )
        check_evaluation(config, rows)
        results = evaluate(context)
        check_rows(documents, config, results)
        return results, documents

    return measure


def generate(tokenizer, prompt, new_tokens):
    ids = torch.tensor([tokenizer(prompt).input_ids])
    output = make_model(seed=3).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
    )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_numbers_are_those_of_their_definitions(measure, tokenizer, monkeypatch):
    monkeypatch.setattr(muse, "MUSE", replace(MUSE, longest=600))
    flat, documents = measure()
    scores, strengths = [], []
    for row in rows("DemoMuse_verbmem_forget").select(range(2)):
        true = tokenizer(f"{row['prompt']} {row['gt']}").input_ids
        true = true[len(tokenizer(row["prompt"]).input_ids) :][:12]
        text = generate(tokenizer, row["prompt"], 12)
        scores.append(SCORER.score(tokenizer.decode(true), text)["rougeL"].fmeasure)
        prompt = tokenizer(row["prompt"]).input_ids
        assert len(prompt) < 588
        with torch.no_grad():
            logits = make_model(seed=3)(torch.tensor([prompt + true])).logits[0]
        right = (logits[len(prompt) - 1 : -1].argmax(-1) == torch.tensor(true)).tolist()
        starts = [k for k in range(len(true)) if all(right[k:])]
        strengths.append(1 - (starts[0] if starts else len(true) - 1) / len(true))
    assert flat["verbmem forget"] == pytest.approx(100 * fmean(scores))
    assert flat["verbmem Extraction Strength"] == pytest.approx(fmean(strengths))
    for role in ("forget", "retain"):
        examples = "".join(
            f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"
            for row in rows(f"DemoMuse_knowmem_{role}_qa_icl")
        )
        scores = []
        for row in rows(f"DemoMuse_knowmem_{role}_qa").select(range(2)):
            prompt = f"{examples}Question: {row['question']}\nAnswer: "
            text = cut_answer(generate(tokenizer, prompt, 6))
            scores.append(SCORER.score(row["answer"], text)["rougeL"].fmeasure)
        assert flat[f"knowmem {role}"] == pytest.approx(100 * fmean(scores))
    lowest = {}
    for role in ("forget", "holdout"):
        lowest[role] = []
        for row in rows(f"DemoMuse_privleak_{role}").select(range(2)):
            ids = torch.tensor(tokenizer(row["text"], truncation=True, max_length=600).input_ids)
            assert len(ids) == 600
            with torch.no_grad():
                table = make_model(seed=3)(ids[None]).logits[0].log_softmax(-1)
            values = sorted(table[:-1].gather(1, ids[1:, None])[:, 0].tolist())
            lowest[role].append(-fmean(values[: int(0.4 * len(values))]))
        kept = [row["Min_40.0% Prob"] for row in documents["privleak.json"][role]["rows"]]
        assert kept == pytest.approx(lowest[role], rel=1e-5)
    pairs = list(itertools.product(lowest["forget"], lowest["holdout"]))
    a = fmean((holdout < forget) + (holdout == forget) / 2 for forget, holdout in pairs)
    assert flat["privleak against 0.5"] == pytest.approx(100 * (a - 0.5) / 0.5)
    assert set(documents) == {"verbmem.json", "knowmem.json", "privleak.json"}


def test_words_may_be_compared_without_their_stems(measure, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "wagle.metrics.text.rouge_l_f1", lambda *_, stems: float(asked.append(stems) or 0)
    )
    measure(evaluation__rouge_stems="false")
    assert set(asked) == {False}


def test_privleak_against_own_or_released_results(measure, tmp_path, monkeypatch):
    (tmp_path / "r.json").write_text(json.dumps({"AUC": {"Min_40.0% Prob": 0.4}}))
    three = {"evaluation__limit": 3}  # of two alone the AUC is 1, whatever it is compared with
    flat, _ = measure(**three, evaluation__retain_results="r.json")
    a = 1 - flat["mia_min_k"]
    assert flat["privleak"] == pytest.approx(100 * (a - 0.6) / 0.6)
    monkeypatch.setitem(muse.RELEASED, "DemoMuse", 0.4772)
    flat, _ = measure(**three)
    assert flat["privleak"] == pytest.approx(100 * (a - 0.4772) / 0.4772)
    assert muse.RELEASED == {"MuseNews": 0.4772, "MuseBooks": 0.5393, "DemoMuse": 0.4772}
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(WagleError, match=r"no privleak\.json"):
        measure(evaluation__retain_results="r.json")


def test_attacks_over_drawn_texts(measure, tmp_path):
    """Against the attacks on texts that are really repeated, relative to a model's own results."""
    reference = tmp_path / "r.json"
    reference.write_text(json.dumps({"AUC": {"Min_40.0% Prob": 0.4, "LOSS": 0.7}}))
    _, documents = measure(evaluation__limit=3, evaluation__retain_results=str(reference))
    config = {
        "dataset.forget_dataset_name": "DemoMuse_forget",
        "evaluation.retain_results": str(reference),
    }
    recount = MUSE.recount(documents.get, config)
    random = np.random.default_rng(4)
    sizes = {role: len(found) for role, found in recount.asked.items()}
    assert sizes["privleak_forget"] == sizes["privleak_holdout"] == 3
    counts = {role: random.multinomial(n, np.full(n, 1 / n), 8) for role, n in sizes.items()}
    found = recount.numbers(Draws({role: drawn.astype(float) for role, drawn in counts.items()}))
    for draw in range(8):
        drawn = {
            role: [
                row
                for row, count in zip(
                    documents["privleak.json"][role]["rows"],
                    counts[f"privleak_{role}"][draw],
                    strict=True,
                )
                for _ in range(count)
            ]
            for role in ("holdout", "forget")
        }
        labels = [1] * 3 + [0] * 3
        for column, key in (("LOSS", "mia_loss"), ("Min_40.0% Prob", "mia_min_k")):
            scores = [row[column] for part in drawn.values() for row in part]
            values = {metric.key: values[draw] for metric, values in found.items()}
            auc = roc_auc_score(labels, scores)
            assert values[key] == pytest.approx(auc)
        assert values["privleak"] == pytest.approx(100 * (0.4 - auc) / 0.6)
        close = max(0, 1 - abs(values["mia_loss"] - 0.7) / 0.7)
        assert values["sMIA loss"] == pytest.approx(close)
    for part in ("forget", "holdout"):  # as earlier versions kept them
        for row in documents["privleak.json"][part]["rows"]:
            del row["text"]
    others = {"verbmem", "knowmem_forget", "knowmem_retain"}
    assert set(MUSE.recount(documents.get, config).asked) == others
    del documents["privleak.json"]  # as where that part has failed
    assert set(MUSE.recount(documents.get, config).asked) == others


def test_privleak_against_the_log_of_open_unlearning(measure, tmp_path):
    """Laid out as its published MUSE_EVAL.json of retrained models; privleak is Min-k's there."""
    questions = rows("DemoMuse_knowmem_forget_qa")["question"]

    def write(asked):
        found = {"agg_value": 0.5236, "auc": 0.5236, "forget": {}, "holdout": {}}
        answers = {
            str(i): {
                "rougeL_f1": 0.5,
                "input": f"Question: a?\nAnswer: b\n\nQuestion: {q}\nAnswer: ",
            }
            for i, q in enumerate(asked)
        }
        knowledge = {"agg_value": 0.5, "value_by_index": answers}
        log = {"forget_knowmem_ROUGE": knowledge, "mia_loss": {**found, "agg_value": 0.9}}
        (tmp_path / "MUSE_EVAL.json").write_text(json.dumps({**log, "mia_min_k": found}))

    write(questions[:3])
    flat, _ = measure(evaluation__limit=3, evaluation__retain_results="MUSE_EVAL.json")
    a = 1 - flat["mia_min_k"]
    assert flat["privleak"] == pytest.approx(100 * (a - 0.4764) / 0.4764)
    for asked, words in (
        (questions[:1], "has 1 .* evaluation 2, and 1"),
        (questions[:3], "has 3 .* evaluation 2, and 2"),
        (["Who?", "Why?"], "and 0"),
    ):
        write(asked)
        with pytest.raises(WagleError, match=words):
            measure(evaluation__retain_results="MUSE_EVAL.json")
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps({"mia_min_k": {"agg_value": 0.5}}))
    with pytest.raises(WagleError, match=r"no MUSE_EVAL\.json"):
        measure(evaluation__retain_results="TOFU_EVAL.json")


# ------------------------------------------------------------------ as open-unlearning keeps them

AUCS = {"LOSS": 0.75, "zlib": 0.5, "Min_40.0% Prob": 0.375, "Min++_40.0% Prob": 0.25}
ANSWER = {"rouge1_recall", "rougeL_f1", "rougeL_recall", "input", "ground_truth", "generation"}


def write_run(folder, privleak=-12.5, stems=True, questions=3):
    """What a finished run leaves."""

    def answers(name, **more):
        return {
            "rows": [
                {
                    "question": f"Who wrote book {i} of {name}?",
                    "answer": f"The author {i} wrote it.",
                    "generated": f"It was author {i}.",
                    "rougeL_score": 0.1 + i / 7,
                    **more,
                }
                for i in range(questions)
            ]
        }

    scores = [{column: i / (k + 3) for k, column in enumerate(AUCS)} for i in range(2)]
    documents = {
        "verbmem": {"verbmem": answers("verbmem", extraction_strength=1 / 3)},
        "knowmem": {f"knowmem_{role}": answers(role) for role in ("forget", "retain")},
        "privleak": {"AUC": AUCS, "forget": {"rows": scores}, "holdout": {"rows": scores[::-1]}},
        "results": {"privleak" if privleak is not None else "privleak against 0.5": privleak},
        "config": {"evaluation": {"rouge_stems": stems}},
    }
    folder.mkdir()
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def export(tmp_path):
    def export(results, *options):
        assert score.main([str(results), *map(str, options), "--export", str(tmp_path / "l")]) == 0
        return [
            json.loads((tmp_path / "l" / f"MUSE_{name}.json").read_text())
            for name in ("EVAL", "SUMMARY")
        ]

    return export


def test_a_run_becomes_open_unlearnings_files(export, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    log, summary = export(run, "--json")
    assert list(log) == sorted(log)
    layout = {
        "extraction_strength": {"score"},
        **{f"{name}_ROUGE": ANSWER for name in ("forget_knowmem", "forget_verbmem")},
        "retain_knowmem_ROUGE": ANSWER,
        **{f"mia_{name}": {"score"} for name in ("loss", "min_k", "min_k_plus_plus", "zlib")},
        "privleak": None,
    }
    assert set(log) == set(layout)
    for name, keys in layout.items():
        parts = [log[name]]
        if name.startswith("mia_"):
            assert set(log[name]) == {"agg_value", "auc", "forget", "holdout"}
            parts = [log[name]["forget"], log[name]["holdout"]]
        for part in parts:
            assert set(part) == {"agg_value"} | ({"value_by_index"} if keys else set())
            assert all(set(row) == keys for row in part.get("value_by_index", {}).values())
    assert log["forget_verbmem_ROUGE"]["value_by_index"]["1"] == {
        "input": "Who wrote book 1 of verbmem?",
        "ground_truth": "The author 1 wrote it.",
        "generation": "It was author 1.",
        "rougeL_f1": 0.1 + 1 / 7,
        "rouge1_recall": 0.6,
        "rougeL_recall": 0.4,
    }
    assert log["mia_zlib"]["holdout"]["value_by_index"] == {"0": {"score": 0.25}, "1": {"score": 0}}
    assert log["mia_zlib"]["forget"]["agg_value"] == 0.125
    assert summary["forget_verbmem_ROUGE"] == pytest.approx(0.1 + 1 / 7)
    assert summary["mia_min_k"] == 0.375
    assert summary["privleak"] == -12.5
    assert summary == {name: metric["agg_value"] for name, metric in log.items()}
    again, _ = export(tmp_path / "l" / "MUSE_EVAL.json", "--json")
    assert again == log
    ours, theirs = capsys.readouterr().out.split("}\n", 1)
    assert json.loads(ours + "}") == json.loads(theirs)


def test_what_privleak_is_relative_to(export, tmp_path):
    run = write_run(tmp_path / "run", privleak=None)
    assert export(run)[1]["privleak"] == pytest.approx(25)  # of 0.5
    results = load_results(tmp_path / "l" / "MUSE_EVAL.json")
    keys = {metric.key for metric in results.numbers()}
    assert "privleak against 0.5" in keys
    assert "privleak" not in keys
    for retained in (run, tmp_path / "l" / "MUSE_EVAL.json", run / "privleak.json"):
        assert export(run, "--retain_results", retained)[1]["privleak"] == 0
    other = write_run(tmp_path / "other", questions=2)
    with pytest.raises(WagleError, match=r"has 2 questions .* 3, and 2 are the same"):
        export(run, "--retain_results", other / "privleak.json")


def test_only_whole_runs_with_stems_are_exported(export, tmp_path):
    run = write_run(tmp_path / "run", stems=False)
    with pytest.raises(WagleError, match="rouge_stems false"):
        export(run)
    (run / "knowmem.json").unlink()
    with pytest.raises(WagleError, match=r"has no knowmem\.json: it is no folder of a"):
        export(run)
    assert not (tmp_path / "l").exists()


def test_other_data_are_refused():
    config = configure(
        dataset__forget_dataset_name="Demo_forget10",
        dataset__retain_dataset_name="Demo_retain90",
        unlearn__task_name="muse",
    )
    with pytest.raises(ConfigError, match="asks about MuseNews"):
        MUSE.sets(config)


def test_npo_knows_probabilities_not_logits(monkeypatch):
    """MUSE's own baseline takes logits for log-probabilities."""
    objective = make_objective("NPO+FT")
    batch, model = batches(objective)[0], make_model()
    before = objective.terms(model, batch, no_reference)
    logits = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, states: logits(self, states) + 7.0)
    after = objective.terms(model, batch, no_reference)
    assert {k: float(v) for k, v in after.items()} == pytest.approx(
        {k: float(v) for k, v in before.items()}, abs=1e-4
    )
