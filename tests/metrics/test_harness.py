"""lm-eval in this process, on our own task files; no hub, no index of the package's tasks."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from lm_eval.api.metrics import weighted_perplexity
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import manager

from wagle import terminal
from wagle.dataset.demo_questions import FOLDER, make_questions
from wagle.errors import ConfigError, WagleError
from wagle.metrics import harness
from wagle.metrics.harness import find_tasks, mean_of, own_metrics, run_task


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_stored_questions_are_the_generated_ones():
    questions = make_questions()
    for name, rows in questions.items():
        assert read_lines(FOLDER / f"{name}.jsonl") == rows
    wmdp = {name: rows for name, rows in questions.items() if "wmdp" in name}
    assert len({row["question"] for rows in wmdp.values() for row in rows}) == 100
    rows = [row for rows in questions.values() for row in rows]
    assert all(len(set(row["choices"])) == 4 for row in rows)
    counts = [sum(row["answer"] == letter for row in rows) for letter in range(4)]
    assert min(counts) > len(rows) / 8  # no letter gives the answer away


@torch.no_grad()
def log_prob(model, tokenizer, prompt, continuation):
    """As lm-eval counts: the tokens of the whole text beyond those of the prompt."""
    start = len(tokenizer(prompt).input_ids)
    ids = torch.tensor(tokenizer(prompt + continuation).input_ids)
    log_probs = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    return sum(float(log_probs[t - 1, ids[t]]) for t in range(start, len(ids)))


def test_tasks_are_scored_by_their_definitions(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the files are found from anywhere
    model.train()
    results = {
        name: run_task(model, tokenizer, name, batch_size=3, limit=5)
        for name in ("demo_wmdp", "demo_forget", "demo_text")
    }
    assert model.training
    model.eval()
    accuracies = {}
    for part in ("lives", "craft", "works"):
        right = []
        for row in read_lines(FOLDER / f"demo_wmdp_{part}.jsonl")[:5]:
            topic = {
                "lives": "the lives of writers",
                "craft": "how writers work",
                "works": "books and awards",
            }[part]
            prompt = (
                "The following are multiple choice questions (with answers) about "
                f"{topic}.\n\n{row['question']}\n"
                + "\n".join(f"{c}. {t}" for c, t in zip("ABCD", row["choices"], strict=True))
                + "\nAnswer:"
            )
            scores = [log_prob(model, tokenizer, prompt, f" {letter}") for letter in "ABCD"]
            right.append(scores.index(max(scores)) == row["answer"])
        accuracies[f"demo_wmdp_{part}"] = sum(right) / 5
    wmdp = results["demo_wmdp"]
    assert {name: wmdp[name]["acc"] for name in accuracies} == pytest.approx(accuracies)
    assert wmdp["demo_wmdp"]["acc"] == pytest.approx(sum(accuracies.values()) / 3)
    assert own_metrics(results, "demo_wmdp") == {"demo_wmdp": wmdp["demo_wmdp"]}

    right = []
    for row in read_lines(FOLDER.parents[1] / "files/data/demo/forget10_perturbed.json")[:5]:
        prompt = f"[INST] {row['paraphrased_question']} [\\INST]"
        answers = [row["paraphrased_answer"], *row["perturbed_answer"]]
        scores = [log_prob(model, tokenizer, prompt, f" {answer}") for answer in answers]
        right.append(scores.index(max(scores)) == 0)
    assert mean_of(results, ["demo_forget"], "acc") == pytest.approx(sum(right) / 5)

    texts = [row["text"] for row in read_lines(FOLDER / "demo_text.jsonl")]
    # lm-eval puts a BOS before a text that has one already, and counts the second.
    total = sum(log_prob(model, tokenizer, "", f"<s>{text}") for text in texts)
    words = sum(len(text.split()) for text in texts)
    expected = math.exp(-total / words)
    assert mean_of(results, ["demo_text"], "word_perplexity") == pytest.approx(expected, rel=1e-3)


def write_task(folder, name, **changes):
    task = {
        "task": name,
        "tag": "our_tag",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(FOLDER / "demo_wmdp_craft.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(task))
    return path


def test_a_failing_task_is_named(model, tokenizer, tmp_path):
    bad = write_task(tmp_path, "bad", doc_to_text="{{no_such_function(question)}}")
    with pytest.raises(WagleError, match=r"lm-eval task .*bad\.yaml failed"):
        run_task(model, tokenizer, str(bad), batch_size=4, limit=2)


def test_progress_counts_requests_and_windows(model, tokenizer, capsys, monkeypatch):
    """Instead of lm-eval's own bars, which it draws into log files too."""
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0)
    run_task(model, tokenizer, "demo_forget", batch_size=4, limit=3)
    run_task(model, tokenizer, "demo_text", batch_size=4, limit=3)
    printed = capsys.readouterr().err
    assert "Running" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("demo_")]
    choices, texts = ([x for x in lines if name in x] for name in ("demo_forget", "demo_text"))
    assert re.search(r"100% ([1-9]\d*)/\1 ", choices[-1])
    assert re.search(r"[1-9]\d*window", texts[-1])


def test_a_task_without_a_number_fails(model, tokenizer, tmp_path):
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(WagleError, match="lm-eval task demo_text failed"):
        run_task(model, tokenizer, "demo_text", batch_size=4)


def test_a_perplexity_beyond_float64_is_infinite(model, tokenizer, monkeypatch):
    def unlikely(self, requests, *_, **__):
        return [(-1e9, False)] * len(requests)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", unlikely)
    results = {"demo_text": run_task(model, tokenizer, "demo_text", batch_size=4)}
    numbers = results["demo_text"]["demo_text"]
    assert numbers["word_perplexity"] == numbers["byte_perplexity"] == "inf"
    assert 0 < numbers["bits_per_byte"] < math.inf
    assert mean_of(results, ["demo_text"], "word_perplexity") == "inf"
    json.dumps(results, allow_nan=False)
    with pytest.raises(OverflowError):  # lm-eval is as it was
        weighted_perplexity([(-1e9, 1)])


def test_a_tag_has_the_numbers_of_its_tasks(tmp_path, monkeypatch, model, tokenizer):
    for name in ("one", "two"):
        write_task(tmp_path, name)
    monkeypatch.setattr(harness, "OWN_TASKS", tmp_path)
    harness._task_manager.cache_clear()
    try:
        results = {"our_tag": run_task(model, tokenizer, "our_tag", batch_size=4, limit=2)}
    finally:
        harness._task_manager.cache_clear()
    tasks = own_metrics(results, "our_tag")
    assert set(tasks) == {"one", "two"}
    mean = (tasks["one"]["acc"] + tasks["two"]["acc"]) / 2
    assert mean_of(results, ["our_tag"], "acc") == pytest.approx(mean)
    with pytest.raises(WagleError, match=r"no f1; it has .*acc"):
        mean_of(results, ["our_tag"], "f1")


def test_the_packages_own_tasks_are_known(tmp_path, monkeypatch):
    """Of its two hundred folders a few, whose index is read in less time."""
    tasks = Path(manager.__file__).parent
    folders = ("hellaswag", "mmlu", "openbookqa", "piqa", "super_glue", "truthfulqa", "wikitext")
    for name in (*folders, "glue", "winogrande", "wmdp"):
        shutil.copytree(tasks / name, tmp_path / name)
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "manager.py"))
    harness._task_manager.cache_clear()
    try:
        found = find_tasks(["wmdp_bio", "mmlu", "wikitext", "truthfulqa_mc2", "demo_wmdp"])
        assert {"boolq", "rte", "hellaswag", "winogrande", "openbookqa"} <= set(found.all_tasks)
        with pytest.raises(ConfigError, match=r"helaswag \(did you mean hellaswag\?\)"):
            find_tasks(["helaswag", "piqa"])
    finally:
        harness._task_manager.cache_clear()
