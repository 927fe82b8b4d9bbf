"""Batched likelihood and generation against one row at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import CONFIGS, VOCABULARY, make_model
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.metrics.generation import generate_greedy
from wagle.metrics.likelihood import token_log_probs
from wagle.model.head import Head

LIMIT = 24


def random_sequences(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        length = int(torch.randint(3, 15, (), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        prompt = int(torch.randint(0, length - 1, (), generator=generator))
        yield Encoded(ids, [IGNORED] * prompt + ids[prompt:])


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("chunk", [5, 1000])
def test_log_probs_equal_one_row_at_a_time(architecture, chunk):
    model = make_model(architecture).train()
    assert Head.of(model).separate == (architecture != "gemma2")
    sequences = list(random_sequences(11))
    batched = token_log_probs(
        model, sequences, batch_size=4, pad_token_id=2, description="", logits_chunk=chunk
    )
    assert model.training
    model.eval()
    for sequence, values in zip(sequences, batched, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sequence.input_ids])).logits[0]
        log_probs = logits.log_softmax(-1)
        expected = [
            float(log_probs[t - 1, label])
            for t, label in enumerate(sequence.labels)
            if label != IGNORED and t > 0
        ]
        np.testing.assert_allclose(values, expected, atol=1e-4)


@pytest.mark.parametrize("chunk", [3, 7])
def test_wide_logits_never_exceed_a_chunk(model, chunk):
    sizes = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, inputs, output: sizes.append(output.shape[:-1].numel()))
    token_log_probs(
        model,
        list(random_sequences(9)),
        batch_size=4,
        pad_token_id=2,
        description="",
        logits_chunk=chunk,
    )
    assert max(sizes[2:]) <= chunk  # the first two calls are the probe of four tokens


@pytest.mark.parametrize("architecture", CONFIGS)
def test_generation_equals_one_row_at_a_time(architecture):
    model = make_model(architecture)
    prompts = [sequence.input_ids for sequence in random_sequences(9, seed=1)]
    prompts.append(list(range(3, 3 + LIMIT)))  # already as long as allowed
    plain = [
        model.generate(
            torch.tensor([prompt]),
            max_length=LIMIT,
            do_sample=False,
            eos_token_id=[],
            pad_token_id=2,
        )[0, len(prompt) :].tolist()
        if len(prompt) < LIMIT
        else []
        for prompt in prompts
    ]
    # tokens that do occur end some rows early, at different places
    stop = {plain[0][2], plain[3][5]}
    expected = []
    for tokens in plain:
        ends = [i for i, token in enumerate(tokens) if token in stop]
        expected.append(tokens[: ends[0]] if ends else tokens)
    batched = generate_greedy(
        model,
        prompts,
        eos_token_ids=stop,
        pad_token_id=2,
        max_total_length=LIMIT,
        batch_size=4,
        description="",
    )
    assert batched == expected
    assert len({len(tokens) for tokens in batched}) > 2
