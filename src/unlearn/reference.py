"""The model before unlearning: its losses once, or the model itself at the price of the mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from src.dataset.encoding import pad_batch
from src.dataset.pairing import UnlearnDataset
from src.optim.bitmask import BitMask, Mask
from src.unlearn.objectives.losses import example_cross_entropy, forward_logits


@torch.no_grad()
def reference_losses(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    view: str,
    *,
    batch_size: int,
    pad_token_id: int,
) -> torch.Tensor:
    """Token-mean cross-entropy of one view of every forget row, float32 ``(len(dataset),)``.

    The model runs in eval mode; with the model as it is before unlearning these are CE_ref.
    """
    was_training = model.training
    model.eval()
    examples = [dataset.example(view, (0, index)) for index in range(len(dataset))]
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids))
    losses = torch.empty(len(examples))
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="reference losses", unit="batch", disable=None):
        chosen = order[start : start + batch_size]
        batch = pad_batch([examples[index] for index in chosen], pad_token_id)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        losses[chosen] = example_cross_entropy(forward_logits(model, batch), batch["labels"]).cpu()
    model.train(was_training)
    return losses


class SwappedWeights:
    """The reference model inside the current one: the selected weights' original values.

    Unlearning changes only selected weights, so ρ·N stored values turn the current model back into
    the original for a forward pass, instead of a second copy of all N weights.

    Args:
        model: as it is before unlearning.
        mask: the selected weights; ``None`` means that all weights may change, which costs a full
            second set of weights.
    """

    def __init__(self, model: PreTrainedModel, mask: Mask | None) -> None:
        self.model = model
        self.selected = {
            name: BitMask.full(parameter.shape, True) if mask is None else mask[name]
            for name, parameter in model.named_parameters()
        }
        self.stored = {
            name: _pick(parameter, self.selected[name])
            for name, parameter in model.named_parameters()
            if self.selected[name].count()
        }

    @contextmanager
    def __call__(self) -> Iterator[PreTrainedModel]:
        """Run the original model: its weights are in place inside the context, in eval mode."""
        was_training = self.model.training
        self.model.eval()
        self._exchange()
        try:
            yield self.model
        finally:
            self._exchange()
            self.model.train(was_training)

    @torch.no_grad()
    def _exchange(self) -> None:
        parameters: Mapping[str, torch.nn.Parameter] = dict(self.model.named_parameters())
        for name, stored in self.stored.items():
            parameter = parameters[name]
            current = _pick(parameter, self.selected[name])
            chosen = self.selected[name].to(parameter.device).to_bool()
            parameter.masked_scatter_(chosen, stored)
            self.stored[name] = current


@torch.no_grad()
def _pick(parameter: torch.Tensor, mask: BitMask) -> torch.Tensor:
    return parameter.detach()[mask.to(parameter.device).to_bool()].clone()
