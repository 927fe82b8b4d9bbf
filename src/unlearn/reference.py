"""The model before unlearning: its losses once, or the model itself at the price of the mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from wagle import shards
from wagle.dataset.pairing import UnlearnDataset
from wagle.metrics.likelihood import token_log_probs
from wagle.optim.bitmask import BitMask, Mask
from wagle.optim.chunks import ParameterChunk, cut


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
    log_probs = token_log_probs(
        model,
        [dataset.example(view, (0, index)) for index in range(len(dataset))],
        batch_size=batch_size,
        pad_token_id=pad_token_id,
        description=f"reference losses, {view}",
    )
    return torch.tensor([-float(row.mean()) for row in log_probs])


class SwappedWeights:
    """The reference model inside the current one: the selected weights' original values.

    Unlearning changes only selected weights, so ρ·N stored values turn the current model back into
    the original for a forward pass, instead of a second copy of all N weights.

    Args:
        model: as it is before unlearning.
        mask: the weights that may change; ``None`` means all of them, which costs a full second set
            of weights.

    Attributes:
        nbytes: memory that the stored values take.
    """

    def __init__(self, model: PreTrainedModel, mask: Mask | None) -> None:
        self.model = model
        self._whole: dict[torch.nn.Parameter, torch.Tensor] = {}
        self._packed: dict[torch.nn.Parameter, tuple[Sequence[ParameterChunk], torch.Tensor]] = {}
        for name, parameter in model.named_parameters():
            weights, own = shards.local(parameter.detach()), shards.span(parameter)
            selected = BitMask.full((len(own),), True)
            if mask is not None:
                selected = mask[name].part(own.start, own.stop)
            count = selected.count()
            if count == parameter.numel():
                self._whole[parameter] = weights.clone()
            elif count:
                bits = selected.to(parameter.device)
                stored = weights.reshape(-1).masked_select(bits.to_bool())
                self._packed[parameter] = cut(weights, bits), stored

    @property
    def nbytes(self) -> int:
        """Size of the stored weights."""
        packed = (stored for _, stored in self._packed.values())
        return sum(stored.nbytes for stored in (*self._whole.values(), *packed))

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

    def _exchange(self) -> None:
        for parameter, stored in self._whole.items():
            self._whole[parameter], parameter.data = parameter.data, stored
        for parameter, (chunks, stored) in self._packed.items():
            exchange_selected(shards.local(parameter.detach()), chunks, stored)


def exchange_selected(
    weights: torch.Tensor, chunks: Sequence[ParameterChunk], packed: torch.Tensor
) -> None:
    """Swap the selected weights with packed ones, both in place.

    Args:
        weights: contiguous, of any shape and dtype.
        chunks: those of the weights by their mask (:func:`wagle.optim.chunks.cut`).
        packed: one for each selected weight, of the same dtype, in row-major order.
    """
    flat = weights.view(-1)
    for chunk in chunks:
        positions, stored = chunk.positions(), packed[chunk.packed]
        current = chunk.gather(flat, positions).clone()
        chunk.scatter(flat, positions, stored)
        stored.copy_(current)
