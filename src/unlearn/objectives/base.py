"""The base of unlearning objectives: a loss that is a sum of terms over the views of a batch."""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, Self

import torch
from transformers import PreTrainedModel

from wagle.families import Family
from wagle.unlearn.objectives.losses import View

Batch = Mapping[str, View]
"""The views of a batch by name."""

Terms = dict[str, torch.Tensor]
"""Scalars by ``FORGET`` or ``RETAIN``, whichever they are about: a loss is their sum."""

ReferenceModel = Callable[[], AbstractContextManager[PreTrainedModel]]
"""Opens a context in which the model before unlearning can be run."""


def no_reference() -> AbstractContextManager[PreTrainedModel]:
    """Stands for the model before unlearning where an objective has not asked for it."""
    raise TypeError("an objective that runs the model before unlearning sets needs_reference_model")


def total(terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The sum of an objective's terms, in their order."""
    return functools.reduce(operator.add, terms.values())


class Objective(ABC):
    """A loss over one batch; smaller means better unlearned.

    Subclasses are dataclasses whose fields are the method's own hyper-parameters
    (``unlearn.<METHOD>.<field>``).

    Attributes:
        views: the views of a batch that the loss reads.
        reference_losses: views whose loss under the model before unlearning is needed; they are
            computed once before training and arrive as ``view["reference_loss"]``, ``(B,)``.
        needs_reference_model: whether the loss runs the model before unlearning itself.
        extrapolation: at the end θ becomes θ₀ + this · (θ − θ₀), θ₀ the weights before training.
        state: tensors that :meth:`after_step` changes in place; checkpoints hold them.
    """

    views: ClassVar[tuple[str, ...]]
    reference_losses: ClassVar[tuple[str, ...]] = ()
    needs_reference_model: ClassVar[bool] = False
    extrapolation: ClassVar[float] = 1.0
    state: ClassVar[Mapping[str, torch.Tensor]] = {}

    @abstractmethod
    def terms(self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel) -> Terms:
        """The summands of a batch's loss, weighted as they stand in it.

        They have gradients to ``model``'s parameters. For example, GradDiff's are
        ``{"forget": -2.1, "retain": 0.9}`` where CE is 2.1 and 0.9, and its loss is −1.2.
        """

    def __call__(
        self, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor:
        """The scalar loss of a batch: the sum of its terms, in their order."""
        return total(self.terms(model, batch, reference))

    def part(
        self, name: str, model: PreTrainedModel, batch: Batch, reference: ReferenceModel
    ) -> torch.Tensor | None:
        """One of the terms, for who needs it by itself; ``None`` where there is no such term."""
        return self.terms(model, batch, reference).get(name)

    def after_step(self, epoch: int) -> None:  # noqa: B027 - most objectives learn nothing
        """Called after the backward passes of a step, in an epoch counted from 0."""

    def logged(self) -> dict[str, float]:
        """The scalars of the state, for the log."""
        found = {}
        for name, value in self.state.items():
            if value.dim() == 0:
                found[name] = float(value.detach())
        return found

    def fitted(self, family: Family | None, layers: int) -> Self:
        """The same objective, with what is not set and follows from the model.

        Args:
            family: of the model, where it is known.
            layers: how many decoder blocks it has.
        """
        return self

    def trainable(self, model: PreTrainedModel) -> set[str] | None:
        """Names of the parameters that are updated where no mask is given; ``None``: all of them.

        Asked once, before anything is computed, with or without a mask.

        Raises:
            ConfigError: the hyper-parameters do not fit the model.
        """
        return None
