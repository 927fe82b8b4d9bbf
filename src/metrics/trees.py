"""Rows of a forward pass that read several texts at once: trees of those that begin alike."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from transformers import PreTrainedModel

from wagle.dataset.encoding import IGNORED, Encoded
from wagle.model.reading import additive_mask

# Longest row of several sequences with the same beginning, and of others: attention between them is
# waste.
BRANCHED_TOKENS = 1024
PACKED_TOKENS = 256


def count_alike(left: Sequence[int], right: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    pairs = zip(left, right, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True)
class TreeRow:
    """What one row of a forward pass reads: one sequence, or a tree of several.

    Sequences that begin alike are one path until they part. Columns are in depth-first order, so a
    token is followed by all that continue it. Of ``a b c`` and ``a b d e``, for example::

        ids        a  b  c  d  e
        positions  0  1  2  2  3
        ends       5  5  3  5  5

    where a token sees the columns before it whose ends lie behind it: ``d`` sees ``a`` and ``b``.

    Attributes:
        ids, positions: tokens and their positions in their own sequences.
        ends: for each token the column behind the last token that continues it.
        sources, targets: the hidden state of column ``sources[i]`` predicts token ``targets[i]``.
        counts: (index of a sequence, how many of the targets are its), in order.
    """

    ids: list[int]
    positions: list[int]
    ends: list[int]
    sources: list[int]
    targets: list[int]
    counts: list[tuple[int, int]]


def make_row(sequences: Sequence[Encoded], members: Sequence[int]) -> TreeRow:
    """One row for some of the sequences, without the last token of each."""
    row = TreeRow([], [], [], [], [], [])
    path: list[int] = []  # the columns of the last sequence's tokens
    last: list[int] = []
    # In lexicographic order each sequence parts from the one before it later than from any earlier.
    for index in sorted(members, key=lambda i: sequences[i].input_ids):
        labels = sequences[index].labels
        tokens = sequences[index].input_ids[: max(len(labels) - 1, 1)]  # the last predicts nothing
        shared = count_alike(tokens, last)
        for column in path[shared:]:
            row.ends[column] = len(row.ids)
        path[shared:] = range(len(row.ids), len(row.ids) + len(tokens) - shared)
        row.ids.extend(tokens[shared:])
        row.positions.extend(range(shared, len(tokens)))
        row.ends.extend([0] * (len(tokens) - shared))
        scored = [t for t in range(1, len(labels)) if labels[t] != IGNORED]
        row.sources.extend(path[t - 1] for t in scored)
        row.targets.extend(labels[t] for t in scored)
        row.counts.append((index, len(scored)))
        last = tokens
    for column in path:
        row.ends[column] = len(row.ids)
    return row


def beginning(sequence: Encoded) -> tuple[int, ...]:
    """The tokens that others may share with a sequence in a row: those that predict no label."""
    prompt = next((t for t, label in enumerate(sequence.labels) if label != IGNORED), 0)
    return tuple(sequence.input_ids[: max(prompt - 1, 0)])


def group_beginnings(sequences: Sequence[Encoded], most: int) -> list[list[int]]:
    """Sequences with the same unlabelled beginning, at most ``most`` together; others alone."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault(beginning(sequence), []).append(index)
    parts: list[list[int]] = []
    for shared, members in groups.items():
        tokens = BRANCHED_TOKENS
        for index in members:
            added = len(sequences[index].input_ids) - len(shared)
            if not shared or tokens + added > BRANCHED_TOKENS or len(parts[-1]) == most:
                parts.append([])
                tokens = len(shared)
            parts[-1].append(index)
            tokens += added
    return parts


def pack(sequences: Sequence[Encoded], parts: Sequence[list[int]], most: int) -> list[TreeRow]:
    """Rows of whole parts: at most ``most`` sequences, and ``PACKED_TOKENS`` unless it is one part.

    Each part, the longest first, goes where it leaves least room.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # tokens left, and the number of the row, ascending
    sized = ((len(make_row(sequences, part).ids), part) for part in parts)
    for tokens, part in sorted(sized, key=lambda pair: pair[0], reverse=True):
        place = bisect.bisect_left(rooms, (tokens, 0))
        if place < len(rooms) and len(rows[rooms[place][1]]) + len(part) <= most:
            room, number = rooms.pop(place)
        else:
            room, number = PACKED_TOKENS, len(rows)
            rows.append([])
        rows[number].extend(part)
        bisect.insort(rooms, (room - tokens, number))
    return [make_row(sequences, members) for members in rows]


def row_inputs(
    rows: Sequence[TreeRow], pad_token_id: int, model: PreTrainedModel
) -> dict[str, Any]:
    """Right-padded input of a forward pass.

    In a causal model no token sees padding to its right, so single sequences need no mask, which
    lets attention take its fast path.
    """
    longest = max(len(row.ids) for row in rows)

    def padded(lists: Iterator[list[int]], filler: int) -> torch.Tensor:
        filled = [values + [filler] * (longest - len(values)) for values in lists]
        return torch.tensor(filled, device=model.device)

    inputs = {"input_ids": padded((row.ids for row in rows), pad_token_id)}
    if all(len(row.counts) == 1 for row in rows):
        return inputs
    ends = padded((row.ends for row in rows), longest)  # padding sees padding
    columns = torch.arange(longest, device=model.device)
    hidden = (columns > columns[:, None]) | (columns[:, None] >= ends[:, None, :])
    inputs["attention_mask"] = additive_mask(hidden, model.dtype)
    inputs["position_ids"] = padded((row.positions for row in rows), 0)
    return inputs
