"""Attribution scores: how much each weight matters for forgetting.

To add a score: a function like these, and a line in :mod:`wagle.catalogue`, where their form is
explained (:class:`wagle.entries.Score`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from wagle.catalogue import SCORES
from wagle.entries import SQUARES
from wagle.unlearn.mask.parts import flat_part, part
from wagle.unlearn.mask.tensor_file import TensorFile

ScoreStream = Callable[[], Iterator[tuple[str, int, Callable[[], torch.Tensor]]]]
"""Called anew for every pass over the scores; yields (parameter name, start, form) in the order of
``named_parameters()``, chunk after chunk. ``form()`` gives the flat scores of the weights from
``start`` of the flat parameter on; whoever reads the stream may call it in any thread. Of several
processes each has a stream of its part of every parameter (:mod:`wagle.unlearn.mask.parts`)."""

CHUNK = 1 << 18  # weights per chunk, a multiple of 8: all that is made of them stays in the cache
RANDOM_BLOCK = 1 << 17  # weights per state of the random generator: part of what a seed means

HESSIAN_FLOOR = 1e-12
FISHER_FLOOR = 1e-20  # far below all but zeros, so that it ranks nothing


@dataclass(frozen=True)
class ScoreInputs:
    """What a score may depend on besides the weight and its gradients.

    Attributes:
        mu: the Hessian diagonal μ of the retained model.
        batches: how many published batches each gradient sum runs over.
        examples: how many examples.
        accumulation_steps: A; every gradient sum is multiplied by 1/A, as published.
        seed: for random scores.
    """

    mu: float
    batches: int
    examples: int
    accumulation_steps: int
    seed: int


Gradients = Mapping[str, torch.Tensor]
"""Gradients of a chunk of weights by kind: ``forget``, ``retain``, ``refusal``; and mean squares,
such as ``retain_squares``."""

Place = tuple[int, int]
"""Where a chunk of weights lies: (position of the parameter in the model, start of the chunk)."""


def wagle(
    weight: torch.Tensor, gradients: Gradients, inputs: ScoreInputs, where: Place
) -> torch.Tensor:
    """|(θ − g_r / μ) · g_f| (Jia et al. 2024, arXiv 2410.17509, eq. 8)."""
    return _wagle(weight, gradients["retain"], gradients["forget"], inputs.mu)


def wagle_refusal(
    weight: torch.Tensor, gradients: Gradients, inputs: ScoreInputs, where: Place
) -> torch.Tensor:
    """As WAGLE, with the gradient of the refusals' loss in place of g_f."""
    return _wagle(weight, gradients["retain"], gradients["refusal"], inputs.mu)


def _wagle(
    weight: torch.Tensor, retain: torch.Tensor, forget: torch.Tensor, mu: float
) -> torch.Tensor:
    adjusted = weight - retain / mu
    return adjusted.mul_(forget).abs_()


def wagle_gauss_newton(
    weight: torch.Tensor, gradients: Gradients, inputs: ScoreInputs, where: Place
) -> torch.Tensor:
    """As WAGLE with a Gauss-Newton diagonal: h = (mean over batches of g_r)², at least 1e-12."""
    retain = gradients["retain"]
    mean = retain * (inputs.accumulation_steps / inputs.batches)
    hessian = mean.square_().clamp_(min=HESSIAN_FLOOR)
    return (weight - retain / hessian).mul_(gradients["forget"]).abs_()


def wagle_fisher(
    weight: torch.Tensor, gradients: Gradients, inputs: ScoreInputs, where: Place
) -> torch.Tensor:
    """As WAGLE with the Fisher information of the retain examples as diagonal: h = F_r.

    F_r is the mean over examples of g², at least 1e-20, and so g_r is the mean over batches here,
    the gradient of the same loss: θ − g_r / F_r does not change when that loss is scaled.
    """
    mean = gradients["retain"] * (inputs.accumulation_steps / inputs.batches)
    fisher = gradients["retain_squares"].clamp(min=FISHER_FLOOR)
    return (weight - mean.div_(fisher)).mul_(gradients["forget"]).abs_()


def fisher_ratio(
    weight: torch.Tensor, gradients: Gradients, inputs: ScoreInputs, where: Place
) -> torch.Tensor:
    """F_f / (F_r + 1e-20), F the mean over examples of g².

    Foster et al. 2024 (arXiv 2308.07707), who select what exceeds α and whose program squares the
    gradients of batches; Cha et al. 2024 (arXiv 2408.06621).
    """
    return gradients["forget_squares"] / (gradients["retain_squares"] + FISHER_FLOOR)


def gradient(
    weight: torch.Tensor, gradients: Gradients, inputs: ScoreInputs, where: Place
) -> torch.Tensor:
    """|g_f|."""
    return gradients["forget"].abs()


def snip(
    weight: torch.Tensor, gradients: Gradients, inputs: ScoreInputs, where: Place
) -> torch.Tensor:
    """|θ · g_f| (Lee et al. 2019, arXiv 1810.02340)."""
    return (weight * gradients["forget"]).abs_()


def magnitude(
    weight: torch.Tensor, gradients: Gradients, inputs: ScoreInputs, where: Place
) -> torch.Tensor:
    """|θ|."""
    return weight.abs()


def random(
    weight: torch.Tensor, gradients: Gradients, inputs: ScoreInputs, where: Place
) -> torch.Tensor:
    """Uniform in [0, 1), the same for a seed whatever the chunks are."""
    position, start = where
    stop = start + len(weight)
    scores = torch.empty_like(weight)
    for block in range(start - start % RANDOM_BLOCK, stop, RANDOM_BLOCK):
        digest = hashlib.sha256(repr((inputs.seed, (position, block))).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        ahead = max(start - block, 0)  # of the block, what other processes have
        drawn = scores.new_empty(min(stop - block, RANDOM_BLOCK)).uniform_(generator=generator)
        scores[block + ahead - start : block + len(drawn) - start] = drawn[ahead:]
    return scores


def score_stream(
    model: torch.nn.Module,
    score_type: str,
    sums: Mapping[str, TensorFile],
    inputs: ScoreInputs,
) -> ScoreStream:
    """Scores of this process's part of a model, formed chunk by chunk whenever they are asked for.

    Args:
        score_type: one that is not grouped (:mod:`wagle.unlearn.mask.grouped_scores`).
        sums: gradient sums by kind, as the score type needs them.
        inputs: everything else that scores depend on.
    """
    score = SCORES[score_type]
    function = score.load()
    divisors = {
        kind: inputs.examples if kind.endswith(SQUARES) else inputs.accumulation_steps
        for kind in score.sums
    }

    @torch.no_grad()
    def form(where: Place, weights: torch.Tensor, sums_of: Gradients) -> torch.Tensor:
        gradients = {kind: s / divisors[kind] for kind, s in sums_of.items()}
        dtype = next((g.dtype for g in gradients.values()), torch.float32)
        return function(weights.to("cpu", dtype), gradients, inputs, where)

    def chunks() -> Iterator[tuple[str, int, Callable[[], torch.Tensor]]]:
        for position, (name, parameter) in enumerate(model.named_parameters()):
            mine, weights = part(parameter), flat_part(parameter)
            sums_of = {
                kind: sums[kind].read(name).view(-1)[mine.start : mine.stop] for kind in score.sums
            }
            for chunk in chunks_of(mine):
                start = mine.start + chunk.start
                of_chunk = {kind: s[chunk] for kind, s in sums_of.items()}
                yield name, start, partial(form, (position, start), weights[chunk], of_chunk)

    return chunks


def chunks_of(mine: range) -> Iterator[slice]:
    """Chunks of a process's part, counted from its start; they end at the same places in all."""
    first = -mine.start % CHUNK or CHUNK
    for start in (0, *range(first, len(mine), CHUNK)) if mine else ():
        yield slice(start, min(start + CHUNK, len(mine)) if start else min(first, len(mine)))
