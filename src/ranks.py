"""Several processes that work as one: who they are, and what they tell each other.

``torchrun --nproc_per_node 4 src/exec/unlearn_model.py …`` starts four processes of one command.
All run the same program and take the same decisions: what depends on a file or a clock, the first
one looks at, and tells the others (:func:`first`). It alone writes and speaks. Work on rows is
dealt out (:func:`deal`)::

    rows      0  1  2  3  4
    process   0  1  0  1  0      deal(rows, score) gives every process all five results, in order

A process that runs alone is the first of one, and nothing here costs it anything.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented

from wagle import devices, launch
from wagle.errors import ConfigError, WagleError

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, before all of them end with an error."""

Value = TypeVar("Value")
Item = TypeVar("Item")


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


def join(device: torch.device) -> torch.device:
    """Connect the processes that torchrun has started; without it there is but one.

    Args:
        device: what kind of device each of them uses.

    Returns:
        This process's own device.

    Raises:
        ConfigError: processes cannot share devices of this kind, or there are fewer devices.
    """
    if launch.processes() == 1 or dist.is_initialized():
        return _own(device)
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"overall.device is {device.type}, where one process runs alone; torchrun has started "
            f"{launch.processes()}: use cuda or cpu"
        )
    own = _own(device)
    if not devices.on_cpu(device):
        torch.cuda.set_device(own)
    backend = "gloo" if devices.on_cpu(device) else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    return own


def _own(device: torch.device) -> torch.device:
    if launch.processes() == 1 or devices.on_cpu(device):
        return device
    number, there = launch.number_here(), torch.cuda.device_count()
    if number >= there:
        raise ConfigError(
            f"torchrun has started more processes on this machine than it has GPUs ({there}): give "
            f"--nproc_per_node {there}"
        )
    return torch.device("cuda", number)


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def first(work: Callable[[], Value]) -> Value:
    """What ``work()`` gives the first process; where it fails there, it fails in all of them.

    Args:
        work: its result can be pickled.
    """
    if size() == 1:
        return work()
    outcome: list[object] = [None, None]
    if is_first():
        try:
            outcome[0] = work()
        except WagleError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    value, failure = outcome
    if isinstance(failure, WagleError):
        raise failure
    return value  # type: ignore[return-value]  # as the first process has made it


@contextmanager
def first_in(enter: Callable[[], AbstractContextManager[Value]]) -> Iterator[Value]:
    """A context that the first process alone is in while all of them are in the block.

    It is left once all have come to the end of the block. Entering and leaving fail in all.

    Args:
        enter: makes the context; what it is bound to can be pickled, and is the same in all.
    """
    with ExitStack() as stack:
        yield first(lambda: stack.enter_context(enter()))
        everyone(None)
        first(stack.close)


def everyone(value: Value) -> list[Value]:
    """The values of all processes, by rank.

    Args:
        value: can be pickled.
    """
    if size() == 1:
        return [value]
    values: list[Value] = [value] * size()
    dist.all_gather_object(values, value)
    return values


def deal(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Value]]) -> list[Value]:
    """``work(items)``, each process doing its share; all of them get all results, in order.

    Args:
        items: the same in all processes.
        work: gives a result for each item that it is given, whatever the others are.

    Raises:
        WagleError: in all processes, where the work has failed in one.
    """
    if size() == 1:
        return list(work(items))
    share, failure = [], None
    try:
        share = list(work(items[rank() :: size()]))
    except WagleError as error:
        failure = error
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        failure = WagleError(f"{type(error).__name__}: {error}")
    results: list[Value] = [None] * len(items)  # type: ignore[list-item]  # all are filled below
    for number, (part, failed) in enumerate(everyone((share, failure))):
        if failed is not None:
            raise failed
        results[number :: size()] = part
    return results


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, after those of all processes have been added to it in place.

    All processes get the same bits.
    """
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def meet() -> None:
    """Wait for all processes to come here."""
    if size() > 1:
        dist.barrier()


def spread(tensor: torch.Tensor) -> None:
    """Give all processes the first one's values, in place."""
    if size() > 1:
        dist.broadcast(tensor, src=0)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(add_up(torch.tensor(int(flag)))) if size() > 1 else flag


def is_first_to_fail() -> bool:
    """Whether no other process has failed before; that one says why, and the others are silent."""
    if launch.processes() == 1:
        return True
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=10),
        )
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"wagle failures {restart}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # the store went with the process that held it
        return launch.number() == 0
