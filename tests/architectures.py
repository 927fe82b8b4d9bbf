"""Tiny models of many architectures, and what one says of a row alone.

``build(name)`` makes one of ``ARCHITECTURES``, whose windows are shorter than the texts.
"""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests import tiny
from wagle.dataset.encoding import IGNORED

VOCABULARY = 97
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
    "mamba2": (
        "mamba2",
        {**STATE, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    ),
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


SMALL = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "pad_token_id": 2,
}


def of_config(config):
    """A random model of a configuration, with weights large enough to tell tokens apart."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


@torch.no_grad()
def one_by_one(model, sequence):
    """Log-probabilities of a sequence's labelled tokens: no cache, no batch, no padding."""
    ids = torch.tensor([sequence.input_ids])
    logits = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    return [
        float(logits[t - 1, label])
        for t, label in enumerate(sequence.labels)
        if label != IGNORED and t > 0
    ]
