"""Greedy answers, batched; rows leave the batch at their own ends and others take their places.

When most rows repeat themselves, as those of unlearned models often do until the length limit, what
they would go on with is read along and accepted as far as it is what the model chooses: the same
answers in fewer steps (prompt lookup decoding, a form of Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch.nn.functional import pad
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from src.dataset.encoding import tokenize
from src.dataset.templates import Template
from src.metrics.cpu_attention import few_token_attention
from src.metrics.cpu_linear import few_row_linears
from src.metrics.likelihood import (
    LOGITS_CHUNK,
    additive_mask,
    batches_by_length,
    count_alike,
    evaluating,
    most_tokens,
    takes_own_masks,
)

LEAST_COLUMNS = 256  # of the cache, unless there can be no more tokens than fewer
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

    The model's own generation settings (sampling, repetition penalties) play no part. Short prompts
    come first; a row that has ended leaves the batch and the cache, and when a quarter of the
    places are free, new prompts take them. Where the architecture cannot read rows of different
    lengths from our cache, batches run one after another, each to its last row's end.

    Args:
        prompts: token ids, at least one each.
        max_total_length: of prompt and continuation together.
        batch_size: the most rows in the batch.

    Returns:
        The new tokens of each prompt, without the EOS, in the order given.
    """
    texts = [_Text(prompt) for prompt in prompts]
    waiting = [text for text in texts if len(text.tokens) < max_total_length]
    waiting.sort(key=lambda text: len(text.tokens), reverse=True)
    stop = set(eos_token_ids)

    def next_texts(count: int) -> list[_Text]:
        return [waiting.pop() for _ in range(min(count, len(waiting)))]

    def accept(text: _Text, chosen: Sequence[int]) -> bool:
        """Note the chosen tokens; whether the text goes on."""
        room = max_total_length - len(text.tokens)
        new = list(takewhile(lambda token: token not in stop, chosen[:room]))
        text.extend(new)
        goes_on = len(new) == len(chosen) < room
        bar.update(not goes_on)
        return goes_on

    with (
        evaluating(model),
        few_row_linears(model),
        tqdm(total=len(waiting), desc=description, unit="row", disable=None) as bar,
    ):
        if waiting and _reads_own_cache(model, max_total_length, pad_token_id):
            batch = _Batch(model, min(batch_size, len(waiting)), max_total_length, pad_token_id)
            while batch.texts or waiting:
                free = batch_size - len(batch.texts)
                if waiting and 4 * free >= batch_size:
                    batch.add(next_texts(free))
                chosen = batch.step(_drafts(model, batch.texts, max_total_length))
                batch.keep([accept(*pair) for pair in zip(batch.texts, chosen, strict=True)])
        else:
            while waiting:
                _continue_together(model, next_texts(batch_size), accept, pad_token_id)
    return [text.tokens[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def _drafts(model: PreTrainedModel, texts: Sequence[_Text], limit: int) -> list[list[int]]:
    """What each text is expected to go on with, where reading that too is likely to pay.

    With F tokens' worth of fixed cost, r rows and c of them repeating themselves, steps of width w
    choose (r - c + c w) / (F + r w) tokens in a unit of time, which grows with w if
    c F > r (r - c).
    """
    count = len(texts)
    repeating = sum(text.streak >= REPEATING for text in texts)
    step_tokens = STEP_TOKENS.get(model.device.type, OTHER_STEP_TOKENS)
    if repeating * step_tokens > count * (count - repeating):
        most = min(DRAFT, max(LOGITS_CHUNK // count - 1, 0))
        return [text.expected(min(most, limit - len(text.tokens) - 1)) for text in texts]
    return [[]] * count


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


class _Batch:
    """Texts that are being continued; all their tokens but the last are in the cache.

    Args:
        capacity: the most texts.
        limit: the most tokens of a text.
    """

    def __init__(
        self, model: PreTrainedModel, capacity: int, limit: int, pad_token_id: int
    ) -> None:
        self.texts: list[_Text] = []
        self._model, self._pad = model, pad_token_id
        self._cache = _Cache(model, capacity, limit + DRAFT)

    def add(self, texts: Sequence[_Text]) -> None:
        """Read more texts."""
        for part in batches_by_length(
            texts, lambda text: len(text.tokens), tokens=most_tokens(self._model)
        ):
            tokens = [text.tokens[:-1] for text in part]
            if any(tokens):
                self.read(len(self.texts), tokens, [0] * len(part), 1)
            self.texts += part

    def step(self, drafts: Sequence[list[int]]) -> list[list[int]]:
        """The next tokens of every text: those of its draft that are right, and one more."""
        tokens = [[text.tokens[-1], *draft] for text, draft in zip(self.texts, drafts, strict=True)]
        starts = [len(text.tokens) - 1 for text in self.texts]
        chosen = _most_likely(self.read(0, tokens, starts, max(map(len, tokens))))
        pairs = zip(chosen, drafts, strict=True)
        return [row[: count_alike(row, draft) + 1] for row, draft in pairs]

    def keep(self, going: Sequence[bool]) -> None:
        """Drop all texts but these; the last ones take the places of those dropped."""
        count = sum(going)
        free = [place for place in range(count) if not going[place]]
        movers = [place for place in range(count, len(going)) if going[place]]
        for place, mover in zip(free, movers, strict=True):
            self.texts[place] = self.texts[mover]
        del self.texts[count:]
        self._cache.move(movers, free)

    def read(
        self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int], count: int
    ) -> torch.Tensor:
        """Read tokens of the texts from place ``first`` on, each from a column of its own on.

        Returns:
            Logits of the last ``count`` columns, ``(rows, count, vocabulary)``; those behind a
            row's own tokens mean nothing.
        """
        device = self._model.device
        lengths = [len(row) for row in tokens]
        width, end = max(lengths), max(starts) + max(lengths)
        padded = [[*row, *[self._pad] * (width - len(row))] for row in tokens]
        begin = torch.tensor(starts, device=device)[:, None]
        columns = begin + torch.arange(width, device=device)
        last = begin + torch.tensor(lengths, device=device)[:, None] - 1
        self._cache.place(first, columns, end)
        hidden = torch.arange(end, device=device) > columns[:, :, None]
        mask = additive_mask(hidden, self._model.dtype)
        with few_token_attention(self._model, mask, [start + 1 for start in starts]):
            return _last_logits(
                self._model,
                count,
                input_ids=torch.tensor(padded, device=device),
                attention_mask=mask,
                position_ids=columns.minimum(last).clamp(min=0),  # the model may have no others
                past_key_values=self._cache,
            )


class _Cache(DynamicCache):
    """Keys and values of texts of different lengths, each row's from column 0 on.

    transformers' own caches align rows at their ends and copy all they hold for every token, which
    takes longer than the rest of the model. Here tokens are written where they belong, over what
    was there before.

    Args:
        capacity, limit: the most rows and columns.
    """

    def __init__(self, model: PreTrainedModel, capacity: int, limit: int) -> None:
        super().__init__(config=model.config)
        self._capacity, self._limit = capacity, limit
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}

    def place(self, first: int, columns: torch.Tensor, end: int) -> None:
        """Say where the tokens go that are read next.

        Args:
            first: the first of their rows.
            columns: int64 ``(rows, tokens)``.
            end: how many columns attention is given.
        """
        self._seen = slice(first, first + len(columns))
        self._rows = torch.arange(first, first + len(columns), device=columns.device)[:, None]
        self._columns, self._end = columns, end

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ...]:
        """Take in ``(rows, heads, tokens, width)`` keys and values; return all of these rows."""
        held = []
        for kind, new in enumerate((key_states, value_states)):
            buffer = self._make_room((layer_idx, kind), new)
            buffer[self._rows, :, self._columns] = new.transpose(1, 2)
            held.append(buffer[self._seen, :, : self._end])
        return tuple(held)

    def _make_room(self, which: tuple[int, int], new: torch.Tensor) -> torch.Tensor:
        old = self._buffers.get(which)
        if old is not None and self._end <= old.shape[2]:
            return old
        columns = min(max(2 * self._end, LEAST_COLUMNS), self._limit)
        # Attention multiplies what is hidden from it by zero, so there must be numbers.
        buffer = new.new_zeros(self._capacity, new.shape[1], columns, new.shape[3])
        if old is not None:
            buffer[:, :, : old.shape[2]] = old
        self._buffers[which] = buffer
        return buffer

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows to other places."""
        for buffer in self._buffers.values() if sources else ():
            buffer[targets, :, : self._end] = buffer[sources, :, : self._end]


def _reads_own_cache(model: PreTrainedModel, limit: int, pad_token_id: int) -> bool:
    """Whether the model reads texts from a :class:`_Cache` as it reads them alone.

    Some architectures do not, or do it wrongly; they are found by trying.
    """
    if not takes_own_masks(model, limit):
        return False
    batch = _Batch(model, 2, 6, pad_token_id)
    batch.read(0, [[0, 1, 2], [3]], [0, 0], 1)
    parts = [batch.read(0, [[3], [1]], [3, 1], 1), batch.read(0, [[1, 0], [2]], [4, 2], 2)]
    for row, (text, start) in enumerate((([0, 1, 2, 3, 1, 0], 3), ([3, 1, 2], 1))):
        together = torch.cat(parts, dim=1)[row, : len(text) - start]
        ids = torch.tensor([text], device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        alone = model(**inputs).logits[0, start:]
        tolerance = torch.finfo(alone.dtype).eps ** 0.5 * alone.abs().max()
        if not (together - alone).abs().max() <= tolerance:
            return False
    return True


def _continue_together(
    model: PreTrainedModel,
    texts: Sequence[_Text],
    accept: Callable[[_Text, Sequence[int]], bool],
    pad_token_id: int,
) -> None:
    """Continue texts until all have ended, padded on the left, with transformers' own cache."""
    device = model.device
    longest = max(len(text.tokens) for text in texts)
    padded = [[pad_token_id] * (longest - len(text.tokens)) + text.tokens for text in texts]
    ids = torch.tensor(padded, device=device)
    lengths = torch.tensor([[len(text.tokens)] for text in texts], device=device)
    attention = (torch.arange(longest, device=device) >= longest - lengths).long()
    positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    going = [True] * len(texts)
    while any(going):
        logits = _last_logits(
            model,
            1,
            input_ids=ids,
            attention_mask=attention,
            position_ids=positions,
            past_key_values=cache,
        )
        chosen = _most_likely(logits)
        going = [
            still and accept(text, tokens)
            for still, text, tokens in zip(going, texts, chosen, strict=True)
        ]
        ids = torch.tensor(chosen, device=device)
        attention = pad(attention, (0, 1), value=1)
        positions = positions[:, -1:] + torch.tensor(going, device=device)[:, None]


def _last_logits(model: PreTrainedModel, count: int, **inputs: Any) -> torch.Tensor:
    """What the model makes of its inputs in the last ``count`` columns."""
    accepted = inspect.signature(model.forward).parameters
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = count
    if "position_ids" not in accepted:
        del inputs["position_ids"]
    return model(**inputs, use_cache=True).logits[:, -count:]


def _most_likely(logits: torch.Tensor) -> list[list[int]]:
    """Tokens of the largest logits ``(rows, columns, vocabulary)``."""
    if logits.device.type == "cpu":  # numpy is six times as fast
        return logits.float().numpy().argmax(axis=-1).tolist()
    return logits.argmax(dim=-1).tolist()
