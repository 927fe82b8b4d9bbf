"""PDU: forgetting under a constraint, that the retain loss stays below a bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from wagle import ranks
from wagle.dataset.pairing import FORGET
from wagle.model.head import Head, widen
from wagle.unlearn.objectives.base import Batch, ReferenceModel
from wagle.unlearn.objectives.with_retain import WithRetain


@dataclass(frozen=True)
class PrimalDual(WithRetain):
    """PDU: γ_f · mean over labelled tokens of (max_v z − mean_v z)² + λ · (L_retain − ε).

    Entesari et al. 2025 (arXiv 2506.05314). The forget term is 0 where all logits are equal.
    Open-unlearning takes its mean over prompt and padding too; here it is over the positions that
    predict labelled tokens.

    λ begins at γ. From epoch ``warmup_epochs`` on, after each step, λ ← max(0, λ + η · g), where g
    is the mean of L_retain − ε over the step's batches, which is the gradient of λ. Example: with
    ε = 0.3 and η = 1 a step with a retain loss of 0.8 raises λ from 1 to 1.5, and one of 0.1 lowers
    it to 1.3.

    Attributes:
        epsilon: ε.
        step_size: η.
        warmup_epochs: epochs in which λ stays as it is.
        state: λ, as ``multiplier``, a float32 scalar; the log has it as it is after each step.
    """

    epsilon: float
    step_size: float
    warmup_epochs: int

    def __post_init__(self) -> None:
        super().__post_init__()
        multiplier = torch.tensor(self.gamma, requires_grad=True)
        object.__setattr__(self, "state", {"multiplier": multiplier})

    def forget_loss(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        head = Head.of(model)
        states, _, _ = head.predictions(batch[FORGET])
        return head.measure(_squared_peak, states).mean()

    def weigh_retain(self, loss: torch.Tensor) -> torch.Tensor:
        return self.state["multiplier"].to(loss.device) * (loss - self.epsilon)

    def after_step(self, epoch: int) -> None:
        multiplier = self.state["multiplier"]
        assert multiplier.grad is not None  # every process has run a batch
        ranks.add_up(multiplier.grad)
        with torch.no_grad():
            if epoch >= self.warmup_epochs:
                multiplier.add_(multiplier.grad, alpha=self.step_size).clamp_(min=0)
        multiplier.grad = None


def _squared_peak(logits: torch.Tensor) -> torch.Tensor:
    logits = widen(logits)
    return (logits.amax(dim=-1) - logits.mean(dim=-1)).square()
