"""Log-probabilities where sequences share their prompts, against one row at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BloomConfig, MistralConfig, Qwen2Config

from tests.architectures import SMALL, of_config, one_by_one
from tests.tiny import CONFIGS, VOCABULARY, make_model
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.errors import WagleError
from wagle.metrics.likelihood import score_tokens, token_log_probs

pytestmark = pytest.mark.usefixtures("either_device")

SHARING = {
    **{
        name: CONFIGS[name]
        for name in ("llama", "llama_tied", "mistral", "gpt2", "gpt_neox", "opt")
    },
    "qwen2": Qwen2Config(**SMALL),
}
ONE_BY_ONE = {
    "gemma2": CONFIGS["gemma2"],  # caps its logits after the head
    "sliding window": MistralConfig(**SMALL, sliding_window=6),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2),  # ALiBi
}


def answers_to_questions(seed=0):
    """Three questions with six, four and one answers, shuffled, and two texts labelled whole."""
    generator = np.random.default_rng(seed)

    def tokens(low, high):
        return generator.integers(3, VOCABULARY, generator.integers(low, high)).tolist()

    sequences = []
    for answers in (6, 4, 1):
        question = tokens(4, 9)
        for _ in range(answers):
            answer = tokens(1, 8)
            labels = [IGNORED] * len(question) + answer
            sequences.append(Encoded(question + answer, labels))
    for _ in range(2):
        text = tokens(3, 15)
        sequences.append(Encoded(text, list(text)))
    return [sequences[i] for i in generator.permutation(len(sequences))]


def tokens_read(model, sequences, batch_size):
    """Results, and how many tokens each forward pass of the backbone read, padding included."""
    sizes = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append((*args, kwargs.get("input_ids"))[0].numel()),
        with_kwargs=True,
    )
    results = token_log_probs(
        model, sequences, batch_size=batch_size, pad_token_id=2, description=""
    )
    hook.remove()
    return results, sizes


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_equal_sequences_have_equal_scores_wherever_they_stand(architecture):
    model = make_model(architecture)
    generator = torch.Generator().manual_seed(3)
    lengths = (3, 17, 5, 29, 11)
    drawn = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in lengths]
    asked = [drawn[i] for i in (0, 1, 2, 1, 3, 1, 4, 0, 1)]
    results = score_tokens(
        model,
        [Encoded(ids, list(ids)) for ids in asked],
        batch_size=2,
        pad_token_id=2,
        description="",
        standardize=True,
    )
    assert len(results) == len(asked)
    for ids, scores in zip(asked, results, strict=True):
        first = results[asked.index(ids)]
        assert scores.log_probs.tobytes() == first.log_probs.tobytes()
        assert scores.standardized.tobytes() == first.standardized.tobytes()
        assert len(scores.log_probs) == len(ids) - 1


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("architecture", SHARING | ONE_BY_ONE)
def test_sharing_prompts_changes_no_number(architecture, batch_size):
    model = of_config((SHARING | ONE_BY_ONE)[architecture])
    sequences = answers_to_questions()
    results, _ = tokens_read(model, sequences, batch_size)
    for sequence, values in zip(sequences, results, strict=True):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, one_by_one(model, sequence), atol=1e-4)


@pytest.mark.parametrize("architecture", SHARING | ONE_BY_ONE)
def test_shared_beginnings_are_read_once_where_that_is_exact(architecture):
    model = of_config((SHARING | ONE_BY_ONE)[architecture])
    question = list(range(10, 30))
    sequences = [
        Encoded([*question, *answer], [IGNORED] * len(question) + answer)
        for answer in ([40, 41], [50, 51], [60, 61], [40, 61])
    ]
    apart, together = 4 * 21, 20 + 3  # two answers begin alike; last tokens are not read
    _, sizes = tokens_read(model, sequences, 32)
    assert sizes[-1] == (together if architecture in SHARING else apart)


def test_answers_that_part_late_repeat_or_contain_each_other():
    model = of_config(SHARING["llama"])
    answers = ([40, 41, 42], [40, 41, 43], [40], [40, 41, 42], [40, 41, 42, 44], [39, 41])
    sequences = [Encoded([5, 6, 7, *a], [IGNORED] * 3 + a) for a in answers]
    results, sizes = tokens_read(model, sequences, 32)
    assert sizes[-1] == 3 + 4
    for sequence, values in zip(sequences, results, strict=True):
        np.testing.assert_allclose(values, one_by_one(model, sequence), atol=1e-4)


@pytest.mark.parametrize("architecture", ONE_BY_ONE)
def test_equal_answers_do_not_pass_for_branches(architecture):
    model = of_config(ONE_BY_ONE[architecture])
    answers = [([5, 6, 7], [40, 41]), ([5, 6, 7], [40, 42])]  # the last tokens are not read
    answers += [(list(range(10, 20)), [a, *range(30, 40)]) for a in (50, 51, 52)]
    sequences = [Encoded(q + a, [IGNORED] * len(q) + a) for q, a in answers]
    results, _ = tokens_read(model, sequences, 32)
    for sequence, values in zip(sequences, results, strict=True):
        np.testing.assert_allclose(values, one_by_one(model, sequence), atol=1e-4)


def test_trees_share_rows():
    model = of_config(SHARING["llama"])
    sequences = [
        Encoded([*question, answer, 7], [IGNORED] * len(question) + [answer, 7])
        for length in range(1, 40)
        for question in [list(range(length, 2 * length))]
        for answer in (50, 51)
    ]
    results, sizes = tokens_read(model, sequences, 32)
    apart = sum(length + 2 for length in range(1, 40))
    trials = 5  # two of the head, a batch and two sequences alone of the rows
    assert sum(sizes[trials:]) < 1.1 * apart
    for sequence, values in zip(sequences, results, strict=True):
        np.testing.assert_allclose(values, one_by_one(model, sequence), atol=1e-4)


def test_answers_that_differ_in_their_question_are_not_mixed():
    model = of_config(SHARING["llama"])
    # the same prompt length and the same ids but one
    sequences = [
        Encoded([5, 6, 7, 8, 9, last], [IGNORED] * 4 + [9, last]) for last in range(20, 24)
    ]
    sequences.append(Encoded([5, 6, 4, 8, 9, 20], [IGNORED] * 4 + [9, 20]))
    results, _ = tokens_read(model, sequences, 32)
    for sequence, values in zip(sequences, results, strict=True):
        np.testing.assert_allclose(values, one_by_one(model, sequence), atol=1e-4)


def test_a_sequence_without_labels_has_no_log_probs():
    model = of_config(SHARING["llama"])
    unlabelled = Encoded([5, 6, 7], [IGNORED] * 3)
    labelled = Encoded([5, 6, 7], [IGNORED, IGNORED, 7])
    results, _ = tokens_read(model, [unlabelled, labelled, unlabelled], 32)
    assert [len(values) for values in results] == [0, 1, 0]
    assert [len(v) for v in tokens_read(model, [unlabelled], 32)[0]] == [0]
    assert tokens_read(model, [], 32)[0] == []


def test_half_precision_models_share_prompts():
    model = of_config(SHARING["llama"]).bfloat16()
    sequences = answers_to_questions()
    results, sizes = tokens_read(model, sequences, 32)
    assert sum(sizes[4:]) < sum(len(s.input_ids) for s in sequences)  # after four probes
    for sequence, values in zip(sequences, results, strict=True):
        np.testing.assert_allclose(values, one_by_one(model, sequence), atol=0.3)


def test_a_model_that_diverged_is_refused():
    model = of_config(SHARING["llama"])
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    with pytest.raises(WagleError, match=r"asking.*diverged"):
        token_log_probs(
            model, answers_to_questions(), batch_size=4, pad_token_id=2, description="asking"
        )
