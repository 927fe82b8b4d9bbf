"""Passes through a model without weights, and what their tensors would take.

Nothing is computed: torch's fake tensors know shapes alone. So what autograd keeps of an
architecture, with or without activation checkpointing, is not guessed but seen. For example a
linear layer of 4 inputs and 3 outputs on 5 tokens in float32 keeps its input, 80 bytes, from the
forward pass to the backward pass, which makes a gradient of 48 bytes for its weights.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from wagle.model.head import Head, negative_log_likelihood, widen
from wagle.unlearn.objectives.rmu import hidden_states

ACTIVATIONS = "activations"
LOGITS = "logits and losses"
PASSING = "gradients in the making"  # the largest tensor's, and those of activations

Parts = Counter[str]
"""Bytes by what they are for."""


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make and that still live, by part.

    Attributes:
        live: bytes now.
        peak: bytes when there were most of them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.live: Parts = Counter()
        self.peak: Parts = Counter()
        self._part = ACTIVATIONS
        self._known: dict[int, tuple[str, int]] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._known[id(tensor.untyped_storage())] = (self._part, 0)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it has made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    @contextmanager
    def counting_as(self, part: str) -> Iterator[None]:
        """What is made meanwhile belongs to a part."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def count_as(self, part: str) -> None:
        """What is made from here on, within :meth:`counting_as`, belongs to another part."""
        self._part = part

    def add(self, part: str, size: int) -> None:
        """Bytes that are kept beside the tensors (or, below 0, no longer are)."""
        self.live[part] += size
        if self.live.total() > self.peak.total():
            self.peak = self.live.copy()

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._known:
            size = storage.nbytes()
            self._known[key] = (self._part, size)
            weakref.finalize(storage, self._forget, key)
            self.add(self._part, size)

    def _forget(self, key: int) -> None:
        part, size = self._known.pop(key)
        self.live[part] -= size


@dataclass(frozen=True)
class BatchShape:
    """A padded batch as a pass sees it.

    Attributes:
        rows: texts.
        tokens: of the longest.
        labelled: how many of all its tokens the head is applied to.
    """

    rows: int
    tokens: int
    labelled: int


OnGradient = Callable[["MemoryTracker", torch.nn.Parameter], None]
"""Called when a parameter's gradient has been made, in ``.grad``."""


def simulate_step(
    model: PreTrainedModel,
    terms: Sequence[Sequence[BatchShape]],
    on_gradient: OnGradient,
    *,
    apart: bool = False,
    layer: int | None = None,
) -> Parts:
    """The peak of forward passes and their backward passes.

    Args:
        model: made by :func:`wagle.planning.skeleton.skeleton`, within its context.
        terms: the texts that each term of the loss reads.
        apart: each term has a backward pass of its own; else they have one together.
        layer: the loss is about this decoder layer's output (RMU), not about tokens.
    """
    head = _head(model)
    tracker = MemoryTracker(model)
    handles = [
        p.register_post_accumulate_grad_hook(lambda p: on_gradient(tracker, p))
        for p in model.parameters()
        if p.requires_grad
    ]
    try:
        with tracker:
            losses = [
                torch.stack([_loss(head, batch, tracker, layer) for batch in term]).sum()
                for term in terms
            ]
            if not apart:
                losses = [torch.stack(losses).sum()]
            with tracker.counting_as(PASSING):
                while losses:
                    losses.pop(0).backward()
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad()
    return tracker.peak


def simulate_reading(model: PreTrainedModel, batch: BatchShape) -> Parts:
    """The peak of a forward pass without gradients that measures labelled tokens."""
    head = _head(model)
    tracker = MemoryTracker(model)
    with torch.no_grad(), tracker:
        _loss(head, batch, tracker, None)
    return tracker.peak


def _head(model: PreTrainedModel) -> Head:
    """The head of a skeleton, whose numbers cannot tell (:meth:`Head.of`) whether it stands apart.

    What follows the output layer, such as a scale or a cap, makes other logits of what it gives.
    """
    given: list[torch.Tensor] = []
    layer = model.get_output_embeddings()
    handle = layer.register_forward_hook(lambda *call: given.append(call[-1]))
    with torch.no_grad():
        logits = model(input_ids=torch.zeros((1, 4), dtype=torch.int64), use_cache=False).logits
    handle.remove()
    return Head(model, separate=given[-1] is logits)


def _loss(head: Head, batch: BatchShape, tracker: MemoryTracker, layer: int | None) -> torch.Tensor:
    shape = (batch.rows, batch.tokens)
    ids, attended = (torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.int64))
    if layer is not None:
        states = hidden_states(head.model, {"input_ids": ids, "attention_mask": attended}, layer)
        return widen(states).square().mean()
    with tracker.counting_as(ACTIVATIONS):
        handle = head.model.get_output_embeddings().register_forward_pre_hook(
            lambda *call: tracker.count_as(LOGITS)
        )
        states = head.states(input_ids=ids, attention_mask=attended)
        handle.remove()
    with tracker.counting_as(LOGITS):
        places = torch.zeros(batch.labelled, dtype=torch.int64)
        chosen = states.flatten(0, 1).index_select(0, places)
        return head.measure(negative_log_likelihood, chosen, places).mean()
