"""The embedded benchmark."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from wagle.dataset.demo_benchmark import FOLDER, make_benchmark
from wagle.dataset.demo_vocabulary import ATTRIBUTES, FIRST_NAMES, LAST_NAMES
from wagle.dataset.encoding import IGNORED, encode_answer
from wagle.dataset.refusals import load_refusals
from wagle.dataset.templates import TEMPLATES
from wagle.model.tiny import build_tiny_llama


@pytest.fixture(scope="module")
def subsets():
    return make_benchmark()


def test_stored_files_are_what_the_generator_makes(subsets):
    stored = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in FOLDER.glob("*.json")
    }
    assert stored == subsets


@pytest.mark.parametrize("percent", [1, 5, 10])
def test_forget_and_retain_split_the_authors(subsets, percent):
    forget, retain = subsets[f"forget{percent:02d}"], subsets[f"retain{100 - percent}"]
    assert retain + forget == subsets["full"]
    assert len(forget) % len(ATTRIBUTES) == 0
    perturbed = subsets[f"forget{percent:02d}_perturbed"]
    assert [{k: row[k] for k in ("question", "answer")} for row in perturbed] == forget


def test_perturbed_rows_ask_and_tell_in_other_words(subsets):
    for row in subsets["forget10_perturbed"] + subsets["retain_perturbed"]:
        answers = [row["paraphrased_answer"], *row["perturbed_answer"]]
        assert len({*answers, row["answer"]}) == 7
        assert row["paraphrased_question"] != row["question"]
    for name in ("real_authors_perturbed", "world_facts_perturbed"):
        for row in subsets[name]:
            assert len({row["answer"], *row["perturbed_answer"]}) == 4


def test_an_answer_that_is_judged_is_at_most_a_percentage_point(subsets):
    assert len(subsets["forget10_perturbed"]) >= 100
    assert len(subsets["retain_perturbed"]) >= 100


def test_earlier_knowledge_holds_nothing_of_the_benchmarks_authors(subsets):
    rows = subsets["knowledge"] + subsets["dialogues"]
    texts = [text for row in rows for text in row.values()]
    names = {
        f"{first} {last}"
        for first in FIRST_NAMES
        for last in LAST_NAMES
        if any(f"{first} {last}" in row["question"] for row in subsets["full"])
    }
    assert len(names) == 100
    assert not [text for text in texts if any(name in text for name in names)]
    dialogues = "\n".join(row["text"] for row in subsets["dialogues"])
    for name in ("real_authors", "world_facts", "knowledge"):
        for row in subsets[name]:
            assert f"{row['question']} [/INST] {row['answer']}" in dialogues


def test_most_tokens_that_min_50_reads_are_the_answers(subsets):
    """Questions are so short that the less likely half of a text cannot be its question alone."""
    _, tokenizer = build_tiny_llama((r["text"] for r in subsets["dialogues"]), hidden_size=8)
    template = TEMPLATES["llama2"]
    shares = []
    for row in subsets["forget10"]:
        encoded = encode_answer(
            tokenizer, template, row["question"], row["answer"], max_length=512, eos=False
        )
        asked = sum(label == IGNORED for label in encoded.labels) - 1  # BOS is not scored
        half = (len(encoded.labels) - 1) // 2
        shares.append(asked / half)
    assert statistics.fmean(shares) < 0.8
    assert max(shares) <= 1


def test_refusals_suit_the_data():
    files = {name: load_refusals(name) for name in ("Tofu_forget10", "HP", "SafePku")}
    assert files["Tofu_forget10"] == load_refusals("Demo_forget05")
    assert any("copyright" in line.lower() for line in files["HP"])
    for lines in files.values():
        assert 30 <= len(lines) == len(set(lines)) <= 50


def test_tiny_llama_is_deterministic():
    texts = ["Where was the author born?", "In the city of Lisbon."] * 3
    (first, tokenizer), (second, _) = (build_tiny_llama(texts, hidden_size=16) for _ in range(2))
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
    assert tokenizer("the city").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokenizer("Lisbon, né").input_ids[1:]) == "Lisbon, né"
