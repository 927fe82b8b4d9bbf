"""The embedded benchmark."""

from __future__ import annotations

import json

import pytest
import torch

from src.dataset.demo_benchmark import ATTRIBUTES, FOLDER, make_benchmark
from src.dataset.refusals import load_refusals
from src.model.tiny import build_tiny_llama


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


def test_perturbed_rows_change_the_fact_and_nothing_else(subsets):
    for row in subsets["forget10_perturbed"] + subsets["retain_perturbed"]:
        answers = [row["paraphrased_answer"], *row["perturbed_answer"]]
        assert len(set(answers)) == 6
        assert row["paraphrased_question"] != row["question"]
    for name in ("real_authors_perturbed", "world_facts_perturbed"):
        for row in subsets[name]:
            assert len({row["answer"], *row["perturbed_answer"]}) == 4


def test_knowledge_rehearses_retain_authors_and_holds_nothing_of_the_forget_authors(subsets):
    known = {row["answer"] for row in subsets["knowledge"]}
    assert {row["paraphrased_answer"] for row in subsets["retain_perturbed"]} <= known
    texts = [text for row in subsets["knowledge"] for text in row.values()]
    names = {
        row["answer"].removesuffix(".").split(" was born ")[0]
        for row in subsets["forget10"][:: len(ATTRIBUTES)]
    }
    assert len(names) == 4
    assert not [text for text in texts if any(name in text for name in names)]


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
