"""Greedy answers, batched; rows leave the batch at their own ends and others take their places.

When most rows repeat themselves, as those of unlearned models often do until the length limit, what
they would go on with is read along and accepted as far as it is what the model chooses: the same
answers in fewer steps (prompt lookup decoding, a form of Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch.nn.functional import pad
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from src.dataset.encoding import tokenize
from src.dataset.templates import Template
from src.metrics.cpu_linear import few_row_linears
from src.metrics.likelihood import LOGITS_CHUNK, batches_by_length, evaluating, most_tokens

SPARE_COLUMNS = 64  # how far the cache's buffers reach beyond the tokens they hold
REPEATING = 8  # tokens in a row that were as expected of a text that repeats itself
DRAFT = 8  # tokens expected at once
# For so many tokens a step computes as long as it takes however few they are (on a CPU as measured
# with 135M weights, on others the operations they do in the time that a byte of the weights takes).
STEP_TOKENS = {"cpu": 26}
OTHER_STEP_TOKENS = 150


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    questions: Sequence[str],
    *,
    max_total_length: int,
    batch_size: int,
    description: str,
    published: bool = False,
) -> list[str]:
    """Greedy answers to questions put in the template, each until EOS or the length limit.

    Args:
        max_total_length: tokens of prompt and answer together.
        published: as in the published TOFU evaluation, the prompt lacks the answer start, and the
            first generated token is lost.

    Returns:
        The answers without special tokens and without white space around them; where the prompt
        leaves no room, an empty one.
    """

    def prompt(question: str) -> list[int]:
        text = template.question(question)
        if not published:
            # A trailing space belongs to the answer's first token in every tokenizer with
            # word-initial pieces; alone it would be a token that training never saw there.
            text = (text + template.answer_start).rstrip(" ")
        return tokenize(tokenizer, text, max_total_length)

    generated = generate_greedy(
        model,
        [prompt(question) for question in questions],
        eos_token_ids=_end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_total_length=max_total_length,
        batch_size=batch_size,
        description=description,
    )
    answers = [tokens[1:] if published else tokens for tokens in generated]
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {i for i in (*ids, tokenizer.eos_token_id) if i is not None}


def generate_greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    max_total_length: int,
    batch_size: int,
    description: str,
) -> list[list[int]]:
    """Continue each prompt with the most likely token until EOS or the length limit.

    The model's own generation settings (sampling, repetition penalties) play no part. Prompts are
    run sorted by length, padded on the left; a row that has ended leaves the batch and the cache,
    and when a quarter of the places are free, new prompts take them.

    Args:
        prompts: token ids, at least one each.
        max_total_length: of prompt and continuation together.
        batch_size: the most rows in the batch.

    Returns:
        The new tokens of each prompt, without the EOS, in the order given.
    """
    texts = [_Text(prompt) for prompt in prompts]
    waiting = [i for i in range(len(prompts)) if len(prompts[i]) < max_total_length]
    waiting.sort(key=lambda i: len(prompts[i]), reverse=True)
    stop = set(eos_token_ids)
    # Rows can be added to others unless a layer of the cache is of a special kind.
    joins = all(type(layer) is _RoomyLayer for layer in _make_cache(model).layers)
    drafting = joins and _reads_gaps(model)
    read_at_once = most_tokens(model) if joins else math.inf
    step_tokens = STEP_TOKENS.get(model.device.type, OTHER_STEP_TOKENS)

    def accept(batch: _Batch, chosen: list[list[int]]) -> _Batch | None:
        """Note the chosen tokens; what is left of the batch once ended rows are gone."""
        going = []
        for place, (row, tokens) in enumerate(zip(batch.rows, chosen, strict=True)):
            room = max_total_length - len(texts[row].tokens)
            new = list(takewhile(lambda token: token not in stop, tokens[:room]))
            texts[row].extend(new)
            if len(new) == len(tokens) < room:
                going.append(place)
        bar.update(len(batch.rows) - len(going))
        return batch.keep(going) if going else None

    def drafts(batch: _Batch) -> list[list[int]]:
        """What each row is expected to go on with, where reading that too is likely to pay.

        With F tokens' worth of fixed cost, r rows and c of them repeating themselves, steps of
        width w choose (r - c + c w) / (F + r w) tokens in a unit of time, which grows with w if
        c F > r (r - c).
        """
        count = len(batch.rows)
        repeating = sum(texts[row].streak >= REPEATING for row in batch.rows)
        if drafting and repeating * step_tokens > count * (count - repeating):
            most = min(DRAFT, max(LOGITS_CHUNK // count - 1, 0))
            rooms = [max_total_length - len(texts[row].tokens) - 1 for row in batch.rows]
            pairs = zip(batch.rows, rooms, strict=True)
            return [texts[row].expected(min(most, room)) for row, room in pairs]
        return [[]] * count

    with (
        evaluating(model),
        few_row_linears(model),
        tqdm(total=len(waiting), desc=description, unit="row", disable=None) as bar,
    ):
        batch: _Batch | None = None
        while batch or waiting:
            free = batch_size - (len(batch.rows) if batch else 0)
            if waiting and (batch is None or (joins and 4 * free >= batch_size)):
                rows = [waiting.pop() for _ in range(min(free, len(waiting)))]
                for part in batches_by_length(
                    rows, lambda row: len(prompts[row]), tokens=read_at_once
                ):
                    fresh = _Batch.start(model, prompts, part, pad_token_id)
                    fresh = accept(fresh, fresh.tokens[:, None].tolist())
                    if batch and fresh:
                        batch.join(fresh)
                    batch = batch or fresh
            else:
                chosen = batch.step(model, drafts(batch), pad_token_id)
                batch = accept(batch, chosen)
    return [text.tokens[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def _reads_gaps(model: PreTrainedModel) -> bool:
    """Whether unused columns between a row's tokens change nothing.

    The model must be told positions, and no layer may have a window, which counts columns.
    """
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    layers = DynamicCache(config=model.config).layers
    return takes_positions and not any(layer.is_sliding for layer in layers)


class _Text:
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
        start = self._behind.get(tuple(self.tokens[-2:]))
        if start is None:
            return []
        period = len(self.tokens) - start
        return [self.tokens[start + i % period] for i in range(count)]


class _RoomyLayer(DynamicLayer):
    """A layer of the cache that has room for tokens to come.

    transformers' own layers copy all they hold for every token, which takes longer than the rest
    of the model. This one writes into buffers; ``keys`` and ``values`` are views of them. Layers
    with a sliding window keep all tokens too: the model's mask hides the old ones.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``(rows, heads, tokens, width)`` keys and values; return all of them."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self._buffers = (self.keys, self.values)
            self.is_initialized = True
        rows, start = len(key_states), self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            columns = end - start + SPARE_COLUMNS
            self._buffers = tuple(
                torch.cat([old, new.new_zeros(*new.shape[:2], columns, new.shape[3])], dim=2)
                for old, new in ((self.keys, key_states), (self.values, value_states))
            )
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, start:end] = new
        self.keys, self.values = (buffer[:rows, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; only rows that change their place are copied."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for held in (self.keys, self.values):
            held[moved] = held[indices[moved]]
        self.keys, self.values = self.keys[: len(indices)], self.values[: len(indices)]

    def select_columns(self, columns: torch.Tensor) -> None:
        """Keep these columns of each row, int64 ``(rows, columns to keep)``, in this order."""
        places = columns[:, None, :, None]
        self.keys, self.values = (
            held.gather(2, places.expand(-1, held.shape[1], -1, held.shape[3]))
            for held in (self.keys, self.values)
        )
        self._buffers = (self.keys, self.values)

    def join(self, other: _RoomyLayer, columns: int) -> None:
        """Add the other layer's rows; of both the last ``columns`` tokens stay."""
        self.keys, self.values = (
            torch.cat([_fit(mine, columns, dim=2), _fit(theirs, columns, dim=2)])
            for mine, theirs in ((self.keys, other.keys), (self.values, other.values))
        )
        self._buffers = (self.keys, self.values)


def _fit(tensor: torch.Tensor, columns: int, dim: int) -> torch.Tensor:
    """Cut from the left, or fill with zeros there, to this size of ``dim``."""
    behind = [0, 0] * (tensor.dim() - 1 - dim)
    return pad(tensor, (*behind, columns - tensor.shape[dim], 0))


def _make_cache(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [
        _RoomyLayer() if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else layer
        for layer in cache.layers
    ]
    return cache


@dataclass
class _Batch:
    """Rows that are being continued.

    Attributes:
        rows: which prompts they are.
        tokens, positions: the last chosen token of each row, not in the cache yet, and its
            position; int64 ``(rows,)``.
        attention: which columns of the cache hold tokens of the row, int64 ``(rows, columns)``; a
            draft that was not accepted leaves columns that do not.
    """

    rows: list[int]
    tokens: torch.Tensor
    positions: torch.Tensor
    attention: torch.Tensor
    cache: DynamicCache

    @classmethod
    def start(
        cls,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        rows: list[int],
        pad_token_id: int,
    ) -> _Batch:
        """Read the prompts and choose the first tokens."""
        longest = max(len(prompts[i]) for i in rows)
        padded = [[pad_token_id] * (longest - len(prompts[i])) + list(prompts[i]) for i in rows]
        lengths = torch.tensor([len(prompts[i]) for i in rows], device=model.device)
        columns = torch.arange(longest, device=model.device)
        attention = (columns >= longest - lengths[:, None]).long()
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        cache = _make_cache(model)
        ids = torch.tensor(padded, device=model.device)
        chosen = _most_likely(model, ids, attention, positions, cache, 1)
        return cls(rows, chosen[:, 0], lengths, attention, cache)

    def step(
        self, model: PreTrainedModel, drafts: Sequence[list[int]], pad_token_id: int
    ) -> list[list[int]]:
        """Choose the next tokens of every row: one more than are right of its draft."""
        width = 1 + max(map(len, drafts))
        device = self.tokens.device
        padded = [draft + [pad_token_id] * (width - 1 - len(draft)) for draft in drafts]
        lengths = torch.tensor([len(draft) for draft in drafts], device=device)
        proposed = torch.tensor(padded, dtype=torch.int64, device=device)
        proposed = proposed.view(len(drafts), width - 1)
        columns = torch.arange(width, device=device)
        read = (columns <= lengths[:, None]).long()
        chosen = _most_likely(
            model,
            torch.cat([self.tokens[:, None], proposed], dim=1),
            torch.cat([self.attention, read], dim=1),
            self.positions[:, None] + columns.clamp(max=lengths[:, None]),
            self.cache,
            width,
        )
        right = (chosen[:, :-1] == proposed) & read[:, 1:].bool()
        accepted = right.long().cumprod(dim=1).sum(dim=1)
        self.attention = torch.cat([self.attention, (columns <= accepted[:, None]).long()], dim=1)
        self.tokens = chosen.gather(1, accepted[:, None])[:, 0]
        self.positions = self.positions + accepted + 1
        if width > 1:
            self._close_gaps(2)
        return [
            tokens[: count + 1]
            for tokens, count in zip(chosen.tolist(), accepted.tolist(), strict=True)
        ]

    def _close_gaps(self, factor: float) -> None:
        """Align the rows' tokens to the right where columns are ``factor`` times the longest row.

        The columns between them that hold no tokens go.
        """
        longest = int(self.attention.sum(dim=1).max())
        if self.attention.shape[1] < factor * longest:
            return
        order = self.attention.argsort(dim=1, stable=True)[:, -longest:]
        self.attention = self.attention.gather(1, order)
        for layer in self.cache.layers:
            layer.select_columns(order)

    def keep(self, going: Sequence[int]) -> _Batch:
        """Drop all rows but those at these places (ascending); the last ones fill the gaps."""
        if len(going) == len(self.rows):
            return self
        count = len(going)
        staying = set(going)
        movers = [place for place in going if place >= count]
        order = [place if place in staying else movers.pop() for place in range(count)]
        indices = torch.tensor(order, device=self.tokens.device)
        self.cache.batch_select_indices(indices)
        self.rows = [self.rows[place] for place in order]
        self.tokens, self.positions = self.tokens[indices], self.positions[indices]
        self.attention = self.attention[indices]
        return self

    def join(self, other: _Batch) -> None:
        """Add the rows of another batch."""
        self._close_gaps(1)
        columns = int(max(self.attention.sum(dim=1).max(), other.attention.sum(dim=1).max()))
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.join(theirs, columns)
        self.rows = self.rows + other.rows
        self.tokens = torch.cat([self.tokens, other.tokens])
        self.positions = torch.cat([self.positions, other.positions])
        self.attention = torch.cat(
            [_fit(batch.attention, columns, dim=1) for batch in (self, other)]
        )


def _most_likely(
    model: PreTrainedModel,
    ids: torch.Tensor,
    attention: torch.Tensor,
    positions: torch.Tensor,
    cache: DynamicCache,
    count: int,
) -> torch.Tensor:
    """Read ``(rows, tokens)`` ids into the cache; what should follow each of the last ``count``.

    Returns:
        int64 ``(rows, count)``.
    """
    accepted = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": count, "position_ids": positions}
    logits = model(
        input_ids=ids,
        attention_mask=attention,
        past_key_values=cache,
        use_cache=True,
        **{name: value for name, value in options.items() if name in accepted},
    ).logits
    return logits[:, -count:].argmax(dim=-1)
