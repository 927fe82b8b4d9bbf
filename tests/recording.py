"""What a CUDA graph is, on a CPU: operations that are done again on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")

# They ask for a value of a tensor, or bring one from the host.
WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "lift_fresh")


class _Listening(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITING:
            raise RuntimeError(f"{func} cannot be recorded")
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.done.append((func, args, kwargs, result))
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


class CpuRecorder:
    """Stands in for :class:`wagle.devices.Recorder`.

    Attributes:
        recorded, replayed: how often, of all recorders since the last :meth:`forget`.
    """

    recorded = replayed = 0

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    @classmethod
    def forget(cls) -> None:
        """Count from zero again."""
        cls.recorded = cls.replayed = 0

    def record(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Record work; until it is replayed, what it returned means nothing."""
        type(self).recorded += 1
        with _Listening() as listening:
            result = work()
        done = listening.done
        for _, args, kwargs, results in done:
            given = _tensors((args, kwargs))
            for tensor in _tensors(results):
                if tensor.is_floating_point() and not any(_same_memory(tensor, g) for g in given):
                    tensor.fill_(float("nan"))

        def replay() -> Result:
            type(self).replayed += 1
            for func, args, kwargs, results in done:
                found = _tensors(func(*args, **kwargs))
                for old, new in zip(_tensors(results), found, strict=True):
                    if not _same_memory(old, new):
                        old.copy_(new)
            return result

        return replay
