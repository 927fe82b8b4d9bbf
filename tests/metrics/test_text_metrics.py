"""Scores of texts and tokens, by hand and against slow readings of their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rouge_score.tokenizers import DefaultTokenizer

from tests.tiny import make_model
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.metrics.likelihood import TokenScores, score_tokens
from wagle.metrics.membership import attack_aucs, attack_scores, lowest_mean
from wagle.metrics.memorization import exact_memorization, extraction_strength
from wagle.metrics.text import ScriptTokenizer, bleu, lost_share, rouge_l_f1, rouge_l_recall


def test_rouge_by_hand():
    # the longest common subsequence is "the cat sat", of the reference's five words
    assert rouge_l_recall("the cat sat down quietly", "yesterday the black cat sat") == 3 / 5
    assert rouge_l_recall("she writes novels", "she was writing a novel") == 1.0  # stems
    assert rouge_l_recall("anything", "") == 0.0
    # of three words one is the same, and of their stems two
    texts = ("she writes novels", "she wrote novel")
    assert rouge_l_f1(*texts, stems=False) == pytest.approx(1 / 3)
    assert rouge_l_f1(*texts) == pytest.approx(2 / 3)


def test_bleu_by_hand():
    # n-gram precisions 5/6, 4/5, 3/4, 2/3; as long as the reference
    expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert bleu("a b c d e f", "a b c d e g") == pytest.approx(expected)
    # all n-grams are right, but two of six words are missing: exp(1 − 6/4)
    assert bleu("a b c d e f", "a b c d") == pytest.approx(100 * math.exp(-0.5))
    assert bleu("a b c d", "a b c d") == pytest.approx(100)
    assert bleu("a b c d", "") == 0.0


def test_words_of_other_scripts():
    """rouge_score drops all but a to z and 0 to 9, and so finds nothing in a perfect answer."""
    for text in ("Она живёт в Москве", "她住在莫斯科", "هي تعيش في موسكو", "वह मॉस्को में रहती है"):
        assert rouge_l_recall(text, text) == 0.0
        assert rouge_l_recall(text, text, "unicode") == 1.0
        assert lost_share([text]) == 1.0
    # "она в москве" of four words; three of six characters in order
    assert rouge_l_recall("Она живёт в Москве", "она в МОСКВЕ", "unicode") == 3 / 4
    assert rouge_l_recall("她住在莫斯科", "莫斯科在哪里", "unicode") == 3 / 6
    tokenizer = ScriptTokenizer()
    assert tokenizer.tokenize("हिन्दी, ดีx 中文abc running") == [
        *("हिन्दी", "ด\u0e35", "x", "中", "文", "abc", "run")
    ]


def test_words_of_english_are_those_of_rouge_score():
    for text in ("She's writing 3 novels_now; co-authored!", "", "…", "A.B. runs 1,000 miles"):
        assert ScriptTokenizer().tokenize(text) == DefaultTokenizer(True).tokenize(text)
    assert lost_share(["She writes 3 novels."]) == lost_share(["…"]) == 0.0
    assert lost_share(["абв", "xyz"]) == 0.5


def test_bleu_of_a_script_without_spaces():
    reference, text = "她住在莫斯科", "她住在莫斯城"
    assert bleu(reference, text) == 0.0  # one word, and a wrong one
    # n-gram precisions 5/6, 4/5, 3/4, 2/3
    expected = 100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert bleu(reference, text, "unicode") == pytest.approx(expected)
    english = ("It's 3.5 km, isn't it?", "It is 3.5 km, isn't it?")
    assert bleu(*english, "unicode") == bleu(*english)


def test_lowest_mean_by_hand():
    values = np.array([-1.0, -4.0, -2.0, -8.0, -0.5])
    assert lowest_mean(values, 40) == -6.0  # int(0.4 · 5) = 2 values: −8 and −4
    assert lowest_mean(values, 10) == -8.0  # at least one
    # of a hundred values, twenty-nine are 29 %, whatever 0.29 · 100 is in floating point
    assert lowest_mean(-np.arange(100.0), 29) == -np.arange(71, 100).mean()


def test_attacks_by_hand():
    tokens = TokenScores(
        np.array([-1.0, -3.0, -2.0], np.float32),
        np.array([True, False, False]),
        np.array([0.5, -2.0, 1.0], np.float32),
    )
    scores = attack_scores("aaaa", tokens, ["loss", "zlib", "min_k++", "reference"], 0.5)
    assert scores["LOSS"] == 2.0
    assert scores["reference"] == 1.5
    same = attack_scores("aaaa", tokens, ["reference"], 2.0 + 1e-7)
    assert same["reference"] == 0.0  # equal models differ by rounding alone
    assert scores["zlib"] == 2.0 / 12  # zlib needs 2 + 4 bytes of frame and 6 for the run
    assert scores["Min_60.0% Prob"] == 3.0
    assert scores["Min++_60.0% Prob"] == 2.0
    assert list(attack_scores("aaaa", tokens)) == [f"Min_{k}.0% Prob" for k in range(10, 70, 10)]


def test_auc_by_hand():
    forget = [{"a": 3.0, "b": 0.0}, {"a": 1.0, "b": 1.0}]
    retain = [{"a": 2.0, "b": 2.0}, {"a": 0.5, "b": 3.0}]
    # of the four pairs, forget has the higher "a" in (3, 2), (3, 0.5), (1, 0.5)
    assert attack_aucs(forget, retain) == {"a": 0.75, "b": 0.0}


@pytest.mark.parametrize(
    ("is_greedy", "exact", "strength"),
    [
        ([1, 1, 1, 1], 1.0, 1.0),  # the question alone is enough
        ([1, 0, 1, 1], 0.75, 0.5),  # half of the answer is needed
        ([0, 1, 1, 1], 0.75, 0.75),
        ([1, 1, 1, 0], 0.75, 0.0),  # all of it
        ([0], 0.0, 0.0),
    ],
)
def test_memorisation_by_hand(is_greedy, exact, strength):
    values = np.array(is_greedy, bool)
    assert exact_memorization(values) == exact
    assert extraction_strength(values) == strength


def test_extraction_strength_is_what_greedy_decoding_does():
    """Prefixes of answers, longer and longer, are continued until one brings back the rest."""
    model = make_model(seed=2)
    generator = torch.Generator().manual_seed(0)

    def continue_greedily(ids, count):
        if not count:
            return []
        output = model.generate(
            torch.tensor([ids]),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=[],
            pad_token_id=2,
        )
        return output[0, len(ids) :].tolist()

    strengths = []
    for changed in (None, 0, 3, 5, 9):
        prompt = torch.randint(3, 300, (6,), generator=generator).tolist()
        answer = continue_greedily(prompt, 10)
        if changed is not None:
            answer[changed] = (answer[changed] + 1) % 300
            answer[changed + 1 :] = continue_greedily(prompt + answer[: changed + 1], 9 - changed)
        needed = next(
            k for k in range(11) if continue_greedily(prompt + answer[:k], 10 - k) == answer[k:]
        )
        sequence = Encoded(prompt + answer, [IGNORED] * 6 + answer)
        (scores,) = score_tokens(model, [sequence], batch_size=1, pad_token_id=2, description="")
        strengths.append(extraction_strength(scores.is_greedy))
        assert strengths[-1] == pytest.approx(1 - needed / 10)
    assert strengths == pytest.approx([1.0, 0.9, 0.6, 0.4, 0.0])


@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_standardised_log_probs_follow_the_dense_formula(architecture, chunk):
    model = make_model(architecture, seed=1)
    generator = torch.Generator().manual_seed(1)
    sequences = [
        Encoded(ids, list(ids))
        for length in (5, 9, 2, 14)
        for ids in [torch.randint(3, 300, (length,), generator=generator).tolist()]
    ]
    results = score_tokens(
        model,
        sequences,
        batch_size=3,
        pad_token_id=2,
        description="",
        standardize=True,
        logits_chunk=chunk,
    )
    for sequence, scores in zip(sequences, results, strict=True):
        ids = torch.tensor(sequence.input_ids)
        with torch.no_grad():
            log_probs = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
        probs = log_probs.exp()
        mean = (probs * log_probs).sum(-1)
        deviation = ((probs * log_probs**2).sum(-1) - mean**2).sqrt()
        chosen = log_probs.gather(1, ids[1:, None])[:, 0]
        expected = ((chosen - mean) / deviation).numpy()
        np.testing.assert_allclose(scores.standardized, expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(scores.log_probs, chosen.numpy(), atol=1e-4)
        assert (scores.is_greedy == (log_probs.argmax(-1) == ids[1:]).numpy()).all()


def test_a_uniform_distribution_standardises_to_finite_numbers():
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    (scores,) = score_tokens(
        model,
        [Encoded([5, 6, 7], [5, 6, 7])],
        batch_size=1,
        pad_token_id=2,
        description="",
        standardize=True,
    )
    assert np.isfinite(scores.standardized).all()
    assert scores.log_probs == pytest.approx(-math.log(300), rel=1e-5)
