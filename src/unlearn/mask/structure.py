"""Masks that follow the architecture rather than one global ranking: Wanda and FFN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from wagle import ranks, shards
from wagle.dataset.encoding import Encoded, pad_batch
from wagle.errors import WagleError
from wagle.model.architecture import (
    FEED_FORWARD_MODULES,
    block_linears,
    decoder_layers,
    feed_forward_names,
    is_transposed,
    stacked_experts,
)
from wagle.optim.bitmask import BitMask, Mask
from wagle.terminal import Progress
from wagle.unlearn.mask.fingerprints import examples_fingerprint, model_fingerprint
from wagle.unlearn.mask.tensor_file import TensorFile, cached_tensors

WANDA_EXAMPLES = 128  # calibration examples, as published
_WANDA_BLOCK = 1 << 22  # scores ranked at once


def feed_forward_mask(model: PreTrainedModel) -> Mask:
    """All weights of the feed-forward modules and their norms; everything else frozen.

    Raises:
        WagleError: no feed-forward module is found in the decoder blocks.
    """
    prefix, _ = decoder_layers(model)
    names = (name for name, _ in model.named_parameters())
    selected = feed_forward_names(name for name in names if name.startswith(f"{prefix}."))
    if not selected:
        raise WagleError(
            f"no feed-forward module found in {type(model).__name__}'s decoder blocks; known names "
            f"are {', '.join(FEED_FORWARD_MODULES)}"
        )
    return {name: BitMask.full(p.shape, name in selected) for name, p in model.named_parameters()}


def wanda_masks(
    model: PreTrainedModel, norms: TensorFile, ratios: Sequence[float]
) -> dict[float, Mask]:
    """Wanda's rule as a selection (Sun et al. 2023, arXiv 2306.11695, eq. 1).

    In every output row of every linear layer of the decoder blocks, the ``int(cols · (1 − ρ))``
    weights with the smallest |W_ij| · ‖X_j‖₂ are frozen (of equals the first ones); all the others,
    and everything outside those layers, are selected.

    Args:
        norms: ‖X_j‖₂, from :func:`cached_input_norms`.
        ratios: several ρ.

    Raises:
        WagleError: a score is infinite or not a number; the message names the tensor.
    """
    shapes = {name: p.shape for name, p in model.named_parameters()}
    masks = {r: {name: BitMask.full(shape, True) for name, shape in shapes.items()} for r in ratios}
    linears = block_linears(model)
    for name, module in Progress("wanda", len(linears), "layer").over(linears.items()):
        transposed = is_transposed(module)
        weight = shards.whole(module.get_parameter("weight").detach())
        if transposed:
            weight = weight.T
        norm = norms.read(name).to(weight.device)
        kept = {r: torch.empty(weight.shape, dtype=torch.bool) for r in ratios}
        rows = max(1, _WANDA_BLOCK // weight.shape[1])
        for start in range(0, len(weight), rows):
            score = weight[start : start + rows].abs().float() * norm
            if not score.isfinite().all():
                raise WagleError(f"scores of {name} are infinite or not numbers")
            for ratio in ratios:
                count = int(score.shape[1] * (1 - ratio))
                kept[ratio][start : start + rows] = _without_smallest(score, count)
        for ratio in ratios:
            flags = kept[ratio].T if transposed else kept[ratio]
            masks[ratio][name] = BitMask.from_bool(flags)
    return masks


def _without_smallest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Bool of ``score``'s shape: False at each row's ``count`` smallest, of equals the first."""
    if not count:
        return torch.ones_like(score, dtype=torch.bool)
    largest = score.kthvalue(count, dim=1, keepdim=True).values
    kept, equal = score > largest, score == largest
    due = count - (score < largest).sum(dim=1, keepdim=True)
    return kept | (equal & (equal.cumsum(dim=1, dtype=torch.int32) > due))


def cached_input_norms(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    prefix: Path,
    *,
    rows: int,
    pad_token_id: int,
    lock_timeout: float | None = None,
) -> TensorFile:
    """What :func:`measure_input_norms` measures, from the cache where its fingerprint fits.

    Args:
        prefix: the file is ``{prefix}.input_norms.safetensors``.

    Raises:
        WagleError: weights of the decoder blocks are experts that lie together in one tensor.
    """
    experts = stacked_experts(model)
    if experts:
        raise WagleError(
            f"Wanda ranks linear layers, but {type(model).__name__} keeps experts in one tensor "
            f"of three dimensions ({experts[0]} and {len(experts) - 1} more), of which all would "
            "be selected; take another unlearn.score_type"
        )
    return cached_tensors(
        prefix.with_name(f"{prefix.name}.input_norms.safetensors"),
        f"1 {model_fingerprint(model)} {examples_fingerprint(examples)}",
        input_shapes(block_linears(model)),
        torch.float32,
        partial(measure_input_norms, model, examples, rows=rows, pad_token_id=pad_token_id),
        lock_timeout,
    )


def input_shapes(linears: Mapping[str, torch.nn.Module]) -> dict[str, torch.Size]:
    """``(in_features,)`` of each of some linear layers."""
    return {
        name: module.get_parameter("weight").shape[0 if is_transposed(module) else 1 :][:1]
        for name, module in linears.items()
    }


def measure_input_norms(
    model: PreTrainedModel,
    examples: Sequence[Encoded],
    file: TensorFile,
    *,
    rows: int,
    pad_token_id: int,
) -> None:
    """‖X_j‖₂ of every input feature of every linear layer of the decoder blocks, into a file.

    X are the layer's inputs at the real tokens of all examples; one process writes.

    Args:
        file: one vector ``(in_features,)`` for each of :func:`block_linears`, all zeros.
        rows: examples that are run together.
    """
    squares, _ = sum_over_inputs(
        *(model, block_linears(model), examples, torch.square),
        rows=rows,
        pad_token_id=pad_token_id,
    )
    for name, square in squares.items() if ranks.is_first() else ():
        file.write(name, square.sqrt())


@torch.no_grad()
def sum_over_inputs(
    model: PreTrainedModel,
    linears: Mapping[str, torch.nn.Module],
    examples: Sequence[Encoded],
    function: Callable[[torch.Tensor], torch.Tensor],
    *,
    rows: int,
    pad_token_id: int,
) -> tuple[dict[str, torch.Tensor], int]:
    """Σ over the real tokens of all examples of a function of the inputs of linear layers.

    All processes run all of these few batches.

    Args:
        function: of inputs ``(tokens, in_features)``, float32, element by element.
        rows: examples that are run together.

    Returns:
        A vector ``(in_features,)`` for each layer, and the number of tokens.
    """
    totals: dict[str, torch.Tensor] = {}
    real: torch.Tensor

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1])[real].float()
            total = function(x).sum(dim=0)
            totals[name] = totals[name] + total if name in totals else total

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    was_training = model.training
    model.eval()
    try:
        starts = range(0, len(examples), rows)
        for start in Progress("activations", len(starts), "batch").over(starts):
            batch = pad_batch(examples[start : start + rows], pad_token_id)
            batch = {key: tensor.to(model.device) for key, tensor in batch.items()}
            real = batch["attention_mask"].reshape(-1).bool()
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return totals, sum(len(example.input_ids) for example in examples)
