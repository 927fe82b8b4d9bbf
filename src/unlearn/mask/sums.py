"""Sums of gradients that grow while backward passes run, in one process or in several.

Of N processes each runs every Nth batch, and each keeps the sums of its part of every parameter
(:mod:`wagle.unlearn.mask.parts`). Floats do not add up to the same bits in every order,
so gradients are not summed by the network: each process gets the others' gradients of its part as
they are, and adds them in the order of the batches. Of five batches, three processes add ::

    first round    sum = ((0 + g0) + g1) + g2
    second round   sum = (sum + g3) + g4           the third process's pass does not count

which is what one process would have added, to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter
from torch.distributed.tensor import DTensor

from wagle import launch, ranks
from wagle.errors import WagleError
from wagle.unlearn.mask.parts import part
from wagle.unlearn.mask.tensor_file import TensorFile


class Sums(Protocol):
    """What gradients are handed to."""

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Take a parameter's gradient, of one batch."""


class GradientSums:
    """The sums of this process's part of every parameter.

    They start at +0. As no sum of such is −0, adding a zero changes nothing: a parameter that a
    batch does not reach has the same sums whether it got no gradient or one of zeros.

    Args:
        offload: where the sums live: ``none`` (the weights' device), ``cpu``, or ``disk`` (in the
            file).
        file: made for the model's parameters, all zeros.
        squares: whether the squares of gradients are added, element by element.

    Attributes:
        shapes: of all whole sums, by name.
        dtype: of all of them.
        present: how many processes' batches count in this round; they are the first ones.

    Raises:
        WagleError: sums on the disk for processes that do not share a machine.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        dtype: torch.dtype,
        offload: str,
        file: TensorFile,
        *,
        squares: bool = False,
    ) -> None:
        if offload == "disk" and launch.processes_here() < ranks.size():
            raise WagleError(
                "unlearn.attribution_offload disk has all processes write into one file at the "
                "same time, which machines that share a disk cannot do; use cpu or none"
            )
        self.present = ranks.size()
        self.shapes = file.shapes
        self.dtype = dtype
        self._file = file
        self._squares = squares
        parameters = dict(model.named_parameters())
        self._parts = {name: part(p) for name, p in parameters.items()}
        self._whole = {  # in all of several processes: their gradients are still to be exchanged
            name: p
            for name, p in parameters.items()
            if ranks.size() > 1 and not isinstance(p, DTensor)
        }
        self._totals = (
            {}
            if offload == "disk"
            else {
                name: torch.zeros(
                    len(self._parts[name]),
                    dtype=dtype,
                    device=p.device if offload == "none" else "cpu",
                )
                for name, p in parameters.items()
            }
        )
        self._exchange = _Exchange()

    @contextmanager
    def consuming(self, model: torch.nn.Module) -> Iterator[None]:
        """Within, gradients are added to the sums as backward makes them, and freed."""
        cut = [module for module in model.modules() if isinstance(module, FSDPModule)]
        try:
            for module in cut:
                module.set_custom_reduce_scatter(self._exchange)
            with consume_gradients(model, self, later=self._whole):
                yield
        finally:
            for module in cut:
                module.set_custom_reduce_scatter(DefaultReduceScatter())

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add a gradient; of a parameter that is cut, the pieces that have just come."""
        if isinstance(gradient, DTensor):
            self._add(name, self._exchange.pieces(gradient.to_local()))
        else:
            self._add(name, [gradient.reshape(-1)])

    def add_whole(self) -> None:
        """After a backward pass: exchange and add the gradients that are whole in each process."""
        for name, parameter in self._whole.items():
            gradient = parameter.grad
            if gradient is None:  # nothing of this process's batch came by
                gradient = torch.zeros_like(parameter)
            parameter.grad = None
            lengths = [len(part(parameter, rank)) for rank in range(ranks.size())]
            mine = len(self._parts[name])
            received = gradient.new_empty(ranks.size() * mine)
            dist.all_to_all_single(received, gradient.reshape(-1), [mine] * ranks.size(), lengths)
            self._add(name, received.view(ranks.size(), mine))

    def _add(self, name: str, pieces: Sequence[torch.Tensor] | torch.Tensor) -> None:
        total = self._total(name)
        for piece in pieces[: self.present]:
            if self._squares:
                wide = piece.to(total)
                total.add_(wide * wide)  # rounded once more than a fused product, everywhere alike
            else:
                total.add_(piece.to(total.device))

    def _total(self, name: str) -> torch.Tensor:
        if name in self._totals:
            return self._totals[name]
        return self._file.mapped(name, self._parts[name])

    def write(self, file: TensorFile) -> None:
        """Write this process's sums into a file like the one that they are for."""
        for name, mine in self._parts.items():
            file.write(name, self._total(name), mine.start)

    def read(self, file: TensorFile) -> None:
        """Take this process's sums from a file that all have written."""
        for name, mine in self._parts.items():
            self._total(name).copy_(file.read(name).view(-1)[mine.start : mine.stop])

    def finish(self) -> None:
        """Write the sums into the file that they are for, and drop them."""
        for name in list(self._totals):
            self._file.write(name, self._totals.pop(name), self._parts[name].start)


class _Exchange(ReduceScatter):
    """Takes the place of FSDP's reduce-scatter: every piece arrives, and nothing is added.

    FSDP lays the gradients of a unit's parameters side by side and cuts them for the processes;
    right afterwards it makes each parameter's gradient a view of the output and calls its hooks.
    What arrives here has the output's layout, once for each process, and where a gradient lies in
    the output tells where its pieces are.
    """

    def __init__(self) -> None:
        self._received = torch.empty(0)

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        self._received = torch.empty_like(input_tensor)
        dist.all_to_all_single(self._received, input_tensor, group=group)

    def pieces(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """All processes' gradients of this process's part, by rank, flat.

        Args:
            gradient: as FSDP has made it of the output, whose content does not matter.
        """
        start = gradient.storage_offset()
        of_process = self._received.view(ranks.size(), -1)
        return [piece[start : start + gradient.numel()] for piece in of_process]


@contextmanager
def consume_gradients(
    model: torch.nn.Module, sums: Sums, later: Collection[str] = ()
) -> Iterator[None]:
    """Hand every parameter's gradient to ``sums`` as soon as backward has made it, then free it.

    Parameters that need no gradient get one meanwhile. Gradients from earlier are dropped.

    Args:
        later: names of parameters whose gradients stay.
    """
    handles = []
    frozen = [p for p in model.parameters() if not p.requires_grad]
    model.zero_grad()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(True)

        def consume(p: torch.Tensor, name: str = name) -> None:
            assert p.grad is not None  # the hook is called for what has one
            sums.add(name, p.grad)
            p.grad = None

        if name not in later:
            handles.append(parameter.register_post_accumulate_grad_hook(consume))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(False)
        model.zero_grad()  # an interrupted backward leaves some
