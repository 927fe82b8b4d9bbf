"""How likely labelled tokens are: batched, shared beginnings read once, no wide logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from wagle import devices, shards
from wagle.dataset.encoding import Encoded
from wagle.errors import WagleError
from wagle.metrics.partial_work import PartialWork
from wagle.metrics.trees import TreeRow, beginning, group_beginnings, make_row, pack, row_inputs
from wagle.model.head import Head
from wagle.model.reading import (
    agree,
    evaluating,
    reads_right,
    takes_own_masks,
)
from wagle.terminal import Progress

# As open-unlearning has it: where a model is all but certain, its distribution has no spread, and
# what is divided by that is rounding.
LEAST_VARIANCE = 1e-6
LOGITS_CHUNK = 1024  # tokens whose vocabulary-wide logits exist at once
Item = TypeVar("Item")


def most_tokens(model: PreTrainedModel | torch.device) -> float:
    """Tokens of a forward pass beyond which more at once take longer each.

    On a CPU, the activations then leave the processor's cache.
    """
    return 512 if devices.on_cpu(model) else math.inf


def _readable_rows(
    head: Head,
    sequences: Sequence[Encoded],
    most: int,
    pad_token_id: int,
) -> tuple[list[TreeRow], int]:
    """Rows that the model reads as it reads the sequences alone, and how many at once.

    Trees and packed rows where those do, else single sequences, else these one at a time. The most
    demanding row is tried: the longest, in a batch with the shortest.
    """
    model = head.model
    single = [make_row(sequences, [index]) for index in range(len(sequences))]
    if len(single) < 2:
        return single, 1

    def states(rows: Sequence[TreeRow]) -> torch.Tensor:
        output = model.base_model(**row_inputs(rows, pad_token_id, model), use_cache=False)
        return output.last_hidden_state if head.separate else output[0]

    def reads(way: str, rows: Sequence[TreeRow]) -> bool:
        chosen = [max(rows, key=lambda row: len(row.ids)), min(rows, key=lambda row: len(row.ids))]

        def trial() -> bool:
            for row, found in zip(chosen, states(chosen), strict=True):
                # Most tokens of others stand before and between those of a row's last sequence.
                alone = single[row.counts[-1][0]]
                path = [column for column, end in enumerate(row.ends) if end == len(row.ids)]
                if not agree(found[path[: len(alone.ids)]], states([alone])[0]):
                    return False
            return True

        return reads_right(model, way, trial, _lengths(rows), _lengths(single))

    longest = max(len(row.ids) for row in single)
    if head.separate and takes_own_masks(cast("PreTrainedModel", model.base_model), longest):
        packed = pack(sequences, group_beginnings(sequences, most), most)
        if len(packed) < len(single) and reads("packed rows", packed):
            return packed, most
    return single, most if most == 1 or reads("padded rows", single) else 1


def _lengths(rows: Sequence[TreeRow]) -> range:
    lengths = [len(row.ids) for row in rows]
    return range(min(lengths), max(lengths) + 1)


@dataclass(frozen=True)
class TokenScores:
    """The labelled tokens of one sequence, each given everything before it.

    Attributes:
        log_probs: in nats, float32 ``(labelled tokens,)``.
        is_greedy: whether the token is the most likely one, bool ``(labelled tokens,)``.
        standardized: log-probability minus its expectation under the model's own distribution over
            the vocabulary, in standard deviations, float32 ``(labelled tokens,)``; empty unless
            asked for.
    """

    log_probs: np.ndarray
    is_greedy: np.ndarray
    standardized: np.ndarray

    def __len__(self) -> int:
        return len(self.log_probs)

    @property
    def loss(self) -> float:
        """Token-mean negative log-likelihood, in nats."""
        return -float(self.log_probs.mean(dtype=np.float64))

    def first(self, count: int) -> TokenScores:
        """Those of the first ``count`` tokens."""
        return TokenScores(*(column[:count] for column in self._columns))

    def last(self, count: int) -> TokenScores:
        """Those of the last ``count`` tokens."""
        return TokenScores(*(column[max(len(column) - count, 0) :] for column in self._columns))

    @property
    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.log_probs, self.is_greedy, self.standardized


def token_log_probs(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    *,
    batch_size: int,
    pad_token_id: int,
    description: str,
    logits_chunk: int = LOGITS_CHUNK,
) -> list[np.ndarray]:
    """The ``log_probs`` of :func:`score_tokens`."""
    scores = score_tokens(
        model,
        sequences,
        batch_size=batch_size,
        pad_token_id=pad_token_id,
        description=description,
        logits_chunk=logits_chunk,
    )
    return [score.log_probs for score in scores]


def score_tokens(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    *,
    batch_size: int,
    pad_token_id: int,
    description: str,
    standardize: bool = False,
    logits_chunk: int = LOGITS_CHUNK,
) -> list[TokenScores]:
    """How likely every labelled token is given everything before it.

    Sequences whose unlabelled beginnings are equal (the answers to one question) are read in one
    row as a tree: what they share, before and after they get labels, is read once, and a mask hides
    the branches from each other, where the architecture can do that. Short trees share rows, so
    that little is padding. Rows are run sorted by length, right-padded. Vocabulary-wide logits
    exist for at most ``logits_chunk`` tokens at once, and only for labelled ones; architectures
    whose logits are more than the head of the hidden state run as many rows at once as that allows.
    Equal sequences are read once: what is decided by comparing their scores must not depend on
    where in a batch they stand.

    Args:
        batch_size: the most sequences in a forward pass.
        standardize: whether ``standardized`` is filled in.

    Returns:
        For each sequence, in the order given. The first token of a sequence is never predicted, and
        so has no scores.

    Raises:
        WagleError: the model's output is not finite.
    """
    keys = [(tuple(sequence.input_ids), tuple(sequence.labels)) for sequence in sequences]
    distinct = dict(zip(keys, sequences, strict=True))
    # What begins alike is read together, so one of several processes does all of it.
    groups: dict[tuple[int, ...], list[Encoded]] = {}
    for (ids, _), sequence in distinct.items():
        groups.setdefault(beginning(sequence) or ids, []).append(sequence)

    def score(groups: Sequence[list[Encoded]]) -> list[list[TokenScores]]:
        together = [sequence for group in groups for sequence in group]
        scores = iter(
            _score_distinct(
                model, together, batch_size, pad_token_id, description, standardize, logits_chunk
            )
        )
        return [[next(scores) for _ in group] for group in groups]

    by_sequence = {
        id(sequence): scores
        for group, found in zip(
            groups.values(), shards.deal(model, list(groups.values()), score), strict=True
        )
        for sequence, scores in zip(group, found, strict=True)
    }
    return [by_sequence[id(distinct[key])] for key in keys]


def _score_distinct(
    model: PreTrainedModel,
    sequences: Sequence[Encoded],
    batch_size: int,
    pad_token_id: int,
    description: str,
    standardize: bool,
    logits_chunk: int,
) -> list[TokenScores]:
    """:func:`score_tokens` of sequences no two of which are equal."""
    results: list[TokenScores] = [_as_scores(torch.empty(0, 2 + standardize))] * len(sequences)
    with (
        evaluating(model),
        Progress(description, len(sequences)) as bar,
        PartialWork(
            model,
            description,
            len(sequences),
            lambda: [
                [[sequence.input_ids, sequence.labels] for sequence in sequences],
                [batch_size, pad_token_id, standardize, logits_chunk],
            ],
        ) as partial_work,
    ):
        head = Head.of(model)
        rows, most = _readable_rows(head, sequences, batch_size, pad_token_id)
        found = iter(partial_work.found or [])
        done: list[torch.Tensor] = []  # the scores of each batch
        batches = batches_by_length(
            rows,
            lambda row: len(row.ids),
            tokens=min(most_tokens(model), math.inf if head.separate else logits_chunk),
            most=most,
            size=lambda row: len(row.counts),
        )
        for batch in batches:
            known = next(found, None)
            if known is None:
                scores = _score(head, batch, pad_token_id, logits_chunk, standardize)
            else:
                scores = torch.tensor(known).view(-1, 2 + standardize)
            if not scores.isfinite().all():
                raise WagleError(
                    f"{description}: the model gives probabilities that are not numbers; its "
                    "weights have probably diverged in training (try a lower learning rate)"
                )
            counts = [count for row in batch for count in row.counts]
            parts = scores.split([length for _, length in counts])
            for (index, _), values in zip(counts, parts, strict=True):
                results[index] = _as_scores(values)
            bar.update(len(counts))
            done.append(scores)
            if known is None:
                partial_work.note(bar.count, lambda: [part.tolist() for part in done])
    return results


def _as_scores(columns: torch.Tensor) -> TokenScores:
    """From the rows of :func:`_measure`, on the CPU."""
    log_probs, is_greedy, *standardized = columns.numpy().T
    return TokenScores(
        log_probs, is_greedy.astype(bool), standardized[0] if standardized else log_probs[:0]
    )


def _score(
    head: Head,
    rows: Sequence[TreeRow],
    pad_token_id: int,
    chunk: int,
    standardize: bool,
) -> torch.Tensor:
    """:func:`_measure` of all targets of the rows, one after another, on the CPU."""
    states = head.states(**row_inputs(rows, pad_token_id, head.model))
    width, device = states.shape[1], states.device
    asked = [
        (width * number + column, target)
        for number, row in enumerate(rows)
        for column, target in zip(row.sources, row.targets, strict=True)
    ]
    sources, targets = torch.tensor(asked, dtype=torch.int64, device=device).view(-1, 2).T
    # Where sequences part, one state predicts a token of each.
    places, which = sources.unique(return_inverse=True)
    states = states.flatten(0, 1)[places]
    scores = torch.empty(len(asked), 2 + standardize, device=device)
    for start in range(0, len(places), chunk):
        chosen = (which >= start) & (which < start + chunk)
        logits = head.logits(states[start : start + chunk])
        scores[chosen] = _measure(logits, which[chosen] - start, targets[chosen], standardize)
    return scores.cpu()


def _measure(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, standardize: bool
) -> torch.Tensor:
    """The columns of :class:`TokenScores`, float32 ``(N, 2)`` or ``(N, 3)``.

    Args:
        logits: ``(M, V)``, used up.
        rows, targets: ``(N,)`` rows of the logits, and the tokens that they are asked about.
    """
    logits = logits.float()
    likeliest = most_likely(logits)
    top = logits.gather(1, likeliest[:, None])
    chosen = logits[rows, targets]
    spread = logits.sub_(top)  # in place: fresh memory costs as much as the arithmetic
    log_total = (spread.exp() if standardize else spread.exp_()).sum(dim=1).log()
    log_probs = chosen - top[rows, 0] - log_total[rows]
    columns = [log_probs, (likeliest[rows] == targets).float()]
    if standardize:
        spread.sub_(log_total[:, None])
        probs = spread.exp()
        mean = torch.linalg.vecdot(probs, spread)
        variance = torch.linalg.vecdot(probs, spread.sub_(mean[:, None]).square_())
        deviation = variance.clamp_min(LEAST_VARIANCE).sqrt()
        columns.append((log_probs - mean[rows]) / deviation[rows])
    return torch.stack(columns, dim=1)


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The tokens of the largest logits ``(tokens, vocabulary)``, of equals the first, int64."""
    if devices.on_cpu(logits):  # numpy is five times as fast
        return torch.from_numpy(logits.float().numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def batches_by_length(
    items: Iterable[Item],
    length: Callable[[Item], int],
    *,
    tokens: float,
    most: float = math.inf,
    size: Callable[[Item], int] = lambda _: 1,
) -> Iterator[list[Item]]:
    """Items by length, as many at once as are ``tokens`` with padding and ``most`` by size.

    An item that is too large runs alone.
    """
    batch: list[Item] = []
    total = 0
    for item in sorted(items, key=length):
        total += size(item)
        if batch and (total > most or (len(batch) + 1) * length(item) > tokens):
            yield batch
            batch, total = [], size(item)
        batch.append(item)
    if batch:
        yield batch
