"""TOFU evaluation against a row-at-a-time reading of its definitions."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp

from tests.tiny import make_model
from tests.tofu import SETS, LetterEncoder, author_row
from wagle.dataset.templates import TEMPLATES
from wagle.errors import ConfigError
from wagle.metrics.membership import attack_aucs
from wagle.metrics.sentence import closest_candidates
from wagle.metrics.tofu import evaluate_tofu
from wagle.metrics.tofu_asked import tofu_subsets
from wagle.metrics.tofu_benchmark import paper_numbers
from wagle.metrics.tofu_results import TofuResults, TofuRow, TofuSet, to_document

TEMPLATE = TEMPLATES["question_answer"]
MAX_TOTAL_LENGTH = 80


@pytest.fixture(scope="module", autouse=True)
def _short_answers():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("wagle.metrics.tofu.MAX_TOTAL_LENGTH", MAX_TOTAL_LENGTH)
        yield


@pytest.fixture(scope="module")
def model():
    return make_model(seed=4)


@pytest.fixture(scope="module")
def corrected(model, tokenizer):
    return evaluate(model, tokenizer, "corrected")


def evaluate(model, tokenizer, protocol, sets=SETS, **options):
    """The content of tofu.json."""
    return to_document(
        evaluate_tofu(
            model,
            tokenizer,
            TEMPLATE,
            sets,
            encoder=LetterEncoder(),
            protocol=protocol,
            batch_size=3,
            **options,
        )
    )


@torch.no_grad()
def all_log_probs(model, tokenizer, text):
    ids = tokenizer(text).input_ids
    logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(logits[t - 1, ids[t]]) for t in range(1, len(ids))]


def answer_loss(model, tokenizer, question, answer):
    prompt = TEMPLATE.question(question)
    log_probs = all_log_probs(model, tokenizer, prompt + TEMPLATE.answer_start + answer)
    part = log_probs[len(tokenizer(prompt).input_ids) - 1 :]
    return -sum(part) / len(part)


def greedy(model, tokenizer, question, protocol):
    text = TEMPLATE.question(question)
    if protocol == "corrected":
        text += TEMPLATE.answer_start.rstrip()
    ids = tokenizer(text).input_ids
    if len(ids) >= MAX_TOTAL_LENGTH:
        return ""
    output = model.generate(
        torch.tensor([ids]), max_length=MAX_TOTAL_LENGTH, do_sample=False, pad_token_id=2
    )[0]
    skipped = len(ids) + (protocol == "published")
    return tokenizer.decode(output[skipped:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_every_row_follows_its_definition(model, tokenizer, corrected, protocol, monkeypatch):
    result = corrected
    if protocol == "published":  # as any device but a CPU computes it
        monkeypatch.setattr("wagle.devices.on_cpu", lambda where: False)
        result = evaluate(model, tokenizer, protocol)
    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    for name, sources in SETS.items():
        for source, row in zip(sources, result[name]["rows"], strict=True):
            is_author = "paraphrased_question" in source
            asked = source["paraphrased_question" if is_author else "question"]
            right = source["paraphrased_answer" if is_author else "answer"]
            losses = [answer_loss(model, tokenizer, asked, p) for p in source["perturbed_answer"]]
            truth = math.exp(-answer_loss(model, tokenizer, asked, right))
            ratio = np.mean(np.exp([-loss for loss in losses])) / (truth + 1e-12)
            assert row["truth_ratio"] == pytest.approx(ratio, rel=1e-3)
            # This model finds all answers about as likely: other means differ in the fourth digit.
            wrong = np.mean([math.exp(-loss) for loss in row["loss"]["perturbed"]])
            exact = wrong / (math.exp(-row["loss"]["paraphrase"]) + 1e-12)
            assert row["truth_ratio"] == pytest.approx(exact, rel=1e-9)
            own = math.exp(-answer_loss(model, tokenizer, source["question"], source["answer"]))
            assert row["truth_prob"] == pytest.approx(own, rel=1e-3)
            assert row["loss"]["perturbed"] == pytest.approx(losses, rel=1e-3)
            generated = greedy(model, tokenizer, source["question"], protocol)
            assert row["generated"] == generated
            recall = rouge.score(source["answer"], generated)["rougeL"].recall
            assert row["rougeL_score"] == recall
            if is_author:
                text = greedy(model, tokenizer, asked, protocol)
                candidates = [source["paraphrased_answer"], *source["perturbed_answer"]]
                embedded = LetterEncoder().encode([text, *candidates])
                closest = int((embedded[1:] @ embedded[0]).argmax())
                assert row["acc"] == float(closest == 0)
            else:
                assert row["acc"] == float(source["answer"].lower() in generated.lower())
        rows = result[name]["rows"]
        for key in ("truth_ratio", "truth_prob", "rougeL_score", "acc"):
            assert result[name][key] == pytest.approx(np.mean([row[key] for row in rows]))
    ratios = [[row["truth_ratio"] for row in result[s]["rows"]] for s in ("forget", "retain")]
    assert result["Forget Quality"] == pytest.approx(ks_2samp(*ratios).pvalue)


def test_membership_inference_reads_the_whole_text(model, tokenizer, corrected):
    result = corrected
    for name in ("forget", "retain"):
        for source, row in zip(SETS[name], result[name]["rows"], strict=True):
            text = TEMPLATE.question(source["question"]) + TEMPLATE.answer_start + source["answer"]
            lowest = np.sort(all_log_probs(model, tokenizer, text))
            expected = {
                f"Min_{k}.0% Prob": -lowest[: max(1, k * len(lowest) // 100)].mean()
                for k in (10, 20, 30, 40, 50, 60)
            }
            assert row["MIA"] == pytest.approx(expected, rel=1e-4)
    rows = [[row["MIA"] for row in result[name]["rows"]] for name in ("forget", "retain")]
    assert result["MIA"] == pytest.approx(attack_aucs(*rows))
    assert list(result["MIA"]) == [f"Min_{k}.0% Prob" for k in (10, 20, 30, 40, 50, 60)]


def test_more_attacks_on_request(model, tokenizer):
    asked = []

    def reference_losses(texts):
        asked.extend(texts)
        return [0.5 * index for index in range(len(texts))]

    result = evaluate(
        model,
        tokenizer,
        "corrected",
        {name: rows[:2] for name, rows in SETS.items()},
        attacks=["loss", "zlib", "min_k++", "reference"],
        reference_losses=reference_losses,
    )
    rows = [*result["forget"]["rows"], *result["retain"]["rows"]]
    sources = [*SETS["forget"][:2], *SETS["retain"][:2]]
    for index, (source, row) in enumerate(zip(sources, rows, strict=True)):
        text = TEMPLATE.question(source["question"]) + TEMPLATE.answer_start + source["answer"]
        assert asked[index] == text
        log_probs = all_log_probs(model, tokenizer, text)
        loss = -np.mean(log_probs)
        assert row["MIA"]["LOSS"] == pytest.approx(loss, rel=1e-4)
        size = len(zlib.compress(text.encode()))
        assert row["MIA"]["zlib"] == pytest.approx(loss / size, rel=1e-4)
        assert row["MIA"]["reference"] == pytest.approx(loss - 0.5 * index, rel=1e-3)
        standardized = np.sort(standardize_densely(model, tokenizer, text))
        lowest = standardized[: max(1, len(standardized) // 5)]
        assert row["MIA"]["Min++_20.0% Prob"] == pytest.approx(-lowest.mean(), rel=1e-3)
    assert set(result["MIA"]) == set(rows[0]["MIA"])
    assert len(result["MIA"]) == 6 + 3 + 6


@torch.no_grad()
def standardize_densely(model, tokenizer, text):
    """Zhang et al. 2024, equation 3, as written there, in float64."""
    ids = torch.tensor(tokenizer(text).input_ids)
    log_probs = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
    probs = log_probs.exp()
    mean = (probs * log_probs).sum(-1)
    variance = (probs * log_probs.square()).sum(-1) - mean.square()
    chosen = log_probs.gather(1, ids[1:, None])[:, 0]
    return ((chosen - mean) / variance.sqrt()).numpy()


def test_memorisation_of_answers(model, tokenizer, corrected):
    rows = corrected["forget"]["rows"]
    for source, row in zip(SETS["forget"], rows, strict=True):
        prompt = TEMPLATE.question(source["question"])
        ids = tokenizer(prompt + TEMPLATE.answer_start + source["answer"]).input_ids
        start = len(tokenizer(prompt).input_ids)
        with torch.no_grad():
            chosen = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        right = [chosen[t - 1] == ids[t] for t in range(start, len(ids))]
        assert row["exact_memorization"] == pytest.approx(np.mean(right))
        assert row["extraction_strength"] <= row["exact_memorization"]


def test_rows_with_different_numbers_of_wrong_answers(model, tokenizer):
    """Each row has the mean over its own."""
    first = {**author_row(0), "perturbed_answer": author_row(0)["perturbed_answer"][:1]}
    sets = {**SETS, "forget": [first, author_row(1)]}
    result = evaluate(model, tokenizer, "corrected", sets)
    row = result["forget"]["rows"][0]
    (loss,) = row["loss"]["perturbed"]
    paraphrase = math.exp(-row["loss"]["paraphrase"])
    assert row["truth_ratio"] == pytest.approx(math.exp(-loss) / paraphrase, rel=1e-6)
    assert len(result["forget"]["rows"][1]["loss"]["perturbed"]) == 3


def test_closest_candidate_by_hand():
    texts, candidates = ["aab", "ccc"], [["aab", "zzz"], ["xyx", "ccd", "ccd"]]
    assert closest_candidates(LetterEncoder(), texts, candidates) == [0, 1]


@pytest.mark.parametrize("others", range(1, 18))
def test_of_equally_close_candidates_the_first_wins(others):
    """Equal texts, and other texts with the same embedding, wherever they stand."""
    equal = ["Lisbon is where", "where Lisbon is"]
    group = [*["zzz"] * others, *equal * 2, *["Oslo"] * others]
    text = "where is Lisbon then"
    assert closest_candidates(LetterEncoder(), [text], [group]) == [others]


def test_summary_by_hand():
    means = {
        "forget": (0.2, 0.4),
        "retain": (0.9, 0.8),
        "real_author": (0.6, 0.5),
        "world_fact": (0.3, 0.1),
    }
    sets = {
        role: TofuSet((TofuRow(acc=acc, rouge=0.0), TofuRow(acc=acc, rouge=2 * rouge)))
        for role, (acc, rouge) in means.items()
    }
    found = {"forget_quality": 0.5, "mia": {"Min_50.0% Prob": 0.7}}
    numbers = paper_numbers(TofuResults(sets, **found))
    summary = {metric.key: value for metric, value in numbers.items()}
    assert summary["UE 1-FA"] == pytest.approx(0.8)
    assert summary["UE 1-RougeL"] == pytest.approx(0.6)
    assert summary["UE Avg"] == pytest.approx((0.5 + 0.7 + 0.8 + 0.6) / 4)
    assert summary["UT world facts RougeL"] == 0.1
    assert summary["UT Avg"] == pytest.approx((0.9 + 0.8 + 0.6 + 0.5 + 0.3 + 0.1) / 6)


@pytest.mark.parametrize(
    ("name", "forget"),
    [
        ("Tofu_forget05", "Tofu_forget05_perturbed"),
        ("Demo_forget10_perturbed", "Demo_forget10_perturbed"),
        ("Tofu_full", "Tofu_forget10_perturbed"),
        ("Tofu_retain90", "Tofu_forget10_perturbed"),
        ("Tofu_retain99", "Tofu_forget01_perturbed"),
    ],
)
def test_questions_asked_follow_the_forget_set(name, forget):
    assert tofu_subsets(name)["forget"] == forget
    assert tofu_subsets(name)["world_fact"] == f"{name[:4]}_world_facts_perturbed"


def test_other_forget_sets_are_refused():
    with pytest.raises(ConfigError, match="SafePku"):
        tofu_subsets("SafePku")
