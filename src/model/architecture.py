"""What a decoder looks like: its blocks, what its parts are called, and what each is for.

All that the program knows about names and shapes inside a model stands here; an architecture with
other names needs lines in this file alone. For example, ``model.layers.3.mlp.up_proj.weight`` is of
kind ``up`` in layer 3, and ``transformer.h.3.attn.c_attn.weight`` is the fused ``qkv`` of GPT-2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from wagle.errors import ConfigError, WagleError

if TYPE_CHECKING:  # names alone can be asked about without two seconds of imports
    from transformers import PreTrainedModel

KINDS = (
    *("embedding", "q", "k", "v", "qkv", "o", "gate", "up", "down", "mlp"),
    *("norm", "head", "other"),
)
"""All kinds of parameters, in the order in which a model uses them."""
FEED_FORWARD_KINDS = ("gate", "up", "down", "mlp")

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

FEED_FORWARD_MODULES = ("mlp", "feed_forward", "ffn", "fc1", "fc2", "block_sparse_moe")
_FEED_FORWARD_NORMS = (
    "pre_feedforward_layernorm",  # Gemma 2 and later
    "post_feedforward_layernorm",  # OLMo 2 too
    "final_layer_norm",  # OPT, inside a layer
    "ln_2",  # GPT-2, GPT-Neo
    "norm_2",  # MPT
)
# In Llama, Mistral, Qwen and GPT-NeoX the norm of the feed-forward module's input. Where there are
# norms of the names above it is that of the attention's output.
_NORM_BETWEEN = "post_attention_layernorm"

QUERY_VALUE = ("q_proj", "v_proj")
FUSED_QUERY_KEY_VALUE = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")  # GPT-2, NeoX, Phi-3, MPT


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


def feed_forward_names(names: Iterable[str]) -> set[str]:
    """Those of the decoder blocks' parameters that are feed-forward modules' and their norms'."""
    modules = {name: set(name.split(".")) for name in names}
    wanted = {*FEED_FORWARD_MODULES, *_FEED_FORWARD_NORMS}
    if not any(parts & set(_FEED_FORWARD_NORMS) for parts in modules.values()):
        wanted.add(_NORM_BETWEEN)
    return {name for name, parts in modules.items() if parts & wanted}


def adapted_modules(model: torch.nn.Module, wanted: Sequence[str] | None = None) -> list[str]:
    """Last names of the modules that get adapters.

    Args:
        wanted: these. Not given: the query and value projections, or the layer that fuses them with
            others.

    Raises:
        ConfigError: the model has no module of a name.
    """
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if wanted:
        if missing := [name for name in wanted if name not in present]:
            raise ConfigError(
                f"unlearn.lora_targets: {type(model).__name__} has no layer named {missing[0]}; it "
                f"has {', '.join(sorted(_linear_parts(model)))}"
            )
        return list(wanted)
    for names in (QUERY_VALUE, FUSED_QUERY_KEY_VALUE):
        if found := [name for name in names if name in present]:
            return found
    raise ConfigError(
        f"unlearn.use_lora: {type(model).__name__} has no layer named "
        f"{', '.join(QUERY_VALUE + FUSED_QUERY_KEY_VALUE)}; name some in unlearn.lora_targets"
    )


def _linear_parts(model: torch.nn.Module) -> set[str]:
    """Last names of the model's linear layers."""
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) or is_transposed(module)
    }


def decoder_layers(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
    """The list of decoder blocks and its name.

    Raises:
        WagleError: the architecture has no such list.
    """
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return name, module
    raise WagleError(f"{type(model).__name__} has no list of {count} decoder blocks")


def is_transposed(module: torch.nn.Module) -> bool:
    """Whether it is a linear layer that stores its weights ``(in, out)``, as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def block_linears(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Linear layers of the decoder blocks by weight name, in module order.

    Raises:
        WagleError: the architecture has no list of decoder blocks.
    """
    prefix, layers = decoder_layers(model)
    return {
        f"{prefix}.{name}.weight": module
        for name, module in layers.named_modules()
        if isinstance(module, torch.nn.Linear) or is_transposed(module)
    }


def linear_names(model: PreTrainedModel) -> list[str]:
    """Names of :func:`block_linears`; none where the architecture has no list of blocks."""
    try:
        return list(block_linears(model))
    except WagleError:
        return []


def stacked_experts(model: PreTrainedModel) -> list[str]:
    """Parameters of the decoder blocks that are several matrices in one, as mixtures of experts."""
    prefix, layers = decoder_layers(model)
    return [
        f"{prefix}.{name}.{own}" if name else f"{prefix}.{own}"
        for name, module in layers.named_modules()
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and not isinstance(module, torch.nn.Conv1d)
    ]
