"""The peak memory of each phase of a command, by what it is for.

What stands beside the tensors of a pass is counted: of N weights in bfloat16, of which a share ρ
may change, 2·N bytes, and masters, two moments and packed gradients of 4·ρ·N bytes each. What a
pass itself holds is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from wagle import devices
from wagle.model.architecture import decoder_layers
from wagle.optim.chunks import CPU_CHUNK, WIDE_CHUNK
from wagle.optim.eight_bit import BLOCK, SMALLEST
from wagle.planning.simulation import (
    PASSING,
    BatchShape,
    MemoryTracker,
    Parts,
    simulate_reading,
    simulate_step,
)

ATTRIBUTION, TRAINING = "attribution", "training"

WEIGHTS = "weights"
MASK = "mask"
REFERENCE = "original weights"
GRADIENTS = "gradients"
PACKED = "packed gradients"
MASTERS = "masters"
BESIDE = "displaced and averaged weights"
MOMENTS = "moments"
UPDATE = "the optimizer's chunks"
SUMS = "sums of gradients"
CACHE = "cache of keys and values"
WHOLE = "blocks put together"

_CUT = (WEIGHTS, MASK, REFERENCE, GRADIENTS, PACKED, MASTERS, MOMENTS, SUMS)


class Phase(NamedTuple):
    """A phase and its peak by part, in bytes."""

    name: str
    parts: Parts

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.parts.total()


@dataclass(frozen=True)
class Training:
    """How a model is trained, as far as memory goes.

    Attributes:
        terms: the texts that each term of a batch's loss reads.
        shares: of each parameter's weights, those that the optimizer sees; 0: it is frozen.
        masked: whether there is a mask of one bit a weight.
        packed: whether gradients are packed, else dense.
        clipped: whether gradients are clipped.
        accumulation: batches per step.
        masters: whether 16-bit weights have float32 masters.
        eight_bit: whether moments have 8 bits each.
        alone: whether gradients of no other process are added before the update.
        reference: share of all weights whose original values are kept beside them.
        reference_logits: tokens of a batch whose original logits are kept.
        layer: of RMU's loss; ``None``: the loss is about tokens.
        beside: float32 vectors of all selected weights that are kept for SAM, smoothing or
            averages.
    """

    terms: Sequence[Sequence[BatchShape]]
    shares: Mapping[str, float]
    masked: bool
    packed: bool
    clipped: bool
    accumulation: int
    masters: bool
    eight_bit: bool = False
    alone: bool = True
    reference: float = 0.0
    reference_logits: int = 0
    layer: int | None = None
    beside: int = 0


def model_bytes(model: torch.nn.Module) -> int:
    """Of weights and buffers; tied weights count once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def training_phase(model: PreTrainedModel, training: Training, device: torch.device) -> Phase:
    """The peak of a step that is not the first, when the optimizer has its state.

    Args:
        model: a skeleton; parameters that are not trained need no gradient.
    """
    trained = {
        parameter: training.shares.get(name, 1.0)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    kept = _kept(model, trained, training)
    once = len(training.terms) == training.accumulation == 1 and training.alone
    grown = training.accumulation > 1  # all gradients are there when the last batch is read
    gradients = {
        p: _packed_bytes(p, share) if training.packed else p.nbytes for p, share in trained.items()
    }
    part = PACKED if training.packed else GRADIENTS
    seen: set[torch.nn.Parameter] = set()

    def on_gradient(tracker: MemoryTracker, parameter: torch.nn.Parameter) -> None:
        new = not grown and parameter not in seen
        seen.add(parameter)
        if training.packed:
            if new:
                tracker.add(part, gradients[parameter])
            parameter.grad = None
            if once and not training.clipped:
                tracker.add(part, -gradients[parameter])
        else:
            parameter.grad = None  # what it was counted as
            if new:
                tracker.add(part, gradients[parameter])

    model.train()
    passing = simulate_step(
        model, training.terms, on_gradient, apart=training.packed, layer=training.layer
    )
    model.eval()
    whole = Parts({part: sum(gradients.values())})
    if grown:
        passing += whole
    vocabulary = model.get_output_embeddings().weight.shape[0] if training.reference_logits else 0
    passing["original logits"] += training.reference_logits * vocabulary * model.dtype.itemsize
    updating = whole if training.clipped or not training.packed else Parts()
    updating[UPDATE] = _update_bytes(trained, device, eight_bit=training.eight_bit)
    return Phase(TRAINING, kept + max(passing, updating, key=Parts.total))


def _kept(
    model: PreTrainedModel, trained: Mapping[torch.nn.Parameter, float], training: Training
) -> Parts:
    parts = Parts({WEIGHTS: model_bytes(model)})
    weights = sum(p.numel() for p in model.parameters())
    if training.masked:
        parts[MASK] = weights // 8
    for parameter, share in trained.items():
        selected = round(share * parameter.numel())
        wide = training.masters and parameter.dtype.itemsize == 2
        if wide:
            parts[MASTERS] += 4 * selected
        if training.eight_bit and selected >= SMALLEST:
            parts[MOMENTS] += 2 * (selected + 4 * math.ceil(selected / BLOCK))
        else:
            parts[MOMENTS] += 2 * selected * (4 if wide else parameter.dtype.itemsize)
    parts[BESIDE] = training.beside * sum(_packed_bytes(p, share) for p, share in trained.items())
    parts[REFERENCE] = round(training.reference * weights) * model.dtype.itemsize
    return parts


def _packed_bytes(parameter: torch.nn.Parameter, share: float) -> int:
    return round(share * parameter.numel()) * max(4, parameter.dtype.itemsize)


def _update_bytes(
    trained: Mapping[torch.nn.Parameter, float], device: torch.device, *, eight_bit: bool
) -> int:
    """What the optimizer takes for a chunk.

    A flag for each weight, and positions, values and gradients of those that are selected. Moments
    in 8 bits become floats, and while one is written its shares and their numbers.
    """
    on_cpu = devices.on_cpu(device)
    sizes = []
    for p, share in trained.items():
        masked, width = 0 < share < 1, max(4, p.dtype.itemsize)
        chunk, at_once = WIDE_CHUNK, 1
        if on_cpu and masked:
            chunk, at_once = CPU_CHUNK, torch.get_num_threads()
        each = masked * (1 + share * (8 + 2 * width)) + eight_bit * share * 4 * width
        sizes.append(int(min(chunk, p.numel()) * each) * at_once)
    return max(sizes, default=0)


def share_of(phase: Phase, model: PreTrainedModel, devices: int) -> Phase:
    """What each of several devices holds of a phase when the weights are cut among them.

    All that goes with the weights is divided evenly, but for tied embeddings, which stay whole
    (:func:`wagle.shards.shard`). Whole are also the block that computes, the one that is fetched
    meanwhile and, between backward pass and adding up, a block's gradients. Of 8 blocks of 1 GB on
    4 devices each holds 2 GB and up to 3 GB more.

    Raises:
        WagleError: the architecture's decoder blocks are not known.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    blocks, table = decoder_layers(model)[1], embedding.get_parameter("weight")
    tied = head is None or head.weight is table
    whole = table.numel() / sum(p.numel() for p in model.parameters()) if tied else 0.0
    sizes = [sum(p.nbytes for p in unit.parameters()) for unit in (blocks[0], embedding)]
    largest = sizes[0] if tied else max(sizes)
    parts = Parts(phase.parts)
    for part in _CUT:
        parts[part] = round(parts[part] * (whole + (1 - whole) / devices))
    learns = phase.name in (ATTRIBUTION, TRAINING)
    parts[WHOLE] = largest * (3 if learns else 2)
    return Phase(phase.name, parts)


def attribution_phase(
    model: PreTrainedModel,
    batch: BatchShape,
    *,
    offload: str,
    sum_bytes: int,
    device: torch.device,
) -> Phase:
    """The peak of summing the gradients of one kind of text.

    Args:
        offload: as ``unlearn.attribution_offload``.
        sum_bytes: of an entry of the sums.
        device: where the weights are; a file that is written from there is mapped into a CPU's
            memory while a tensor is added to it.
    """
    on_cpu = devices.on_cpu(device)

    def on_gradient(tracker: MemoryTracker, parameter: torch.nn.Parameter) -> None:
        copied = on_cpu and parameter.dtype.itemsize < sum_bytes  # a CPU widens before it adds
        mapped = on_cpu and offload == "disk"
        size = parameter.numel() * sum_bytes
        tracker.add(PASSING, size * copied)
        tracker.add(SUMS, size * mapped)
        parameter.grad = None
        tracker.add(PASSING, -size * copied)
        tracker.add(SUMS, -size * mapped)

    frozen = [p for p in model.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    parts = simulate_step(model, [[batch]], on_gradient)
    for parameter in frozen:
        parameter.requires_grad_(False)
    parts[WEIGHTS] = model_bytes(model)
    if offload == "none" or (offload == "cpu" and on_cpu):
        parts[SUMS] = sum(p.numel() for p in model.parameters()) * sum_bytes
    return Phase(ATTRIBUTION, parts)


def reading_phase(
    model: PreTrainedModel, name: str, batch: BatchShape, *, masked: bool, cached_tokens: int = 0
) -> Phase:
    """The peak of forward passes without gradients.

    Args:
        masked: whether a mask is held meanwhile.
        cached_tokens: of all rows, whose keys and values are kept for generation.
    """
    parts = simulate_reading(model, batch)
    parts[WEIGHTS] = model_bytes(model)
    if masked:
        parts[MASK] = sum(p.numel() for p in model.parameters()) // 8
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * heads * width * cached_tokens
    generating = Parts({WEIGHTS: parts[WEIGHTS], MASK: parts[MASK]})
    generating[CACHE] = cache * model.dtype.itemsize
    return Phase(name, max(parts, generating, key=Parts.total))
