"""lm-eval's model for Hugging Face models, with this program's progress instead of its own bars."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.metrics.partial_work import PartialWork
from wagle.terminal import Progress


class _Answers(CacheHook):
    """Is told of every answered request: lm-eval would put it into a cache, here it is counted.

    Args:
        asked: what each request asks; two may ask the same.
        known: number and answer of each request that an earlier attempt has had answered.

    Attributes:
        by_number: the answers.
    """

    def __init__(
        self, asked: Sequence[str], known: Sequence[tuple[int, Any]], progress: Progress
    ) -> None:
        super().__init__(None)
        self.by_number = dict(known)
        self._progress = progress
        self._numbers: dict[str, deque[int]] = defaultdict(deque)
        for number, request in enumerate(asked):
            if number not in self.by_number:
                self._numbers[request].append(number)
        progress.update(len(self.by_number))

    def add_partial(self, kind: str, request: Sequence[Any], answer: Any) -> None:
        self.by_number[self._numbers[repr(request)].popleft()] = answer
        self._progress.update()


class CountingModel(HFLM):
    """An ``HFLM`` that shows how many of a task's requests have been answered.

    Whole batches of answers are kept, so that another attempt goes on with the next batch.

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
        self._partial_work = partial(PartialWork, model, description)
        self._description = description
        self._between_batches: Callable[[], None] = lambda: None

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Any]:
        return list(map(tuple, self._answer(super().loglikelihood, requests)))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return self._answer(super().generate_until, requests)

    def _answer(self, answer: Callable[..., Any], requests: Sequence[Any]) -> list[Any]:
        """The answers to all requests, of which those are asked that are not known yet."""
        asked = [repr(request.args) for request in requests]
        work = self._partial_work(len(asked), lambda: [asked, self.batch_size], "request")
        with Progress(self._description, len(requests), "request") as progress, work:
            self.cache_hook = answers = _Answers(asked, work.found or [], progress)
            known = answers.by_number
            self._between_batches = lambda: work.note(len(known), lambda: list(known.items()))
            others = [number for number in range(len(requests)) if number not in known]
            found = answer([requests[number] for number in others], disable_tqdm=True)
            known.update(zip(others, found, strict=True))
            self._between_batches()  # a signal may have come in the last one
        return [known[number] for number in range(len(requests))]

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        self._between_batches()  # all requests of earlier ones have been answered
        return super()._model_call(*args, **kwargs)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        self._between_batches()
        return super()._model_generate(*args, **kwargs)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        # Texts are cut into windows first, and only windows are scored one after another.
        asked = [repr(request.args) for request in requests]
        work = self._partial_work(None, lambda: [asked, self.batch_size], "window")
        self._known = deque(work.found or [])
        self._scores: list[tuple[float, bool]] = []
        self._between_batches = lambda: work.note(len(self._scores), lambda: self._scores)
        self.cache_hook = CacheHook(None)
        with Progress(self._description, None, "window") as self._windows, work:
            found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
            self._between_batches()
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not requests or requests[0][0] is not None:
            return super()._loglikelihood_tokens(requests, True, override_bs)
        # windows are in no cache, and so have no key
        if self._known:
            scores = [tuple(self._known.popleft()) for _ in requests]
        else:
            scores = super()._loglikelihood_tokens(requests, True, override_bs)
        self._scores += scores
        self._windows.update(len(requests))
        return scores
