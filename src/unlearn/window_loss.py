"""Where the gradients of a step are taken: at the weights, or around them (SAM, smoothing).

The forget term alone is looked at from elsewhere, at θ + ε; the retain term's gradient is taken at
θ. A displacement ε lives on the weights that may change: of 1000 weights with 100 selected it is a
hundred numbers, and so are the originals, which are put back bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from wagle import shards
from wagle.dataset.pairing import FORGET, RETAIN
from wagle.errors import ConfigError
from wagle.optim.packed import PackedOptimizer
from wagle.training.loop import Batch, Loss, Window, own_batches
from wagle.unlearn.objectives import Objective, ReferenceModel, total

SMOOTHING_DRAWS = 3  # gradients whose mean is taken, as Fan et al. have it


@dataclass
class WindowLoss:
    """The mean of an objective over a window's batches, with its gradients taken as asked for.

    Fan et al. 2025 (arXiv 2502.05374). With SAM the forget term's gradient is taken at θ + ρ g/‖g‖,
    g its gradient over the whole window at θ; with smoothing it is the mean of three at θ + N(0,
    σ²), drawn anew for each step.

    Attributes:
        sam_rho: ρ; 0: no SAM.
        smoothing_std: σ; 0: no smoothing.
        seed: of the noise, with the number of the step.
    """

    objective: Objective
    reference: ReferenceModel
    optimizer: PackedOptimizer
    sam_rho: float
    smoothing_std: float
    seed: int
    _step: int = field(default=0, init=False)
    _ascent: list[torch.Tensor] = field(default_factory=list, init=False)

    def prepare(self, model: PreTrainedModel, step: int, window: Window) -> None:
        """Find where the step's gradients are to be taken; leaves no gradients behind."""
        self._step = step
        if not self.sam_rho:
            return
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for batch, weight, _ in own_batches(window):
            (self._forget_term(model, batch, window) * weight).backward()
            for parameter in parameters:
                if parameter.grad is not None:
                    self.optimizer.pack_gradient(parameter)
        packed = self.optimizer.packed_gradients
        shards.add_up(packed.items())
        scale = self.sam_rho / (shards.total_norm(list(packed.items())) + 1e-12)
        weights = zip(parameters, self.optimizer.packed_weights(), strict=True)
        self._ascent = [
            packed[p] * scale.to(w.device) if p in packed else torch.zeros_like(w)
            for p, w in weights
        ]
        self.optimizer.zero_grad()

    def share(self, model: PreTrainedModel, batch: Batch, window: Window) -> Iterator[Loss]:
        """A batch's part of the window's loss, as :data:`wagle.training.loop.Share` has it."""
        if not self.sam_rho and not self.smoothing_std:
            terms = self.objective.terms(model, batch, self.reference)
            value = total(terms) / len(window)  # the published mean of batches
            yield Loss(value, {name: term / len(window) for name, term in terms.items()})
            return
        draws = SMOOTHING_DRAWS if self.smoothing_std else 1
        for number in range(draws):
            with _displaced(self.optimizer, self._displacement(number)):
                forget = self._forget_term(model, batch, window) / draws
                yield Loss(forget, {FORGET: forget}, last=False)
        retain = self.objective.part(RETAIN, model, batch, self.reference)
        if retain is not None:
            retain = retain / len(window)
            yield Loss(retain, {RETAIN: retain})

    def _forget_term(self, model: PreTrainedModel, batch: Batch, window: Window) -> torch.Tensor:
        term = self.objective.part(FORGET, model, batch, self.reference)
        if term is None:
            raise ConfigError(
                "unlearn.sam_rho and unlearn.smoothing_std are about the forget term, and this "
                "method has none; leave them at 0"
            )
        return term / len(window)

    def _displacement(self, number: int) -> list[torch.Tensor]:
        """ε of every parameter's selected weights."""
        if self.sam_rho:
            return self._ascent
        key = random.Random(f"smoothing {self.seed} {self._step} {number}").getrandbits(62)
        generators: dict[torch.device, torch.Generator] = {}
        noise = []
        for weights in self.optimizer.packed_weights():
            if weights.device not in generators:
                generators[weights.device] = torch.Generator(weights.device).manual_seed(key)
            drawn = torch.randn(
                weights.shape, generator=generators[weights.device], device=weights.device
            )
            noise.append(drawn * self.smoothing_std)
        return noise


@contextmanager
def _displaced(optimizer: PackedOptimizer, displacement: Sequence[torch.Tensor]) -> Iterator[None]:
    """Selected weights are elsewhere inside the context, and bit for bit what they were after it.

    Args:
        displacement: a vector for each of ``optimizer.packed_weights()``, in float32 or the dtype
            of the weights.
    """
    before = [weights.clone() for weights in optimizer.packed_weights()]
    pairs = zip(before, displacement, strict=True)
    optimizer.load_packed_weights([(weights + by).to(weights.dtype) for weights, by in pairs])
    try:
        yield
    finally:
        optimizer.load_packed_weights(before)


class WeightAverage:
    """The mean of the weights after each step from one on.

    Izmailov et al. 2018 (arXiv 1803.05407). Example: of 10 steps, with ``start`` 8, it is the mean
    over three: after the steps 8, 9 and 10.

    Args:
        optimizer: whose selected weights are averaged.
        start: steps done when the first weights count; ``None``: nothing is averaged.
        steps: of the whole training.

    Attributes:
        vectors: the means so far, by the parameter's number, float32 or wider.

    Raises:
        ConfigError: training ends before.
    """

    def __init__(self, optimizer: PackedOptimizer, start: int | None, steps: int) -> None:
        if start is not None and start > steps:
            raise ConfigError(
                f"unlearn.average_from is {start}, but there are {steps} steps; give 1 to {steps}"
            )
        self.optimizer = optimizer
        self.start = start
        self.vectors: dict[str, torch.Tensor] = {}
        if start is not None:
            for number, weights in enumerate(optimizer.packed_weights()):
                wide = torch.promote_types(weights.dtype, torch.float32)
                self.vectors[f"average.{number}"] = torch.zeros_like(weights, dtype=wide)

    @torch.no_grad()
    def add(self, done: int) -> None:
        """Count the weights as they are, after so many steps, where it is time for them."""
        if self.start is None or done < self.start:
            return
        count = done - self.start + 1
        for mean, weights in zip(
            self.vectors.values(), self.optimizer.packed_weights(), strict=True
        ):
            mean.add_((weights - mean) / count)

    def install(self) -> None:
        """Replace the selected weights by their means."""
        if self.start is not None:
            weights = zip(self.vectors.values(), self.optimizer.packed_weights(), strict=True)
            self.optimizer.load_packed_weights([mean.to(w.dtype) for mean, w in weights])
