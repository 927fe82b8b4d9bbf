"""Texts that are being continued together, and the ways to read what follows each of them.

When most rows repeat themselves, as those of unlearned models often do until the length limit, what
they would go on with is read along and accepted as far as it is what the model chooses: the same
answers in fewer steps (prompt lookup decoding, a form of Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

import inspect
import math
import statistics
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache, PreTrainedModel

from wagle import devices
from wagle.metrics.likelihood import LOGITS_CHUNK, batches_by_length, most_likely, most_tokens
from wagle.metrics.trees import count_alike
from wagle.model.reading import additive_mask

LEAST_COLUMNS = 256  # of the cache, unless there can be no more tokens than fewer
REPEATING = 8  # tokens in a row that were as expected of a text that repeats itself
DRAFT = 8  # tokens expected at once
CPU_STEP_TOKENS = 26  # :func:`step_tokens`, as measured with 135M weights
MANY_TOKENS = 512  # that are enough for their number to decide how long a step takes

_step_tokens: WeakKeyDictionary[PreTrainedModel, float] = WeakKeyDictionary()


def step_tokens(model: PreTrainedModel) -> float:
    """For so many tokens a step computes as long as it takes however few they are.

    On a CPU a constant, so that every run takes the same steps. Elsewhere it is measured, once for
    a model: a step that takes 31 ms for one token and 133 ms for 512 takes 0.2 ms for each and
    30.8 ms in any case, as long as for 154; the next power of two is 128, and so is that of another
    run, most likely.
    """
    if devices.on_cpu(model):
        return CPU_STEP_TOKENS
    if model not in _step_tokens:
        one, many = _seconds(model, 1), _seconds(model, MANY_TOKENS)
        each = max((many - one) / (MANY_TOKENS - 1), 1e-9)
        _step_tokens[model] = 2.0 ** round(math.log2(max((one - each) / each, 1.0)))
    return _step_tokens[model]


@torch.inference_mode()
def _seconds(model: PreTrainedModel, count: int) -> float:
    """What a step takes for so many texts of one token; the first of some does not count."""
    ids = torch.zeros((count, 1), dtype=torch.int64, device=model.device)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        float(model(input_ids=ids, use_cache=False).logits[0, 0, 0])  # waits for it
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


class Text:
    """A row's tokens so far, and what they would go on with if they repeated themselves.

    Attributes:
        tokens: those of the prompt, and those chosen.
        streak: how many tokens in a row, the last among them, were as expected.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.streak = 0
        self.tokens: list[int] = []
        self._behind: dict[tuple[int, int], int] = {}  # where each pair of neighbours ended last
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens."""
        for token in tokens:
            self.streak = self.streak + 1 if self.expected(1) == [token] else 0
            if len(self.tokens) > 1:
                self._behind[self.tokens[-2], self.tokens[-1]] = len(self.tokens)
            self.tokens.append(token)

    def expected(self, count: int) -> list[int]:
        """What followed the last two tokens where they last stood together, over and over."""
        before, last = self.tokens[-2:] if len(self.tokens) > 1 else (-1, -1)
        start = self._behind.get((before, last))
        if start is None:
            return []
        period = len(self.tokens) - start
        return [self.tokens[start + i % period] for i in range(count)]


class CachedTexts:
    """Texts that are being continued; all their tokens but the last are in the cache.

    Args:
        capacity: the most texts.
        limit: the most tokens of a text.
    """

    def __init__(
        self, model: PreTrainedModel, capacity: int, limit: int, pad_token_id: int
    ) -> None:
        self.texts: list[Text] = []
        self._model, self._limit, self._pad = model, limit, pad_token_id
        self._columns = limit + DRAFT  # padding may lie behind the limit
        self._cache = InPlaceCache(model, capacity, self._columns, least=LEAST_COLUMNS)

    def add(self, texts: Sequence[Text]) -> None:
        """Read more texts."""
        for part in batches_by_length(
            texts, lambda text: len(text.tokens), tokens=most_tokens(self._model)
        ):
            tokens = [text.tokens[:-1] for text in part]
            if any(tokens):
                self._read(len(self.texts), tokens, [0] * len(part), 1)
            self.texts += part

    def drafts(self) -> list[list[int]]:
        """What each text is expected to go on with, where reading that too is likely to pay.

        With F tokens' worth of fixed cost, r texts and c of them repeating themselves, steps of
        width w and R rows choose (r - c + c w) / (F + R w) tokens in a unit of time, which grows
        with w if c F > R (r - c).
        """
        count, rows = len(self.texts), self._rows_of_step()
        repeating = sum(text.streak >= REPEATING for text in self.texts)
        if repeating and repeating * step_tokens(self._model) > rows * (count - repeating):
            most = self._longest_draft()
            return [text.expected(min(most, self._room(text))) for text in self.texts]
        return [[]] * count

    def _rows_of_step(self) -> int:
        """How many texts a step computes."""
        return len(self.texts)

    def _longest_draft(self) -> int:
        """So that there are not too many logits at once."""
        return min(DRAFT, max(LOGITS_CHUNK // self._rows_of_step() - 1, 0))

    def _room(self, text: Text) -> int:
        """How long a draft may be."""
        return self._limit - len(text.tokens) - 1

    def step(self, drafts: Sequence[list[int]]) -> list[list[int]]:
        """The next tokens of every text: those of its draft that are right, and one more."""
        tokens = [[text.tokens[-1], *draft] for text, draft in zip(self.texts, drafts, strict=True)]
        starts = [len(text.tokens) - 1 for text in self.texts]
        chosen = iter(most_likely(self.read(tokens, starts)).tolist())
        result = []
        for draft in drafts:
            row = list(islice(chosen, len(draft) + 1))
            result.append(row[: count_alike(row, draft) + 1])
        return result

    def keep(self, going: Sequence[bool]) -> None:
        """Drop all texts but these; the last ones take the places of those dropped."""
        count = sum(going)
        free = [place for place in range(count) if not going[place]]
        movers = [place for place in range(count, len(going)) if going[place]]
        for place, mover in zip(free, movers, strict=True):
            self.texts[place] = self.texts[mover]
        del self.texts[count:]
        self._cache.move(movers, free)

    def read(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """Read tokens of every text, each text's from a column of its own on.

        Returns:
            Logits ``(tokens of all texts, vocabulary)``.
        """
        logits = self._read_all(tokens, starts)
        width = logits.shape[1]
        places = [row * width + i for row, own in enumerate(tokens) for i in range(len(own))]
        logits = logits.flatten(0, 1)
        return logits if len(places) == len(logits) else logits[places]

    def _read_all(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """As :meth:`read`; logits ``(texts or more, longest or more, vocabulary)``."""
        return self._read(0, tokens, starts, max(map(len, tokens)))

    def _read(
        self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int], count: int
    ) -> torch.Tensor:
        """Read tokens of the texts from place ``first`` on; logits of the last ``count`` columns.

        Those behind a text's own tokens mean nothing.
        """
        width = max(map(len, tokens))
        inputs = self._lay_out(tokens, starts, width).to(self._model.device)
        rows = slice(first, first + len(tokens))
        return self._forward(inputs, rows, max(starts) + width, count)

    def _lay_out(
        self, tokens: Sequence[Sequence[int]], starts: Sequence[int], width: int
    ) -> torch.Tensor:
        """Of every text ``width`` tokens, its first column, its last one; int64, on the CPU."""
        return torch.tensor(
            [
                [*own, *[self._pad] * (width - len(own)), start, start + len(own) - 1]
                for own, start in zip(tokens, starts, strict=True)
            ]
        )

    def _forward(self, inputs: torch.Tensor, rows: slice, end: int, count: int) -> torch.Tensor:
        """Read what was laid out for ``rows`` of the cache, of which ``end`` columns are used.

        What it computes depends on ``inputs`` by their values alone, which it never asks for.
        """
        ids, begin, last = inputs[:, :-2], inputs[:, -2:-1], inputs[:, -1:]
        device = inputs.device
        columns = begin + torch.arange(ids.shape[1], device=device)
        places = torch.arange(rows.start, rows.stop, device=device)[:, None]
        self._cache.place(rows, places, columns, end)
        hidden = torch.arange(end, device=device) > columns[:, :, None]
        return _last_logits(
            self._model,
            count,
            input_ids=ids,
            attention_mask=additive_mask(hidden, self._model.dtype),
            position_ids=columns.minimum(last).clamp(min=0),  # the model may have no others
            past_key_values=self._cache,
        )


class InPlaceCache(DynamicCache):
    """Keys and values of texts of different lengths, each row's from column 0 on.

    transformers' own caches align rows at their ends and copy all they hold for every token, which
    takes longer than the rest of the model. Here tokens are written where they belong, over what
    was there before.

    Args:
        capacity, limit: the most rows and columns.
        least: columns that there is room for from the start, so that nothing moves before there are
            more.
    """

    def __init__(self, model: PreTrainedModel, capacity: int, limit: int, *, least: int) -> None:
        super().__init__(config=model.config)
        self._capacity, self._limit, self._least = capacity, limit, least
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}

    def place(self, given: slice, rows: torch.Tensor, columns: torch.Tensor, end: int) -> None:
        """Say where the tokens go that are read next.

        Args:
            given: the rows that attention is given, and ``end`` how many columns of them.
            rows, columns: int64 ``(texts, 1)`` and ``(texts, tokens)``.
        """
        self._given, self._end = given, end
        self._rows, self._columns = rows, columns

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in ``(rows, heads, tokens, width)`` keys and values; return those given."""
        return self._write((layer_idx, 0), key_states), self._write((layer_idx, 1), value_states)

    def _write(self, kind: tuple[int, int], new: torch.Tensor) -> torch.Tensor:
        buffer = self._make_room(kind, new)
        buffer[self._rows, :, self._columns] = new.transpose(1, 2)
        return buffer[self._given, :, : self._end]

    def _make_room(self, which: tuple[int, int], new: torch.Tensor) -> torch.Tensor:
        old = self._buffers.get(which)
        if old is not None and self._end <= old.shape[2]:
            return old
        columns = min(max(2 * self._end, self._least), self._limit)
        # Attention multiplies what is hidden from it by zero, so there must be numbers.
        buffer = new.new_zeros(self._capacity, new.shape[1], columns, new.shape[3])
        if old is not None:
            buffer[:, :, : old.shape[2]] = old
        self._buffers[which] = buffer
        return buffer

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows to other places."""
        for buffer in self._buffers.values() if sources else ():
            buffer[targets] = buffer[sources]


class PaddedTexts:
    """Texts padded on their left, with transformers' own cache.

    Args:
        limit: tokens of a text; what it says of longer ones means nothing.
    """

    def __init__(self, model: PreTrainedModel, limit: int, pad_token_id: int) -> None:
        self._model, self._limit, self._pad = model, limit, pad_token_id
        self._cache = DynamicCache(config=model.config)
        self._columns = 0

    def next_logits(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits ``(texts, vocabulary)`` of what follows each text.

        After the first time the texts are those of the time before with one more token each.
        """
        device, longest = self._model.device, max(map(len, texts))
        padded = [[*[self._pad] * (longest - len(text)), *text] for text in texts]
        new = torch.tensor([row[self._columns :] for row in padded], device=device)
        lengths = torch.tensor([[len(text)] for text in texts], device=device)
        attention = (torch.arange(longest, device=device) >= longest - lengths).long()
        positions = (attention.cumsum(dim=1) - 1).clamp(0, self._limit - 1)
        self._columns = longest
        return _last_logits(
            self._model,
            1,
            input_ids=new,
            attention_mask=attention,
            position_ids=positions[:, -new.shape[1] :],
            past_key_values=self._cache,
        )[:, 0]


class WholeTexts:
    """Texts that are read anew for every token, padded on their right; else as ``PaddedTexts``."""

    def __init__(self, model: PreTrainedModel, limit: int, pad_token_id: int) -> None:
        self._model, self._limit, self._pad = model, limit, pad_token_id

    def next_logits(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits ``(texts, vocabulary)`` of what follows each text."""
        texts = [text[: self._limit] for text in texts]
        longest = max(map(len, texts))
        padded = [[*text, *[self._pad] * (longest - len(text))] for text in texts]
        ids = torch.tensor(padded, device=self._model.device)
        logits = self._model(input_ids=ids, use_cache=False).logits
        return torch.stack([row[len(text) - 1] for row, text in zip(logits, texts, strict=True)])


def _last_logits(model: PreTrainedModel, count: int, **inputs: Any) -> torch.Tensor:
    """What the model makes of its inputs in the last ``count`` columns."""
    accepted = inspect.signature(model.forward).parameters
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = count
    if "position_ids" not in accepted:
        del inputs["position_ids"]
    return model(**inputs, use_cache=True).logits[:, -count:]
