"""Texts that are continued by steps that are recorded once and then started as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from wagle import devices, shards
from wagle.metrics.continuation import LEAST_COLUMNS, CachedTexts, InPlaceCache


class ReplayedTexts(CachedTexts):
    """As :class:`CachedTexts`, whose steps a CUDA device takes without waiting for the host.

    A recording has one shape, so steps have few: all places for texts, taken or not; one token of
    each, or one and the longest draft; and a power of two of the cache's columns. With 32 places
    and at most 200 tokens a text there are two, (32, 1) and (32, 9) tokens with 208 columns, and
    with 1,000 tokens six. What is read before texts are continued (their prompts) is not recorded.
    """

    def __init__(
        self, model: PreTrainedModel, capacity: int, limit: int, pad_token_id: int
    ) -> None:
        super().__init__(model, capacity, limit, pad_token_id)
        self._capacity = capacity
        self._cache = InPlaceCache(model, capacity, self._columns, least=self._columns)
        self._recorder = devices.Recorder(model.device)
        self._steps: dict[tuple[int, int], _Step] = {}

    @staticmethod
    def is_for(model: PreTrainedModel) -> bool:
        """Whether the model's device records, and its passes are the device's work alone."""
        return devices.can_record(model) and not shards.is_sharded(model)

    def _rows_of_step(self) -> int:
        return self._capacity

    def _read_all(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """As for :class:`CachedTexts`; the next step writes over the logits."""
        longest = max(map(len, tokens))
        width = 1 if longest == 1 else 1 + self._longest_draft()
        if longest > width:
            return super()._read_all(tokens, starts)
        free = self._capacity - len(tokens)
        inputs = self._lay_out([*tokens, *[[self._pad]] * free], [*starts, *[0] * free], width)
        end = LEAST_COLUMNS
        while end < max(starts) + width:
            end *= 2
        end = min(end, self._columns)

        def work(inputs: torch.Tensor) -> torch.Tensor:
            return self._forward(inputs, slice(0, self._capacity), end, width)

        if (width, end) in self._steps:
            return self._steps[width, end].take(inputs, work)
        # The first step of a shape is not recorded: libraries set up what they need.
        inputs = inputs.to(self._model.device)
        self._steps[width, end] = _Step(self._recorder, inputs)
        return work(inputs)


class _Step:
    """Steps of one shape, after the first of them.

    It does not keep the work: with it the texts would keep themselves, and a cache on the device.

    Args:
        inputs: of the shape, on the device.
    """

    def __init__(self, recorder: devices.Recorder, inputs: torch.Tensor) -> None:
        self._recorder, self._inputs = recorder, inputs
        self._replay: Callable[[], torch.Tensor] | None = None

    def take(
        self, inputs: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Do the work, the same each time, with new inputs."""
        self._inputs.copy_(inputs)
        if self._replay is None:
            self._replay = self._recorder.record(lambda: work(self._inputs))
        return self._replay()
