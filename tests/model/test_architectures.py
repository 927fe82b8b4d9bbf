"""What the evaluation says of many architectures, against one row alone and without a cache.

Texts are longer than every window and of unequal lengths; answers share their questions.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.metrics.test_likelihood import one_by_one
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.errors import WagleError
from wagle.metrics import generation
from wagle.metrics.generation import generate_greedy
from wagle.metrics.likelihood import token_log_probs
from wagle.model.reading import check_readable, evaluating

VOCABULARY = 97
LIMIT = 40  # tokens of the longest text; windows have 8
USUAL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FALCON = {name: value for name, value in USUAL.items() if name != "head_dim"}
OLD = {  # names of GPT-2's time
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "rotary_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
STATE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 4,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
ARCHITECTURES = {
    "llama": ("llama", USUAL),
    "llama, tied": ("llama", {**USUAL, "tie_word_embeddings": True}),
    "mistral, window": ("mistral", {**USUAL, "sliding_window": 8}),
    "qwen2": ("qwen2", USUAL),
    "qwen3": ("qwen3", USUAL),
    "qwen2_moe": (
        "qwen2_moe",
        {**USUAL, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "mixtral": ("mixtral", {**USUAL, "num_local_experts": 4}),
    "gemma": ("gemma", USUAL),
    "gemma2, window": ("gemma2", {**USUAL, "sliding_window": 8}),
    "gemma3, window": ("gemma3_text", {**USUAL, "sliding_window": 8}),
    "phi": ("phi", USUAL),
    "phi3, window": ("phi3", {**USUAL, "sliding_window": 8}),
    "stablelm": ("stablelm", USUAL),
    "olmo2": ("olmo2", USUAL),
    "granite": ("granite", USUAL),
    "cohere": ("cohere", USUAL),
    "cohere2, window": ("cohere2", {**USUAL, "sliding_window": 8}),
    "gpt_oss": ("gpt_oss", {**USUAL, "num_local_experts": 4, "sliding_window": 8}),
    "deepseek_v3": ("deepseek_v3", {**USUAL, **EXPERTS, **LATENT, "head_dim": 8}),
    "gpt2": ("gpt2", OLD),
    "gptj": ("gptj", OLD),
    "codegen": ("codegen", {**OLD, "n_head": 4}),
    "gpt_bigcode": ("gpt_bigcode", OLD),
    "gpt_neo, window": (
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
    "gpt_neox": ("gpt_neox", USUAL),
    "opt": ("opt", {**USUAL, "ffn_dim": 32, "word_embed_proj_dim": 32}),
    "bloom": ("bloom", {**OLD, "hidden_size": 32}),
    "mpt": ("mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 2}),
    "falcon, rotary": ("falcon", {**FALCON, "alibi": False, "multi_query": True}),
    "falcon, alibi": ("falcon", {**FALCON, "alibi": True, "multi_query": False}),
    "falcon, new": (
        "falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 1, "alibi": False},
    ),
    "mamba": ("mamba", STATE),
    "mamba2": ("mamba2", {**STATE, "num_heads": 4, "head_dim": 16, "n_groups": 1}),
    "falcon_mamba": ("falcon_mamba", STATE),
    "rwkv": ("rwkv", {**STATE, "attention_hidden_size": 32}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**USUAL, "attention_window_size": 8, "lru_width": 32, "num_hidden_layers": 3},
    ),
    "jamba": ("jamba", {**USUAL, "use_mamba_kernels": False, "num_experts": 2}),
    "lfm2": ("lfm2", USUAL),
}


def build(name):
    """A model whose logits are far apart, so that no token's choice hangs on rounding."""
    kind, options = ARCHITECTURES[name]
    torch.manual_seed(4)
    config = AutoConfig.for_model(kind, **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


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
def greedy_alone(model, prompt):
    """No cache, no batch; and how far the chosen token is ahead, at least."""
    ids, ahead = list(prompt), np.inf
    while len(ids) < LIMIT:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        best = logits.topk(2).values
        ahead = min(ahead, float(best[0] - best[1]))
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :], ahead


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
        expected, ahead = greedy_alone(model, prompt)
        if ahead > 1e-3:
            sure += 1
            assert answer == expected
    assert sure >= 2


@pytest.mark.parametrize(
    ("name", "way"),
    [("llama", "_Batch"), ("gpt2", "_Batch"), ("mistral, window", "_Padded"), ("mamba", "_Whole")],
)
def test_the_fastest_right_way_is_taken(name, way):
    model = build(name)
    with evaluating(model):
        waiting = [generation._Text(tokens(count, count)) for count in (25, 3, 7)]
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
