"""Weights of which each process holds a part (PyTorch's FSDP2), and how to reach part and whole.

A weight is cut along its rows. Of a (5, 4) matrix two processes hold the rows 0 to 2 and 3 to 4,
which are the elements 0 to 11 and 12 to 19 of the flat matrix: a part is a range of the flat
weight, so whatever lists elements in row-major order (bit masks, packed states, files) lists those
of the first process, then those of the second, and so on.

All functions take tensors that are not cut as well: their part is the whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from wagle import ranks
from wagle.model.architecture import decoder_layers
from wagle.planning.resources import free_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARE_OF_ROOM = 0.6
"""Of a device's free memory, what the whole model may take while it is evaluated."""

Item = TypeVar("Item")
Value = TypeVar("Value")

_opened: WeakSet[torch.nn.Module] = WeakSet()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor; writing to it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, put together anew; every process calls this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_cut(tensor: torch.Tensor) -> bool:
    """Whether this process has only a part of a tensor."""
    return isinstance(tensor, DTensor)


def rows(tensor: torch.Tensor, rank: int | None = None) -> range:
    """The rows of a tensor that a process holds; ``None``: this one."""
    count = tensor.shape[0] if tensor.dim() else 1
    if not isinstance(tensor, DTensor):
        return range(count)
    rank = ranks.rank() if rank is None else rank
    each = -(-count // ranks.size())  # as torch.chunk cuts
    return range(min(rank * each, count), min((rank + 1) * each, count))


def span(tensor: torch.Tensor, rank: int | None = None) -> range:
    """The elements of the flat tensor that a process holds; ``None``: this one."""
    own = rows(tensor, rank)
    row = tensor.numel() // max(tensor.shape[0], 1) if tensor.dim() else 1
    return range(own.start * row, own.stop * row)


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a model's weights are cut."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def shard(model: PreTrainedModel, device: torch.device | None = None) -> None:
    """Cut a model's weights among the processes, in place.

    Each decoder block is a unit, whose weights are whole while it computes. So are embedding and
    output head, unless they share their weights: these then stay whole in every process, as they
    are read at both ends of a pass, and as few as they are. Gradients are added up over the
    processes; those of weights that stay whole are not (:func:`add_up`).

    Args:
        device: where the weights will be; ``None``: where they are.

    Raises:
        WagleError: the architecture's decoder blocks are not known.
    """
    kind = (device or next(model.parameters()).device).type
    mesh = init_device_mesh(kind, (ranks.size(),))
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
    _opened.add(model)


def weight_bytes(model: torch.nn.Module) -> int:
    """What the weights of a whole model take."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def runs_alone(model: torch.nn.Module) -> bool:
    """Whether each process can run the model for itself: it holds, or has opened, all of it."""
    return model in _opened or not is_sharded(model)


def deal(
    model: torch.nn.Module, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Value]]
) -> list[Value]:
    """As :func:`wagle.ranks.deal`, for work with a model; all do all of it where one alone cannot.

    Args:
        work: reads the model.
    """
    return ranks.deal(items, work) if runs_alone(model) else list(work(items))


@contextmanager
def opened(model: PreTrainedModel) -> Iterator[None]:
    """Within, each process holds the whole model, where all have room for that."""
    room = free_memory(model.device)
    full = room is not None and weight_bytes(model) > SHARE_OF_ROOM * room
    if runs_alone(model) or ranks.any_of(full):
        yield
        return
    open_up(model)
    try:
        yield
    finally:
        close_up(model)


def close_up(model: PreTrainedModel) -> None:
    """Undo :func:`open_up`."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(True)
            module.reshard()
    _opened.discard(model)


def add_up(tensors: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Add up over the processes, in place, what belongs to weights that are whole in each.

    Args:
        tensors: of each weight, the weight and what is to be added up, such as its gradient.
    """
    for weight, tensor in tensors:
        if not isinstance(weight, DTensor):
            ranks.add_up(tensor)


def join(weight: torch.Tensor, part: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """In the first process the whole of what each has a part of, one after the other, on the CPU.

    Args:
        weight: what it belongs to; all processes come with the same weights in the same order.
        part: a vector, this process's part; all of it where the weight is not cut.
        lengths: of the parts, by rank.
    """
    if not isinstance(weight, DTensor):
        return part
    if not ranks.is_first():
        if len(part):
            dist.send(part.contiguous(), 0)
        return part
    parts = [part.to("cpu")]
    for rank, length in enumerate(lengths[1:], start=1):
        if length:
            received = part.new_empty(length)
            dist.recv(received, rank)
            parts.append(received.to("cpu"))
    return torch.cat(parts)


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
