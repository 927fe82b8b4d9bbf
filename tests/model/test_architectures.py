"""What the evaluation says of many architectures, against one row alone and without a cache.

Texts are longer than every window and of unequal lengths; answers share their questions.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.architectures import ARCHITECTURES, VOCABULARY, build, one_by_one
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.errors import WagleError
from wagle.metrics import generation
from wagle.metrics.generation import generate_greedy
from wagle.metrics.likelihood import token_log_probs
from wagle.model.reading import check_readable, evaluating

LIMIT = 40  # tokens of the longest text; windows have 8


def tokens(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()


def make_sequences():
    """Three questions with four, two and one answers, short and long, and a text labelled whole."""
    sequences = []
    for seed, (question, answers) in enumerate(
        ((tokens(12, 1), (5, 14, 27, 9)), (tokens(5, 2), (3, 30)), (tokens(20, 3), (2,)))
    ):
        for number, count in enumerate(answers):
            answer = tokens(count, 10 * seed + number + 20)
            sequences.append(Encoded(question + answer, [IGNORED] * len(question) + answer))
    text = tokens(LIMIT, 5)
    return [*sequences, Encoded(text, list(text))]


@torch.no_grad()
def chosen_alone(model, prompt, answer):
    """By tokens of the answer: which is likeliest after all before it, and how far it is ahead.

    One reading of both without a cache: models that read from left to right see no token that is
    still to come.
    """
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
    best = logits[len(prompt) - 1 : -1].topk(2)
    return best.indices[:, 0], best.values[:, 0] - best.values[:, 1]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_numbers_are_those_of_each_row_alone(name):
    model = build(name)
    check_readable(model, LIMIT, 2, in_batches=True)
    sequences = make_sequences()
    found = token_log_probs(model, sequences, batch_size=32, pad_token_id=2, description="")
    for sequence, values in zip(sequences, found, strict=True):
        np.testing.assert_allclose(values, one_by_one(model, sequence), atol=2e-3, rtol=1e-4)
    prompts = [tokens(count, count) for count in (3, 4, 11, 17, 25, 36)]
    generated = generate_greedy(
        model,
        prompts,
        eos_token_ids=(),
        pad_token_id=2,
        max_total_length=LIMIT,
        batch_size=4,
        description="",
    )
    sure = 0
    for prompt, answer in zip(prompts, generated, strict=True):
        assert len(answer) == LIMIT - len(prompt)
        expected, ahead = chosen_alone(model, prompt, answer)
        sure += int((ahead > 1e-3).sum())
        assert torch.equal(torch.tensor(answer)[ahead > 1e-3], expected[ahead > 1e-3])
    assert sure >= 0.9 * sum(map(len, generated))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("llama", "CachedTexts"),
        ("gpt2", "CachedTexts"),
        ("mistral, window", "PaddedTexts"),
        ("mamba", "WholeTexts"),
    ],
)
def test_the_fastest_right_way_is_taken(name, way):
    model = build(name)
    with evaluating(model):
        waiting = [generation.Text(tokens(count, count)) for count in (25, 3, 7)]
        assert generation._find_way(model, waiting, LIMIT, 2).__name__ == way


def test_a_model_that_looks_ahead_is_refused():
    model = build("llama")
    original = model.model.forward
    model.model.forward = lambda *args, **kwargs: original(
        *args,
        **{**kwargs, "attention_mask": torch.zeros(1, 1, *[kwargs["input_ids"].shape[1]] * 2)},
    )
    with pytest.raises(WagleError, match="does not read from left to right"):
        check_readable(model, LIMIT, 2, in_batches=False)


def test_a_model_that_sees_padding_is_refused_for_batches_alone():
    model = build("llama")
    original = model.forward

    def forward(input_ids, **kwargs):
        output = original(input_ids=input_ids, **kwargs)
        output.logits = output.logits + len(input_ids)
        return output

    model.forward = forward
    check_readable(model, LIMIT, 2, in_batches=False)
    with pytest.raises(WagleError, match=r"padded batch otherwise than alone.*batch_size to 1"):
        check_readable(model, LIMIT, 2, in_batches=True)


def test_a_text_that_cannot_be_read_is_named():
    model = build("gpt2")
    model.transformer.forward = lambda *_, **__: 1 / 0
    with pytest.raises(WagleError, match=r"GPT2LMHeadModel cannot read a text of 40 tokens"):
        check_readable(model, LIMIT, 2, in_batches=True)
