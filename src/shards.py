"""Weights of which each process holds a part (PyTorch's FSDP2), and how to reach part and whole.

A weight is cut along its rows. Of a (5, 4) matrix two processes hold the rows 0 to 2 and 3 to 4,
which are the elements 0 to 11 and 12 to 19 of the flat matrix: a part is a range of the flat
weight, so whatever lists elements in row-major order (bit masks, packed states, files) lists those
of the first process, then those of the second, and so on.

All functions take tensors that are not cut as well: their part is the whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from wagle import ranks
from wagle.model.architecture import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor; writing to it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, put together anew; every process calls this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def span(tensor: torch.Tensor, rank: int | None = None) -> range:
    """The elements of the flat tensor that a process holds; ``None``: this one."""
    if not isinstance(tensor, DTensor):
        return range(tensor.numel())
    rank = ranks.rank() if rank is None else rank
    rows, row = tensor.shape[0], tensor.numel() // max(tensor.shape[0], 1)
    each = -(-rows // ranks.size())  # as torch.chunk cuts
    return range(min(rank * each, rows) * row, min((rank + 1) * each, rows) * row)


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a model's weights are cut."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def shard(model: PreTrainedModel) -> None:
    """Cut a model's weights among the processes, in place.

    Each decoder block is a unit, whose weights are whole while it computes. So are embedding and
    output head, unless they share their weights: these then stay whole in every process, as they
    are read at both ends of a pass, and as few as they are. Gradients are added up over the
    processes; those of weights that stay whole are not (:func:`add_up`).

    Raises:
        WagleError: the architecture's decoder blocks are not known.
    """
    mesh = init_device_mesh(next(model.parameters()).device.type, (ranks.size(),))
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is None or head.weight is embedding.weight
    for unit in (*decoder_layers(model)[1], *(() if tied else (embedding, head))):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    fully_shard(
        model.base_model,
        mesh=mesh,
        reshard_after_forward=True,
        ignored_params={embedding.get_parameter("weight")} if tied else set(),
    )
    # It says that nobody may change a backbone's states in place, which nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a sum: losses are shares of the whole
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True)  # experts that no token of ours went to


def open_up(model: PreTrainedModel) -> None:
    """Put the whole weights into every process, which then runs the model for itself alone."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False)
            module.unshard()


def close_up(model: PreTrainedModel) -> None:
    """Undo :func:`open_up`."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(True)
            module.reshard()


def add_up(tensors: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Add up over the processes, in place, what belongs to weights that are whole in each.

    Args:
        tensors: of each weight, the weight and what is to be added up, such as its gradient.
    """
    for weight, tensor in tensors:
        if not isinstance(weight, DTensor):
            ranks.add_up(tensor)


def total_norm(tensors: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The Euclidean norm of the whole of some tensors, a scalar, the same in every process.

    Args:
        tensors: of each weight, the weight and this process's part of a tensor like it.
    """
    if ranks.size() == 1:
        return get_total_norm(tensor for _, tensor in tensors)
    everywhere = get_total_norm(t for weight, t in tensors if not isinstance(weight, DTensor))
    parts = get_total_norm(t for weight, t in tensors if isinstance(weight, DTensor))
    squares = ranks.add_up(parts.double().square().to(everywhere.device))
    return (everywhere.double().square() + squares).sqrt().to(parts.dtype)
