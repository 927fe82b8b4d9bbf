"""What part of a decoder a parameter belongs to, read off its name."""

from __future__ import annotations

import re

KINDS = (
    *("embedding", "q", "k", "v", "qkv", "o", "gate", "up", "down", "mlp"),
    *("norm", "head", "other"),
)
"""All kinds, in the order in which a model uses them."""

# The first module name that matches, from the end of the parameter's name, decides.
_MODULES = {
    "embed_tokens": "embedding",
    "embed_positions": "embedding",
    "embed_in": "embedding",
    "word_embeddings": "embedding",
    "wte": "embedding",
    "wpe": "embedding",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "qkv_proj": "qkv",
    "query_key_value": "qkv",
    "c_attn": "qkv",
    "Wqkv": "qkv",
    "o_proj": "o",
    "out_proj": "o",
    "dense": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "fc1": "up",
    "c_fc": "up",
    "fc_in": "up",
    "dense_h_to_4h": "up",
    "gate_up_proj": "mlp",
    "down_proj": "down",
    "fc2": "down",
    "fc_out": "down",
    "dense_4h_to_h": "down",
    "lm_head": "head",
    "embed_out": "head",
}
_NORM = re.compile(r"norm|^ln_|layernorm", re.IGNORECASE)


def parameter_kind(name: str) -> str:
    """One of ``KINDS`` for a parameter name as in ``named_parameters()``."""
    modules = name.split(".")[:-1]
    for index, module in reversed(list(enumerate(modules))):
        if module in _MODULES:
            return _MODULES[module]
        if module == "c_proj":  # GPT-2 calls both output projections so
            return "o" if modules[index - 1] == "attn" else "down"
        if _NORM.search(module):
            return "norm"
        if module in ("mlp", "feed_forward", "ffn"):
            return "mlp"
    return "other"


def layer_index(name: str) -> int | None:
    """The decoder layer that a parameter belongs to, ``None`` outside the layers."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match.group(1)) if match else None
