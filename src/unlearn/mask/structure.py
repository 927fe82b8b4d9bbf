"""Masks that follow the architecture rather than one global ranking: Wanda and FFN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from src.dataset.encoding import Encoded, pad_batch
from src.errors import WagleError
from src.optim.bitmask import BitMask, Mask

WANDA_EXAMPLES = 128  # calibration examples, as published
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "fc1", "fc2", "block_sparse_moe")
_FEED_FORWARD_NORMS = (
    "post_attention_layernorm",  # Llama, Mistral, Qwen, GPT-NeoX: normalises the FFN's input
    "pre_feedforward_layernorm",  # Gemma 2 and later
    "post_feedforward_layernorm",
    "final_layer_norm",  # OPT, inside a layer
    "ln_2",  # GPT-2, GPT-Neo
)


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


def block_linears(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Linear layers of the decoder blocks by weight name, in module order."""
    prefix, layers = decoder_layers(model)
    return {
        f"{prefix}.{name}.weight": module
        for name, module in layers.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }


def feed_forward_mask(model: PreTrainedModel) -> Mask:
    """All weights of the feed-forward modules and their norms; everything else frozen.

    Raises:
        WagleError: no feed-forward module is found in the decoder blocks.
    """
    prefix, _ = decoder_layers(model)
    wanted = {*_FEED_FORWARD, *_FEED_FORWARD_NORMS}
    selected = {
        name: name.startswith(f"{prefix}.") and not wanted.isdisjoint(name.split("."))
        for name, _ in model.named_parameters()
    }
    if not any(selected.values()):
        raise WagleError(
            f"no feed-forward module found in {type(model).__name__}'s decoder blocks; known names "
            f"are {', '.join(_FEED_FORWARD)}"
        )
    return {name: BitMask.full(p.shape, selected[name]) for name, p in model.named_parameters()}


def wanda_mask(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    ratio: float,
    *,
    rows: int,
    pad_token_id: int,
) -> Mask:
    """Wanda's rule as a selection (Sun et al. 2023, arXiv 2306.11695, eq. 1).

    In every output row of every linear layer of the decoder blocks, the ``int(cols · (1 − ρ))``
    weights with the smallest |W_ij| · ‖X_j‖₂ are frozen (of equals the first ones); all the others,
    and everything outside those layers, are selected. X are the layer's inputs at real tokens.

    Args:
        examples: calibration data; the first 128 are used.
        ratio: ρ.
        rows: examples that are run together.
    """
    linears = block_linears(model)
    norms = _input_norms(model, linears, examples[:WANDA_EXAMPLES], rows, pad_token_id)
    mask = {name: BitMask.full(p.shape, True) for name, p in model.named_parameters()}
    for name, module in tqdm(linears.items(), desc="wanda", unit="layer", disable=None):
        weight = module.weight.detach()
        transposed = isinstance(module, Conv1D)  # stored (in, out)
        score = (weight.T if transposed else weight).abs().float() * norms[name]
        kept = _freeze_smallest(score, int(score.shape[1] * (1 - ratio)))
        mask[name] = BitMask.from_bool((kept.T if transposed else kept).contiguous().cpu())
    return mask


def _freeze_smallest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Bool of ``score``'s shape: False at each row's ``count`` smallest."""
    order = score.argsort(dim=1, stable=True)[:, :count]
    return torch.ones_like(score, dtype=torch.bool).scatter_(1, order, False)


@torch.no_grad()
def _input_norms(
    model: PreTrainedModel,
    linears: dict[str, torch.nn.Module],
    examples: Sequence[Encoded],
    rows: int,
    pad_token_id: int,
) -> dict[str, torch.Tensor]:
    """‖X_j‖₂ of every input feature of every layer, float32 ``(in_features,)``."""
    squares: dict[str, torch.Tensor] = {}
    real: torch.Tensor

    def watch(name: str):
        def hook(module, inputs):
            x = inputs[0].reshape(-1, inputs[0].shape[-1])[real].float()
            total = x.square().sum(dim=0)
            squares[name] = squares[name] + total if name in squares else total

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    was_training = model.training
    model.eval()
    try:
        for start in tqdm(
            range(0, len(examples), rows), desc="activations", unit="batch", disable=None
        ):
            batch = pad_batch(examples[start : start + rows], pad_token_id)
            batch = {key: tensor.to(model.device) for key, tensor in batch.items()}
            real = batch["attention_mask"].reshape(-1).bool()
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return {name: square.sqrt() for name, square in squares.items()}
