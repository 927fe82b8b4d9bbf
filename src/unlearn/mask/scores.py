"""Attribution scores: how much each weight matters for forgetting.

To add a score: a function of a weight tensor and its gradients, and a line in ``SCORES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from src.unlearn.mask.tensor_file import TensorFile

ScoreStream = Callable[[], Iterator[tuple[str, torch.Tensor]]]
"""Called anew for every pass over the scores; yields (parameter name, float32 scores of the
parameter's shape) in the order of ``named_parameters()``."""

HESSIAN_FLOOR = 1e-12


@dataclass(frozen=True)
class ScoreInputs:
    """What a score may depend on besides the weight and its gradients.

    Attributes:
        mu: the Hessian diagonal μ of the retained model.
        batches: how many published batches each gradient sum runs over.
        accumulation_steps: A; every gradient sum is multiplied by 1/A, as published.
        seed: for random scores.
    """

    mu: float
    batches: int
    accumulation_steps: int
    seed: int


@dataclass(frozen=True)
class Score:
    """A score type.

    Attributes:
        gradients: the kinds of gradient it needs: ``forget``, ``retain``, ``refusal``.
        function: (weight, gradients by kind, inputs, position of the parameter) -> scores of the
            weight's shape. Weight and gradients are float32 (or float64 on request) and share a
            device; gradients carry the published factor 1/A.
    """

    gradients: tuple[str, ...]
    function: Callable[[torch.Tensor, Mapping[str, torch.Tensor], ScoreInputs, int], torch.Tensor]


def _wagle(forget_kind: str) -> Score:
    """|(θ − g_r / μ) · g_f| (Jia et al. 2024, arXiv 2410.17509, eq. 8)."""

    def score(weight, gradients, inputs, position):
        adjusted = weight - gradients["retain"] / inputs.mu
        return adjusted.mul_(gradients[forget_kind]).abs_()

    return Score((forget_kind, "retain"), score)


def _wagle_gauss_newton(weight, gradients, inputs, position):
    """As WAGLE with a Gauss-Newton diagonal: h = (mean over batches of g_r)², at least 1e-12."""
    retain = gradients["retain"]
    mean = retain * (inputs.accumulation_steps / inputs.batches)
    hessian = mean.square_().clamp_(min=HESSIAN_FLOOR)
    return (weight - retain / hessian).mul_(gradients["forget"]).abs_()


def _random(weight, gradients, inputs, position):
    generator = torch.Generator().manual_seed(inputs.seed * 1_000_003 + position)
    return torch.rand(weight.shape, generator=generator)


SCORES: dict[str, Score] = {
    "wagle": _wagle("forget"),
    "wagle_cl": _wagle("refusal"),
    "wagle_gn": Score(("forget", "retain"), _wagle_gauss_newton),
    "gradient": Score(("forget",), lambda weight, gradients, *_: gradients["forget"].abs()),
    "snip": Score(("forget",), lambda weight, gradients, *_: (weight * gradients["forget"]).abs_()),
    "magnitude": Score((), lambda weight, *_: weight.abs()),
    "random": Score((), _random),
}


def score_stream(
    model: torch.nn.Module,
    score_type: str,
    sums: Mapping[str, TensorFile],
    inputs: ScoreInputs,
) -> ScoreStream:
    """Scores of a model's parameters, formed tensor by tensor whenever they are asked for.

    Args:
        sums: gradient sums by kind, as the score type needs them.
        inputs: everything else that scores depend on.
    """
    score = SCORES[score_type]

    def stream() -> Iterator[tuple[str, torch.Tensor]]:
        for position, (name, parameter) in enumerate(model.named_parameters()):
            gradients = {kind: sums[kind].read(name) for kind in score.gradients}
            if inputs.accumulation_steps != 1:
                gradients = {k: g / inputs.accumulation_steps for k, g in gradients.items()}
            dtype = next((g.dtype for g in gradients.values()), torch.float32)
            weight = parameter.detach().to("cpu", dtype)
            yield name, score.function(weight, gradients, inputs, position)

    return stream
