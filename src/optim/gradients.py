"""The gradients of a step between backward and update: kept whole, or packed as they come.

A gradient as large as the model exists only where somebody keeps it: backward makes it tensor by
tensor. A model of 1000 weights in two tensors of 500, a tenth of them selected, holds 1000 numbers
when gradients are dense, and 500 + 100 at most when they are packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from wagle import ranks, shards
from wagle.optim.packed import PackedOptimizer


class Gradients(Protocol):
    """What the training loop does with gradients. In use as a context, around all steps."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...

    def backward(self, loss: torch.Tensor, terms: Sequence[torch.Tensor], *, last: bool) -> None:
        """Make the gradients of a loss, a scalar, and of earlier ones of the window their sum.

        Args:
            terms: what ``loss`` is the sum of, where that is known.
            last: no more losses come before the update.
        """

    def clip(self) -> torch.Tensor:
        """After these: the norm of the gradients, a scalar, as it was before clipping."""

    def clear(self) -> None:
        """After the update: no gradient is left."""


class DenseGradients:
    """Whole gradients in ``.grad``, clipped by the norm of all of them, as published.

    Args:
        max_norm: what they are clipped to; 0: they are not clipped.
    """

    def __init__(self, model: torch.nn.Module, max_norm: float) -> None:
        self.model = model
        self.max_norm = max_norm

    def __enter__(self) -> Self:
        self.clear()
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def backward(self, loss: torch.Tensor, terms: Sequence[torch.Tensor], *, last: bool) -> None:
        """One backward pass of all terms together."""
        loss.backward()

    def clip(self) -> torch.Tensor:
        """Scale the gradients down to ``max_norm``; returns their norm before."""
        found = [(p, shards.local(p.grad)) for p in self.model.parameters() if p.grad is not None]
        return _clip(found, self.max_norm)

    def clear(self) -> None:
        """Drop the gradients."""
        self.model.zero_grad()


class PackedGradients:
    """The gradients of the selected weights alone, clipped by their norm.

    A parameter's gradient is packed as soon as backward has made it, and dropped. Packed gradients
    add up in float32 or wider. Terms of a loss have backward passes of their own: in a common one
    the gradients of one term would all wait, whole, for those of the other. Terms that are not
    independent, such as several of one forward pass, go back together nevertheless.

    Where nothing is clipped, in a process that works alone, the last backward pass of a window
    updates each parameter when its gradient comes; with one batch and one term there is nothing
    else to be kept. Before it the loss is looked at, so that none that is no finite number touches
    the weights; a gradient that is none is seen when weights have been updated.

    Backward must make the gradient of a parameter once a pass: no reentrant checkpointing of layers
    that share weights.

    Args:
        optimizer: of all parameters that are trained.
        max_norm: what the gradients are clipped to; 0: they are not clipped.
    """

    def __init__(self, optimizer: PackedOptimizer, max_norm: float) -> None:
        self.optimizer = optimizer
        self.max_norm = max_norm
        self._updates = False  # whether gradients are used as they come
        self._independent: bool | None = None  # of the terms; not known before they are seen
        self._loss: torch.Tensor | float = 0.0  # of the window so far
        self._used: list[tuple[torch.Tensor, torch.Tensor]] = []  # weights, and gradients' norms
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self.clear()
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._take)
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.clear()

    def backward(self, loss: torch.Tensor, terms: Sequence[torch.Tensor], *, last: bool) -> None:
        """A backward pass of each term, where they are independent."""
        terms = [term for term in terms if term.requires_grad]
        if self._independent is None:
            self._independent = _independent(terms)
        passes = terms if terms and self._independent else [loss]
        self._loss = self._loss + loss.detach()
        updates = last and not self.max_norm and ranks.size() == 1  # else others' are to be added
        updates = updates and bool(self._loss.isfinite())
        for number, term in enumerate(passes, start=1):
            self._updates = updates and number == len(passes)
            term.backward()
        self._updates = False

    def clip(self) -> torch.Tensor:
        """Scale what is packed down to ``max_norm``; returns the norm before."""
        return _clip([*self._used, *self.optimizer.packed_gradients.items()], self.max_norm)

    def clear(self) -> None:
        """Drop the gradients."""
        self._updates = False
        self._loss = 0.0
        self._used.clear()
        self.optimizer.zero_grad()

    def _take(self, parameter: torch.Tensor) -> None:
        optimizer = self.optimizer
        if not optimizer.pack_gradient(parameter) or not self._updates:
            return
        self._used.append((parameter, optimizer.packed_gradients[parameter].norm()))
        optimizer.update([parameter])
        del optimizer.packed_gradients[parameter]


@torch.no_grad()
def _clip(gradients: Sequence[tuple[torch.Tensor, torch.Tensor]], max_norm: float) -> torch.Tensor:
    """Add gradients up over the processes, and scale them down; returns their norm before.

    Args:
        gradients: of each weight, the weight and its gradient, or this process's part of it.
        max_norm: 0: they are not scaled.
    """
    shards.add_up(gradients)
    norm = shards.total_norm(gradients)
    if max_norm:
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch clips
        for _, gradient in gradients:
            gradient.mul_(scale.to(gradient.device))
    return norm


def _independent(terms: Sequence[torch.Tensor]) -> bool:
    """Whether the graphs of some losses meet in parameters alone."""
    seen: set[Node] = set()
    for term in terms:
        own: set[Node] = set()
        waiting = [term.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in own and not hasattr(node, "variable"):
                own.add(node)
                waiting += [source for source, _ in node.next_functions]
        if own & seen:
            return False
        seen |= own
    return True
