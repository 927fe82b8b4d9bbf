"""Which weights each process answers for while a mask is made.

Of every parameter each process adds up the gradients, forms the scores and marks the selected
weights of one range of the flat weight, and the ranges follow one another by rank. Where a model is
cut among the processes, a range is what the process holds. What is whole in all of them is cut
evenly: of 16 weights three processes answer for the elements 0 to 4, 5 to 9 and 10 to 15.
"""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor

from wagle import ranks, shards


def part(parameter: torch.Tensor, rank: int | None = None) -> range:
    """The elements of the flat parameter that a process answers for; ``None``: this one."""
    if isinstance(parameter, DTensor):
        return shards.span(parameter, rank)
    rank = ranks.rank() if rank is None else rank
    bounds = (parameter.numel() * each // ranks.size() for each in (rank, rank + 1))
    return range(*bounds)


def flat_part(parameter: torch.Tensor) -> torch.Tensor:
    """The weights of this process's part, flat; a view where the parameter is contiguous."""
    held, mine = shards.span(parameter), part(parameter)
    flat = shards.local(parameter.detach()).reshape(-1)
    return flat[mine.start - held.start : mine.stop - held.start]
