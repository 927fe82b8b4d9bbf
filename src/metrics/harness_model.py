"""lm-eval's model for Hugging Face models, with this program's progress instead of its own bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.terminal import Progress


class _Counter(CacheHook):
    """Is told of every answered request: lm-eval would put it into a cache, here it is counted."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(None)
        self._progress = progress

    def add_partial(self, *answered: Any) -> None:
        self._progress.update()


class CountingModel(HFLM):
    """An ``HFLM`` that shows how many of a task's requests have been answered.

    Args:
        model, tokenizer: in memory.
        batch_size: sequences in a forward pass.
        description: what is shown in front, such as the task's name.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        description: str,
    ) -> None:
        super().__init__(model, tokenizer=tokenizer, batch_size=batch_size)
        self._description = description

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        with Progress(self._description, len(requests), "request") as progress:
            self.cache_hook = _Counter(progress)
            return super().loglikelihood(requests, disable_tqdm=True)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        with Progress(self._description, len(requests), "request") as progress:
            self.cache_hook = _Counter(progress)
            return super().generate_until(requests, disable_tqdm=True)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        # Texts are cut into windows first, and only windows are scored one after another.
        self.cache_hook = CacheHook(None)
        with Progress(self._description, None, "window") as self._windows:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        scores = super()._loglikelihood_tokens(requests, True, override_bs)
        if requests and requests[0][0] is None:  # windows are in no cache, and so have no key
            self._windows.update(len(requests))
        return scores
