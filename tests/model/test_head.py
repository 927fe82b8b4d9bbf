"""Losses and gradients by way of labelled tokens and chunks, against all logits at once."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.model.test_architectures import ARCHITECTURES, build, tokens
from tests.tiny import CONFIGS, VOCABULARY, make_model
from wagle.dataset.encoding import IGNORED, Encoded, pad_batch
from wagle.model import head as module
from wagle.model.head import Head, negative_log_likelihood, token_losses

SCALED_OR_CAPPED = {"gemma2, window", "recurrent_gemma", "cohere", "cohere2, window"}
PRECISION = {torch.float32: 1e-5, torch.bfloat16: 3e-2}  # of a gradient, relative to its length


@pytest.fixture
def set_chunk(monkeypatch):
    """Makes a chunk of a model's tokens as small as told."""

    def set_to(size: int, model) -> None:
        monkeypatch.setattr(module, "CHUNK_BYTES", 4 * model.config.vocab_size * size)

    return set_to


def make_view():
    """Rows of 14, 9 and 11 tokens with 9, 3 and 10 predictions; the last is labelled whole."""
    rows = []
    for seed, (prompt, answer) in enumerate(((5, 9), (6, 3), (0, 11))):
        ids = tokens(prompt + answer, seed + 50)
        rows.append(Encoded(ids, [IGNORED] * prompt + ids[prompt:]))
    return pad_batch(rows, pad_token_id=2)


WEIGHTS = torch.linspace(-1, 2, 22)  # of the predictions' losses; unequal, some negative


def plain_losses(model, view):
    """All logits at once, and the definition of the negative log-likelihood."""
    inputs = {name: view[name] for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, use_cache=False).logits
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    places = [
        (row, column - 1, label)
        for row, labels in enumerate(view["labels"].tolist())
        for column, label in enumerate(labels)
        if label != IGNORED and column > 0
    ]
    losses = -torch.stack([log_probs[place] for place in places])
    return losses, torch.tensor([row for row, *_ in places])


def gradients(model, losses):
    model.zero_grad()
    (losses * WEIGHTS).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: gradient.double().clone() for name, gradient in found.items()}


def assert_as_plain(model, view, precision=1e-5):
    plain, expected_rows = plain_losses(model, view)
    expected = gradients(model, plain)
    losses, rows = token_losses(model, view)
    assert losses.dtype == plain.dtype
    assert rows.tolist() == expected_rows.tolist()
    torch.testing.assert_close(losses, plain, rtol=precision, atol=precision)
    found = gradients(model, losses)
    assert found.keys() == expected.keys()
    scale = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        slack = precision * (gradient.norm() + 1e-3 * scale)
        assert (found[name] - gradient).norm() <= slack, name


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_and_gradients_are_those_of_all_logits_at_once(name, dtype, set_chunk):
    model = build(name).to(dtype)
    set_chunk(4, model)
    assert_as_plain(model, make_view(), PRECISION[dtype])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_heads_that_are_followed_by_more_are_told_apart(name):
    assert Head.of(build(name)).separate == (name not in SCALED_OR_CAPPED)


def test_a_head_whose_logits_are_divided_is_told_apart_by_its_configuration(set_chunk):
    kind, options = ARCHITECTURES["granite"]
    config = AutoConfig.for_model(kind, **options, logits_scaling=2.0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert not Head.of(model).separate
    set_chunk(4, model)
    assert_as_plain(model, make_view())


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("chunk", [1, 7, 22])
def test_the_size_of_a_chunk_changes_nothing(architecture, chunk, set_chunk):
    model = make_model(architecture)
    set_chunk(chunk, model)
    assert_as_plain(model, make_view())


@pytest.mark.parametrize(("chunk", "calls"), [(22, [22]), (10, [10, 10, 2, 2, 10, 10])])
def test_logits_exist_for_a_chunk_and_are_made_again_only_where_there_are_several(
    model, set_chunk, chunk, calls
):
    set_chunk(chunk, model)
    Head.of(model)  # tries
    seen = []
    model.lm_head.register_forward_hook(lambda *call: seen.append(len(call[-1])))
    losses, _ = token_losses(model, make_view())
    losses.sum().backward()
    assert seen == calls


def test_the_chunk_is_a_number_of_bytes(model):
    head = Head.of(model)
    assert 4 * VOCABULARY * head.chunk <= module.CHUNK_BYTES < 4 * VOCABULARY * (head.chunk + 1)
    model.config.vocab_size = 1 << 40
    assert head.chunk == 1


def test_a_model_is_tried_once(model):
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    for _ in range(3):
        assert Head.of(model).separate
    assert len(calls) == 2
    assert model.training


@pytest.mark.parametrize("frozen", ["head", "backbone"])
def test_what_is_frozen_gets_no_gradient(model, set_chunk, frozen):
    set_chunk(4, model)
    part = model.lm_head if frozen == "head" else model.model
    part.requires_grad_(False)
    assert_as_plain(model, make_view())


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "gemma2"])
def test_every_gradient_is_accumulated_once(architecture, set_chunk):
    """Hooks that consume gradients see each one whole, whatever the number of chunks."""
    model = make_model(architecture)
    set_chunk(4, model)
    expected = gradients(model, plain_losses(model, make_view())[0])
    model.zero_grad()
    found = {}
    for name, parameter in model.named_parameters():

        def consume(p, name=name):
            assert name not in found
            found[name], p.grad = p.grad.double(), None

        parameter.register_post_accumulate_grad_hook(consume)
    (token_losses(model, make_view())[0] * WEIGHTS).sum().backward()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_activations_may_be_checkpointed_too(tied, set_chunk):
    model = make_model("llama_tied" if tied else "llama").train()
    model.activation_checkpointing_enable()
    set_chunk(4, model)
    assert_as_plain(model, make_view())


def test_the_sum_over_chunks_is_about_as_exact_as_the_weights_are(set_chunk):
    """16 chunks in bfloat16, whose numbers are spaced by up to 2⁻⁷, against float64."""
    torch.manual_seed(0)
    exact = make_model("llama").double()
    rough = copy.deepcopy(exact).bfloat16()
    states, targets = torch.randn(256, 16).bfloat16(), torch.randint(VOCABULARY, (256,))
    errors = []
    for model, size in ((exact, 256), (rough, 256), (rough, 16)):
        set_chunk(size, model)
        model.zero_grad()
        asked = states.to(model.dtype)
        losses = Head.of(model).measure(negative_log_likelihood, asked, targets)
        losses.mean().backward()
        gradient = model.lm_head.weight.grad
        assert gradient.dtype == model.dtype
        if model is exact:
            expected = gradient.clone()
        errors.append(float((gradient.double() - expected).norm() / expected.norm()))
    assert errors[1] < errors[2] < 2**-7


def adapted(model, dropout):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(
        r=4,
        lora_dropout=dropout,
        target_modules=["q_proj", "lm_head"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    return get_peft_model(model, config)


def test_the_head_may_have_adapters(model, set_chunk):
    set_chunk(4, model)
    wrapped = adapted(model, dropout=0.0)
    assert Head.of(wrapped) == Head(model, separate=True)
    assert_as_plain(wrapped, make_view())
    assert any(
        "lm_head.lora_A" in name
        for name in gradients(wrapped, plain_losses(wrapped, make_view())[0])
    )


def test_what_is_made_again_has_the_same_dropout(model, set_chunk):
    set_chunk(4, model)
    wrapped = adapted(model, dropout=0.5).train()
    head, states = Head.of(wrapped), torch.randn(22, 16)
    targets = torch.randint(VOCABULARY, (22,))
    torch.manual_seed(3)
    found = gradients(wrapped, head.measure(negative_log_likelihood, states, targets))
    torch.manual_seed(3)
    pieces = zip(states.split(4), targets.split(4), strict=True)
    losses = torch.cat([negative_log_likelihood(head.logits(s), t) for s, t in pieces])
    expected = gradients(wrapped, losses)
    assert found.keys() == expected.keys() != set()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
