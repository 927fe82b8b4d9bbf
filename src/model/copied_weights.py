"""A model's weights as copies beside it, to be put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


def copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def put(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Replace all weights of a model by others, in place."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


@contextmanager
def restored(model: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """The model's weights as they are; what happens to them in the block is undone."""
    before = copied(model)
    try:
        yield before
    finally:
        put(model, before)
