"""Optimizers that see only the selected weights of each parameter.

State exists for selected weights only, as packed vectors in the row-major order of the parameter.
A step gathers the selected weights and gradients of one chunk, updates them, and scatters the
weights back; frozen weights are never written, so they stay bit-identical whatever the weight
decay. The positions of the selected weights are made from the bit mask, chunk by chunk, and
dropped again: memory beside the state stays at a few chunks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import torch
import xxhash

from wagle import devices, shards
from wagle.optim.bitmask import BitMask
from wagle.optim.chunks import ParameterChunk, cut
from wagle.optim.eight_bit import SMALLEST, EightBit
from wagle.optim.threads import ordered_map

MASTER = "master"
FIRST_MOMENT = "exp_avg"  # the one state vector with elements below 0


Work = Callable[[dict[str, Any], torch.Tensor, ParameterChunk], None]
"""Something to do with a chunk of a parameter: (the parameter's group, the parameter, chunk)."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a parameter is cut, or of a sharded one this process's part.

    Attributes:
        mask: None where all of it is selected.
        group: where the parameter is in ``param_groups``.
        digest: of the whole parameter's mask.
    """

    mask: BitMask | None
    selected: int
    chunks: tuple[ParameterChunk, ...]
    group: int
    digest: str


@dataclass(frozen=True, slots=True)
class Selected:
    """The selected weights of a chunk: flat vectors ``(n,)``, all of one dtype.

    Attributes:
        weights: to be updated in place.
        gradients: not to be changed.
        vectors: the state by slot, to be updated in place.
        step: how many steps the parameter has had, this one included; not to be changed.
    """

    weights: torch.Tensor
    gradients: torch.Tensor
    vectors: dict[str, torch.Tensor]
    step: torch.Tensor


class PackedOptimizer(torch.optim.Optimizer):
    """Base of optimizers with masks.

    A parameter without a gradient, or without a selected weight, is left alone and has no state. Of
    a sharded parameter (:mod:`wagle.shards`) each process keeps and updates its own part.

    Args:
        params: contiguous parameters or groups of them, as for any ``torch.optim`` optimizer.
        defaults: hyper-parameters of groups that do not give them.
        masks: the selected weights by parameter; a parameter without a mask is fully selected.
            The bits are shared, not copied, where they are on the parameter's device.
        master_weights: keep float32 copies of the selected weights of 16-bit parameters, with
            float32 moments, and round to the parameter after each step. Without it such weights
            and moments are 16-bit throughout, as in ``torch.optim``, and updates below half a
            unit in the last place vanish.
        eight_bit: keep the moments of parameters with 4,096 selected weights or more in 8 bits
            each (:mod:`wagle.optim.eight_bit`).

    Attributes:
        packed_gradients: by parameter the gradients of its selected weights, ``(selected,)``,
            float32 or wider, where :meth:`pack_gradient` has put them; they go before ``.grad``.

    Raises:
        ValueError: a mask's shape is not its parameter's; a parameter is not contiguous.
    """

    slots: ClassVar[tuple[str, ...]]
    """Names of the packed state vectors."""

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        defaults: dict[str, Any],
        masks: Mapping[torch.Tensor, BitMask] | None,
        master_weights: bool,
        eight_bit: bool,
    ) -> None:
        self.master_weights = master_weights
        self.eight_bit = eight_bit
        self._masks = dict(masks or {})
        self._layouts: dict[torch.Tensor, _Layout] = {}
        self.packed_gradients: dict[torch.Tensor, torch.Tensor] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the optimizer; the masks given at construction hold for them."""
        super().add_param_group(param_group)
        group = len(self.param_groups) - 1
        for parameter in self.param_groups[-1]["params"]:
            self._layouts[parameter] = _layout(parameter, self._masks.get(parameter), group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the selected weights of every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.update(list(self._trained()))
        return loss

    @torch.no_grad()
    def update(self, parameters: Sequence[torch.Tensor]) -> None:
        """One step on the selected weights of parameters that have a gradient and such weights."""
        for parameter in parameters:
            self._state_of(parameter)["step"] += 1
        self._for_each_chunk(parameters, self._step_chunk)

    @torch.no_grad()
    def pack_gradient(self, parameter: torch.Tensor) -> bool:
        """Add the selected part of ``.grad`` to ``packed_gradients``, and drop ``.grad``.

        Returns:
            Whether the parameter has selected weights.
        """
        gradient = flat_gradient(parameter)
        parameter.grad = None
        layout = self._layouts[parameter]
        if not layout.selected:
            return False
        known = self.packed_gradients.get(parameter)
        wide = torch.promote_types(gradient.dtype, torch.float32)
        if layout.mask is None:  # the gradient itself is the sum, where nothing is known
            self.packed_gradients[parameter] = (
                gradient.to(wide) if known is None else known.add_(gradient)
            )
            return True
        packed = gradient.new_empty(layout.selected, dtype=wide) if known is None else known

        def pack(group: dict[str, Any], parameter: torch.Tensor, chunk: ParameterChunk) -> None:
            selected, part = packed[chunk.packed], chunk.gather(gradient, chunk.positions())
            if known is None:
                selected.copy_(part)
            else:
                selected.add_(part)

        self._for_each_chunk([parameter], pack)
        self.packed_gradients[parameter] = packed
        return True

    def gradients(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The parameters that have a gradient, and it: packed, or this process's part of it."""
        packed = self.packed_gradients
        return [(p, packed[p] if p in packed else flat_gradient(p)) for p in self._trained()]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the packed gradients, and those of the parameters as any ``torch.optim`` does."""
        self.packed_gradients.clear()
        super().zero_grad(set_to_none)

    def _trained(self) -> Iterator[torch.Tensor]:
        """The parameters that have a gradient and a selected weight."""
        for parameter, layout in self._layouts.items():
            if layout.selected and (
                parameter in self.packed_gradients or parameter.grad is not None
            ):
                yield parameter

    def _for_each_chunk(self, parameters: Iterable[torch.Tensor], work: Work) -> None:
        """Call ``work(group, parameter, chunk)`` for all chunks of the parameters.

        Chunks are independent and their bounds fixed, so the order changes no result.
        """
        small = []
        for parameter in parameters:
            layout = self._layouts[parameter]
            group = self.param_groups[layout.group]
            for chunk in layout.chunks:
                if devices.on_cpu(parameter) and layout.mask is not None:
                    small.append((group, parameter, chunk))
                else:
                    work(group, parameter, chunk)
        _run_in_threads(work, small)

    def _gradients(
        self, parameter: torch.Tensor, chunk: ParameterChunk, positions: torch.Tensor | None
    ) -> torch.Tensor:
        """The gradients of the selected weights of a chunk."""
        packed = self.packed_gradients.get(parameter)
        if packed is not None:
            return packed[chunk.packed]
        return chunk.gather(flat_gradient(parameter), positions)

    def _step_chunk(
        self, group: dict[str, Any], parameter: torch.Tensor, chunk: ParameterChunk
    ) -> None:
        state, flat, positions = self.state[parameter], _flat(parameter), chunk.positions()
        master = MASTER in state
        weights = state[MASTER][chunk.packed] if master else chunk.gather(flat, positions)
        gradients = self._gradients(parameter, chunk, positions).to(weights.dtype)
        with self._moments(parameter, chunk, self.slots) as vectors:
            self._update(Selected(weights, gradients, vectors, state["step"]), group)
        if master or positions is not None:  # else the weights are the parameter's own
            chunk.scatter(flat, positions, weights)

    @abstractmethod
    def _update(self, selected: Selected, group: dict[str, Any]) -> None:
        """One step on the selected weights of a chunk, with the group's hyper-parameters."""

    @contextmanager
    def _moments(
        self, parameter: torch.Tensor, chunk: ParameterChunk, slots: Iterable[str]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Within, some of a chunk's state vectors by slot, to be updated in place."""
        state = self.state[parameter]
        vectors = {slot: state[slot][chunk.packed] for slot in slots}
        yield vectors
        for slot, vector in vectors.items():
            if isinstance(state[slot], EightBit):  # what is changed so far is a copy
                state[slot][chunk.packed] = vector

    def _has_master(self, parameter: torch.Tensor) -> bool:
        return self.master_weights and parameter.dtype.itemsize == 2

    def _state_of(self, parameter: torch.Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if state:
            return state
        layout = self._layouts[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        state["mask"] = layout.digest
        for slot in self.slots:
            state[slot] = self._empty_moment(parameter, slot)
        if self._has_master(parameter):
            master = torch.empty(layout.selected, dtype=torch.float32, device=parameter.device)
            for chunk in layout.chunks:
                master[chunk.packed] = chunk.gather(_flat(parameter), chunk.positions())
            state[MASTER] = master
        return state

    def _empty_moment(self, parameter: torch.Tensor, slot: str) -> torch.Tensor | EightBit:
        layout, device = self._layouts[parameter], parameter.device
        dtype = torch.float32 if self._has_master(parameter) else parameter.dtype
        if not self.eight_bit or layout.selected < SMALLEST:
            return torch.zeros(layout.selected, dtype=dtype, device=device)
        pieces = [chunk.packed for chunk in layout.chunks]
        return EightBit(pieces, dtype=dtype, device=device, signed=slot == FIRST_MOMENT)

    def packed_state(self) -> list[dict[str, torch.Tensor | EightBit]]:
        """The state of every parameter, in the order of ``state_dict``'s numbers.

        Vectors by slot and ``step``; nothing where there is no state. Of a parameter none of whose
        selected weights are this process's the vectors are empty, and ``step`` is missing.
        """
        states = []
        for parameter, layout in self._layouts.items():
            state: dict[str, torch.Tensor | EightBit] = dict(self.state.get(parameter, {}))
            state.pop("mask", None)
            if not layout.selected:
                master = self._has_master(parameter)
                dtype = torch.float32 if master else parameter.dtype
                names = (*self.slots, *([MASTER] if master else []))
                state = {
                    name: torch.empty(0, dtype=dtype, device=parameter.device) for name in names
                }
            states.append(state)
        return states

    @property
    def parts(self) -> list[tuple[torch.Tensor, int, str]]:
        """Every parameter, how many of its selected weights are here, and its mask's digest."""
        return [(p, layout.selected, layout.digest) for p, layout in self._layouts.items()]

    @torch.no_grad()
    def packed_weights(self) -> list[torch.Tensor]:
        """The selected weights of every parameter, in the order of ``state_dict``'s numbers.

        Flat vectors in row-major order; where all of a parameter is selected, a view of it.
        """
        vectors = []
        for parameter, layout in self._layouts.items():
            flat = _flat(parameter)
            parts = [chunk.gather(flat, chunk.positions()) for chunk in layout.chunks]
            whole = layout.mask is None
            vectors.append(flat if whole else torch.cat([flat[:0], *parts]))
        return vectors

    @torch.no_grad()
    def load_packed_weights(self, vectors: Sequence[torch.Tensor]) -> None:
        """Put weights back that :meth:`packed_weights` has given.

        Raises:
            ValueError: they are not of these parameters and masks. Nothing is changed then.
        """
        found = [(vector.shape, vector.dtype) for vector in vectors]
        if found != [((layout.selected,), p.dtype) for p, layout in self._layouts.items()]:
            raise ValueError("these weights were packed for other parameters or masks")
        for (parameter, layout), vector in zip(self._layouts.items(), vectors, strict=True):
            weights = vector.to(parameter.device)
            for chunk in layout.chunks:
                chunk.scatter(_flat(parameter), chunk.positions(), weights[chunk.packed])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments, step counts and masters, each in the dtype that it was saved in.

        Moments in 8 bits are given, and may have been saved, as the floats that they stand for.

        Raises:
            ValueError: the groups differ, the state belongs to another mask, or it has masters
                where this optimizer has none or the reverse. Nothing is changed then.
        """
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        loaded = []
        if len(ids) == len(parameters):  # the base class refuses everything else
            for number, parameter in zip(ids, parameters, strict=True):
                if saved := state_dict["state"].get(number):
                    self._check_saved(saved, parameter, number)
                    loaded.append((saved, parameter))
        # The base class would cast state to the parameter's dtype, which rounds the masters, take
        # the mask's digest apart, and share the caller's tensors where it has nothing to cast.
        super().load_state_dict({**state_dict, "state": {}})
        for saved, parameter in loaded:
            state = self.state[parameter]
            for name, value in saved.items():
                state[name] = value if name == "mask" else value.to(parameter.device, copy=True)
                if name in self.slots and isinstance(
                    moment := self._empty_moment(parameter, name), EightBit
                ):
                    moment.fill(state[name])
                    state[name] = moment

    def _check_saved(self, saved: dict[str, Any], parameter: torch.Tensor, number: int) -> None:
        of = f"optimizer state {number}, of a parameter of shape {tuple(parameter.shape)},"
        if saved.get("mask") != self._layouts[parameter].digest:
            raise ValueError(f"{of} was saved with another mask than this optimizer's")
        if (MASTER in saved) != self._has_master(parameter):
            word = "with" if MASTER in saved else "without"
            raise ValueError(f"{of} was saved {word} master weights; set master_weights alike")


def _flat(parameter: torch.Tensor) -> torch.Tensor:
    """A view of a parameter, or of this process's part of it, as a vector."""
    return shards.local(parameter).view(-1)


def flat_gradient(parameter: torch.Tensor) -> torch.Tensor:
    """The gradient of a parameter that has one, or this process's part of it, as a vector."""
    assert parameter.grad is not None
    return shards.local(parameter.grad).reshape(-1)


def _layout(parameter: torch.Tensor, mask: BitMask | None, group: int) -> _Layout:
    of = f"a parameter of shape {tuple(parameter.shape)}"
    if not parameter.is_contiguous():
        raise ValueError(f"{of} is not contiguous; masked optimizers need contiguous parameters")
    if mask is not None and mask.shape != parameter.shape:
        raise ValueError(f"{of} has a mask of shape {tuple(mask.shape)}")
    if mask is not None and mask.count() == parameter.numel():
        mask = None
    digest, own = _digest(mask), shards.span(parameter)
    numel = len(own)
    if mask is not None and numel < parameter.numel():
        mask = mask.part(own.start, own.stop)
        mask = None if mask.count() == numel else mask
    if mask is not None:
        mask = mask.to(parameter.device)
    chunks = cut(shards.local(parameter.detach()), mask)
    return _Layout(mask, chunks[-1].packed.stop if chunks else 0, chunks, group, digest)


def _digest(mask: BitMask | None) -> str:
    return "all" if mask is None else xxhash.xxh3_128_hexdigest(mask.bits.cpu().numpy().data)


def _run_in_threads(
    work: Work, jobs: Sequence[tuple[dict[str, Any], torch.Tensor, ParameterChunk]]
) -> None:
    """``work(*job)`` for every job, in as many threads as torch uses within an operation.

    Finding and gathering positions is serial within torch and numpy, but releases the interpreter.
    """

    @torch.no_grad()
    def run(share: Sequence[tuple[dict[str, Any], torch.Tensor, ParameterChunk]]) -> None:
        for job in share:
            work(*job)

    if len(jobs) == 1:
        run(jobs)
        return
    shares = 4 * torch.get_num_threads()  # so that a slow thread holds up little
    for _ in ordered_map(run, [jobs[i::shares] for i in range(shares)]):
        pass
