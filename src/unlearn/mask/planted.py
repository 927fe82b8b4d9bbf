"""Known sets of weights for facts to be planted in, and how well a score finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from wagle.errors import WagleError
from wagle.model.architecture import layer_index
from wagle.optim.bitmask import BitMask, Mask
from wagle.optim.threads import ordered_map
from wagle.unlearn.mask.grouped_scores import (
    down_projections,
    of_neurons,
    transposed_weights,
)
from wagle.unlearn.mask.scores import ScoreStream
from wagle.unlearn.mask.structure import feed_forward_mask, input_shapes

RATIOS = tuple(float(r) for r in np.logspace(-4, 0, 33))
"""Shares of the weights at which precision and recall are drawn."""


# ----------------------------------------------------------------------------- where facts go


def random_copies(model: PreTrainedModel, density: float, seed: int, copies: int) -> list[Mask]:
    """Disjoint random sets of weights that together have a density, of all parameters alike."""
    generator = np.random.default_rng([seed, copies])
    masks: list[Mask] = [{} for _ in range(copies)]
    for name, parameter in model.named_parameters():
        drawn = generator.random(parameter.numel(), dtype=np.float32)
        for number, mask in enumerate(masks):
            low, high = (density * edge / copies for edge in (number, number + 1))
            flags = torch.from_numpy((drawn >= low) & (drawn < high)).view(parameter.shape)
            mask[name] = BitMask.from_bool(flags)
    return masks


def one_layer(model: PreTrainedModel, density: float, seed: int) -> list[Mask]:
    """All weights of one decoder layer, which is drawn."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    layers = sorted({index for name in shapes if (index := layer_index(name)) is not None})
    drawn = int(np.random.default_rng(seed).choice(layers))
    return [{n: BitMask.full(shape, layer_index(n) == drawn) for n, shape in shapes.items()}]


def neurons(model: PreTrainedModel, density: float, seed: int) -> list[Mask]:
    """Random feed-forward neurons: rows of ``up`` and ``gate`` with the column of ``down``.

    Raises:
        WagleError: the model has no such neurons of a known form, or they have fewer weights.
    """
    generator = np.random.default_rng(seed)
    shapes = input_shapes(down_projections(model))
    everyone = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    total = sum(p.numel() for p in model.parameters())
    share = density * total / sum(bits.count() for bits in _of_neurons(model, everyone).values())
    if share > 1:
        raise WagleError(
            f"plant.density is {density:g}, and the feed-forward neurons have {density / share:.3g}"
            " of the weights"
        )
    chosen = {}
    for name, (count,) in shapes.items():
        flags = torch.zeros(count, dtype=torch.bool)
        flags[generator.permutation(count)[: round(share * count)]] = True
        chosen[name] = flags
    return [_of_neurons(model, chosen)]


def _of_neurons(model: PreTrainedModel, chosen: dict[str, torch.Tensor]) -> Mask:
    turned, mask = transposed_weights(model), {}
    for name, parameter in model.named_parameters():
        flags = of_neurons(chosen, name, parameter.shape, transposed=name in turned)
        mask[name] = BitMask.from_bool(flags.expand(parameter.shape))
    return mask


PLACES: dict[str, Callable[[PreTrainedModel, float, int], list[Mask]]] = {
    "random": lambda model, density, seed: random_copies(model, density, seed, 1),
    "layer": one_layer,
    "feed_forward": lambda model, density, seed: [feed_forward_mask(model)],
    "neurons": neurons,
    "copies": lambda model, density, seed: random_copies(model, density, seed, 2),
}
"""Kinds of planted sets: (model, density, seed) -> masks, of which each gets all facts."""


# -------------------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Judgement:
    """How well a score finds a set P of a share π of the weights.

    Attributes:
        precision: of as many of the largest scores as P has weights, the share that is in P; equal
            scores at the threshold count in proportion, as if drawn. Recall is the same there.
        lift: precision / π; 1 is chance.
        auprc: area under precision against recall over all thresholds, as a sum of steps; π is
            chance.
        lift_within: mean of the lift in each tensor, of as many of its largest scores as P has of
            its weights, over the tensors of which P has some weights but not all; ``None``: there
            are none.
        curve: (share of the weights, precision, recall) at ``RATIOS``.
    """

    precision: float
    lift: float
    auprc: float
    lift_within: float | None
    curve: list[tuple[float, float, float]]


def judge(scores: ScoreStream, planted: Mask) -> Judgement:
    """Compare the scores of all weights with the set that is known.

    All scores are held and sorted: some 30 bytes a weight.

    Args:
        scores: of every weight of ``planted``, finite and at least 0.

    Raises:
        WagleError: a score is infinite or not a number; the message names the tensor.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in planted}
    for name, chunk in ordered_map(lambda item: (item[0], item[2]().numpy()), scores()):
        if not np.isfinite(chunk).all():
            raise WagleError(f"scores of {name} are infinite or not numbers")
        parts[name].append(chunk)
    tensors = {name: np.concatenate(chunks) for name, chunks in parts.items() if chunks}
    truth = {name: planted[name].to_bool().numpy().reshape(-1) for name in tensors}
    lifts = []
    for name, values in tensors.items():
        count = int(truth[name].sum())
        if 0 < count < len(values):
            found = _Ranked(values, truth[name]).hits(count)
            lifts.append(found / count * len(values) / count)
    ranked = _Ranked(*(np.concatenate(list(of.values())) for of in (tensors, truth)))
    count = ranked.planted
    precision = ranked.hits(count) / count
    curve = []
    for ratio in RATIOS:
        if k := int(ratio * ranked.total):
            hits = ranked.hits(k)
            curve.append((ratio, hits / k, hits / count))
    return Judgement(
        precision,
        precision * ranked.total / count,
        ranked.average_precision(),
        float(np.mean(lifts)) if lifts else None,
        curve,
    )


class _Ranked:
    """Scores of at least 0 in descending order, equal ones together.

    Attributes:
        total: how many there are.
        planted: how many of them are in the set.
    """

    def __init__(self, scores: np.ndarray, truth: np.ndarray) -> None:
        # A non-negative float orders as its bits do, and integers are sorted several times as fast.
        patterns = np.abs(scores).view(f"uint{8 * scores.itemsize}").astype(np.uint64)
        keys = np.sort((patterns << 1) | truth)[::-1]
        ordered = keys >> 1
        last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self.total, self.planted = len(scores), int(truth.sum())
        self._seen = last + 1  # scores that reach each threshold, and how many of them are planted
        self._found = np.cumsum(keys & 1)[last].astype(float)

    def hits(self, count: int) -> float:
        """How many planted weights are among the ``count`` largest scores, equals in proportion."""
        edges = np.append(0, self._seen), np.append(0, self._found)
        return float(np.interp(count, *edges))

    def average_precision(self) -> float:
        """Σ over thresholds of (recall − recall before) · precision."""
        gained = np.diff(self._found, prepend=0)
        return float((gained / self.planted * (self._found / self._seen)).sum())


def as_scores(mask: Mask) -> ScoreStream:
    """A mask as scores: 1 for what it selects, else 0."""

    def chunks() -> Iterator[tuple[str, int, Callable[[], torch.Tensor]]]:
        for name, bits in mask.items():
            yield name, 0, partial(_flags, bits)

    return chunks


def _flags(bits: BitMask) -> torch.Tensor:
    return bits.to_bool().float().view(-1)
