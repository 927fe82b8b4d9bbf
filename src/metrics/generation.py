"""Greedy answers, batched; rows leave the batch at their own ends and others take their places.

When most rows repeat themselves, as those of unlearned models often do until the length limit, what
they would go on with is read along and accepted as far as it is what the model chooses: the same
answers in fewer steps (prompt lookup decoding, a form of Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from itertools import islice, takewhile
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from src import devices
from src.dataset.encoding import tokenize
from src.dataset.templates import Template
from src.metrics.likelihood import (
    LOGITS_CHUNK,
    additive_mask,
    batches_by_length,
    count_alike,
    evaluating,
    most_likely,
    most_tokens,
    takes_own_masks,
)
from src.terminal import Progress

LEAST_COLUMNS = 256  # of the cache, unless there can be no more tokens than fewer
REPEATING = 8  # tokens in a row that were as expected of a text that repeats itself
DRAFT = 8  # tokens expected at once
# For so many tokens a step computes as long as it takes however few they are (on a CPU as measured
# with 135M weights, on others the operations they do in the time that a byte of the weights takes).
CPU_STEP_TOKENS = 26
STEP_TOKENS = 150


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
        eos_token_ids=end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_total_length=max_total_length,
        batch_size=batch_size,
        description=description,
    )
    answers = [tokens[1:] if published else tokens for tokens in generated]
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
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

    with evaluating(model), Progress(description, len(waiting)) as bar:
        if waiting and _reads_own_batches(model, max_total_length, pad_token_id):
            batch = _Batch(model, min(batch_size, len(waiting)), max_total_length, pad_token_id)
            while batch.texts or waiting:
                free = batch_size - len(batch.texts)
                if waiting and 4 * free >= batch_size:
                    batch.add(next_texts(free))
                chosen = batch.step(batch.drafts())
                batch.keep([accept(*pair) for pair in zip(batch.texts, chosen, strict=True)])
        else:
            while waiting:
                _continue_together(model, next_texts(batch_size), accept, pad_token_id)
    return [text.tokens[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


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
        self._model, self._limit, self._pad = model, limit, pad_token_id
        self._cache = _Cache(model, capacity, limit + DRAFT)  # padding may lie behind the limit
        self._step_tokens = CPU_STEP_TOKENS if devices.on_cpu(model) else STEP_TOKENS

    def add(self, texts: Sequence[_Text]) -> None:
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
        width w choose (r - c + c w) / (F + r w) tokens in a unit of time, which grows with w if
        c F > r (r - c).
        """
        count = len(self.texts)
        repeating = sum(text.streak >= REPEATING for text in self.texts)
        if repeating * self._step_tokens > count * (count - repeating):
            most = min(DRAFT, max(LOGITS_CHUNK // count - 1, 0))
            return [text.expected(min(most, self._room(text))) for text in self.texts]
        return [[]] * count

    def _room(self, text: _Text) -> int:
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
        longest = max(map(len, tokens))
        logits = self._read(0, tokens, starts, longest)
        places = [row * longest + i for row, own in enumerate(tokens) for i in range(len(own))]
        logits = logits.flatten(0, 1)
        return logits if len(places) == len(logits) else logits[places]

    def _read(
        self, first: int, tokens: Sequence[Sequence[int]], starts: Sequence[int], count: int
    ) -> torch.Tensor:
        """Read tokens of the texts from place ``first`` on; logits of the last ``count`` columns.

        Those behind a text's own tokens mean nothing.
        """
        device = self._model.device
        lengths = [len(row) for row in tokens]
        width, end = max(lengths), max(starts) + max(lengths)
        padded = [[*row, *[self._pad] * (width - len(row))] for row in tokens]
        begin = torch.tensor(starts, device=device)[:, None]
        columns = begin + torch.arange(width, device=device)
        last = begin + torch.tensor(lengths, device=device)[:, None] - 1
        rows = slice(first, first + len(tokens))
        self._cache.place(rows, torch.arange(rows.start, rows.stop)[:, None], columns, end)
        hidden = torch.arange(end, device=device) > columns[:, :, None]
        return _last_logits(
            self._model,
            count,
            input_ids=torch.tensor(padded, device=device),
            attention_mask=additive_mask(hidden, self._model.dtype),
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

    def place(self, given: slice, rows: torch.Tensor, columns: torch.Tensor, end: int) -> None:
        """Say where the tokens go that are read next.

        Args:
            given: the rows that attention is given, and ``end`` how many columns of them.
            rows, columns: int64 ``(texts, 1)`` and ``(texts, tokens)``.
        """
        self._given, self._end = given, end
        self._rows, self._columns = rows.to(columns.device), columns

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, ...]:
        """Take in ``(rows, heads, tokens, width)`` keys and values; return those given."""
        held = []
        for kind, new in enumerate((key_states, value_states)):
            buffer = self._make_room((layer_idx, kind), new)
            buffer[self._rows, :, self._columns] = new.transpose(1, 2)
            held.append(buffer[self._given, :, : self._end])
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


def _reads_own_batches(model: PreTrainedModel, limit: int, pad_token_id: int) -> bool:
    """Whether the model reads texts from a :class:`_Batch` as it reads them alone.

    Some architectures do not, or do it wrongly; they are found by trying.
    """
    if not takes_own_masks(model, limit):
        return False
    texts, starts = [[3, 1, 2], [0, 1, 2, 3, 1, 0]], [1, 3]  # in the order that they are added in
    alone = []
    for text, start in zip(texts, starts, strict=True):
        ids = torch.tensor([text], device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        alone.append(model(**inputs).logits[0, start:])
    expected = torch.cat([alone[0][:1], alone[1][:1], alone[0][1:], alone[1][1:]])
    tolerance = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().max()
    batch = _Batch(model, 2, 6, pad_token_id)
    batch.add([_Text(text[: start + 1]) for text, start in zip(texts, starts, strict=True)])
    parts = [batch.read([[1], [3]], starts), batch.read([[2], [1, 0]], [2, 4])]
    return bool((torch.cat(parts) - expected).abs().max() <= tolerance)


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
        chosen = most_likely(logits[:, 0]).tolist()
        going = [
            still and accept(text, [token])
            for still, text, token in zip(going, texts, chosen, strict=True)
        ]
        ids = torch.tensor(chosen, device=device)[:, None]
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
