"""Optimizers that see only the selected weights of each parameter.

State exists for selected weights only, as packed vectors; a step gathers the selected weights and
gradients of a cache-sized chunk, updates them, and scatters the weights back. Everything else of a
parameter is never written, so frozen weights stay bit-identical whatever the weight decay.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import xxhash

from src.optim.bitmask import BitMask

CPU_CHUNK = 1 << 18  # elements; a chunk's gathered weights and gradients stay in the cache
GPU_CHUNK = 1 << 24  # enough to keep a GPU busy, small beside the model
MASTER = "master"


@dataclass(frozen=True)
class _Chunk:
    """Part of a flat parameter: ``start:stop``, its mask, and the range of its packed state."""

    start: int
    stop: int
    selected: torch.Tensor | None  # None: all of it
    packed: slice

    def gather(self, flat: torch.Tensor) -> torch.Tensor:
        """The selected elements; a view where all are selected."""
        part = flat[self.start : self.stop]
        return part if self.selected is None else part[self.selected]

    def scatter(self, flat: torch.Tensor, values: torch.Tensor) -> None:
        """Put the selected elements back."""
        part = flat[self.start : self.stop]
        if self.selected is None:
            part.copy_(values)
        else:
            part.masked_scatter_(self.selected, values.to(part.dtype))


class PackedOptimizer(torch.optim.Optimizer):
    """Base of optimizers with masks.

    Args:
        params: parameters or groups of them, as for any ``torch.optim`` optimizer.
        defaults: hyper-parameters of groups that do not give them.
        masks: the selected weights by parameter; a parameter without a mask is fully selected.
        master_weights: keep float32 copies of the selected weights of 16-bit parameters and update
            those. Without it such weights are updated in place, as ``torch.optim`` does, and
            updates below half a unit in the last place vanish.

    Raises:
        ValueError: a mask's shape is not its parameter's.
    """

    slots: ClassVar[tuple[str, ...]]
    """Names of the packed state vectors."""

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        defaults: dict[str, Any],
        masks: Mapping[torch.Tensor, BitMask] | None,
        master_weights: bool,
    ) -> None:
        super().__init__(params, defaults)
        self.master_weights = master_weights
        self._masks: dict[torch.Tensor, BitMask] = {}
        for parameter, mask in (masks or {}).items():
            if mask.shape != parameter.shape:
                raise ValueError(
                    f"a mask of shape {tuple(mask.shape)} for a parameter of shape "
                    f"{tuple(parameter.shape)}"
                )
            if mask.count() < mask.numel:
                self._masks[parameter] = mask.to(parameter.device)

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Update the selected weights of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and self._selected_count(parameter):
                    self._step_parameter(parameter, group)
        return loss

    def _step_parameter(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self._state_of(parameter)
        state["step"] += 1
        weights, gradients = parameter.view(-1), parameter.grad.reshape(-1)
        for chunk in self._chunks(parameter):
            vectors = {slot: state[slot][chunk.packed] for slot in self.slots}
            gradient = chunk.gather(gradients)
            if MASTER in state:
                selected = state[MASTER][chunk.packed]
                gradient = gradient.float()
            else:
                selected = chunk.gather(weights)
            self._update(selected, gradient, vectors, state["step"], group)
            if chunk.selected is not None or MASTER in state:
                chunk.scatter(weights, selected)

    @abstractmethod
    def _update(
        self,
        weights: torch.Tensor,
        gradients: torch.Tensor,
        vectors: dict[str, torch.Tensor],
        step: torch.Tensor,
        group: dict[str, Any],
    ) -> None:
        """One step on flat vectors of selected weights, in place.

        Args:
            weights, gradients, vectors: ``(n,)`` each, of one dtype.
            step: how many steps this parameter has had, this one included; do not change it.
        """

    def _selected_count(self, parameter: torch.Tensor) -> int:
        mask = self._masks.get(parameter)
        return parameter.numel() if mask is None else mask.count()

    def _chunks(self, parameter: torch.Tensor) -> Iterator[_Chunk]:
        mask = self._masks.get(parameter)
        if mask is None:
            yield _Chunk(0, parameter.numel(), None, slice(0, parameter.numel()))
            return
        packed = 0
        size = CPU_CHUNK if parameter.device.type == "cpu" else GPU_CHUNK
        for start in range(0, parameter.numel(), size):
            stop = min(start + size, parameter.numel())
            selected = mask.flat(start, stop)
            count = int(selected.sum())
            yield _Chunk(start, stop, selected, slice(packed, packed + count))
            packed += count

    def _state_of(self, parameter: torch.Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            count = self._selected_count(parameter)
            with_master = self.master_weights and parameter.dtype.itemsize == 2
            dtype = torch.float32 if with_master else parameter.dtype
            state["step"] = torch.zeros((), device=parameter.device)
            state["mask"] = self._mask_digest(parameter)
            for slot in self.slots:
                state[slot] = torch.zeros(count, dtype=dtype, device=parameter.device)
            if with_master:
                state[MASTER] = torch.empty(count, dtype=dtype, device=parameter.device)
                for chunk in self._chunks(parameter):
                    state[MASTER][chunk.packed] = chunk.gather(parameter.detach().view(-1)).float()
        return state

    def _mask_digest(self, parameter: torch.Tensor) -> str:
        mask = self._masks.get(parameter)
        return "all" if mask is None else xxhash.xxh3_128_hexdigest(mask.bits.cpu().numpy())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments, step counts and masters, each in the dtype that it was saved in.

        Raises:
            ValueError: the state belongs to another mask.
        """
        super().load_state_dict(state_dict)
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for saved_id, parameter in zip(saved_ids, parameters, strict=True):
            saved = state_dict["state"].get(saved_id)
            if saved is None:
                continue
            if saved["mask"] != self._mask_digest(parameter):
                raise ValueError("the optimizer state was saved with another mask")
            # The base class casts state to the parameter's dtype, which would round the masters.
            for slot in (*self.slots, MASTER):
                if slot in saved:
                    self.state[parameter][slot] = saved[slot].to(parameter.device, copy=True)
