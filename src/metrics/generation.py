"""Greedy answers, batched; rows leave the batch at their own ends and others take their places.

When most rows repeat themselves, as those of unlearned models often do until the length limit, what
they would go on with is read along and accepted as far as it is what the model chooses: the same
answers in fewer steps (prompt lookup decoding, a form of Leviathan et al. 2023, arXiv 2211.17192).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import islice, takewhile
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from wagle import devices
from wagle.dataset.encoding import tokenize
from wagle.dataset.templates import Template
from wagle.metrics.likelihood import (
    LOGITS_CHUNK,
    batches_by_length,
    count_alike,
    most_likely,
    most_tokens,
)
from wagle.model.reading import (
    additive_mask,
    agree,
    evaluating,
    read_alone,
    succeeds,
    takes_own_masks,
    trial_tokens,
)
from wagle.terminal import Progress

LEAST_COLUMNS = 256  # of the cache, unless there can be no more tokens than fewer
REPEATING = 8  # tokens in a row that were as expected of a text that repeats itself
DRAFT = 8  # tokens expected at once
SINGLE_STEPS = 4  # that a way to read texts is tried with
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
    """Tokens that end an answer: those of the model's configuration, and the tokenizer's EOS."""
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
    lengths from our cache, batches run one after another, each to its last row's end, with
    transformers' own cache or, where that does not serve, without any. Equal prompts are continued
    once: where two tokens are as good as equally likely, their place in a batch must not decide.

    Args:
        prompts: token ids, at least one each.
        max_total_length: of prompt and continuation together.
        batch_size: the most rows in the batch.

    Returns:
        The new tokens of each prompt, without the EOS, in the order given.
    """
    texts = {tuple(prompt): _Text(prompt) for prompt in prompts}
    waiting = [text for text in texts.values() if len(text.tokens) < max_total_length]
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
        way = _find_way(model, waiting, max_total_length, pad_token_id) if waiting else None
        if way is not None and issubclass(way, _Batch):
            batch = way(model, min(batch_size, len(waiting)), max_total_length, pad_token_id)
            while batch.texts or waiting:
                free = batch_size - len(batch.texts)
                if waiting and 4 * free >= batch_size:
                    batch.add(next_texts(free))
                chosen = batch.step(batch.drafts())
                batch.keep([accept(*pair) for pair in zip(batch.texts, chosen, strict=True)])
        else:
            while waiting:
                reader = (way or _Whole)(model, max_total_length, pad_token_id)
                _continue_together(reader, next_texts(batch_size if way else 1), accept)
    return [texts[tuple(prompt)].tokens[len(prompt) :] for prompt in prompts]


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
        before, last = self.tokens[-2:] if len(self.tokens) > 1 else (-1, -1)
        start = self._behind.get((before, last))
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


class _Padded:
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


class _Whole:
    """Texts that are read anew for every token, padded on their right; else like ``_Padded``."""

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


def _continue_together(
    reader: _Padded | _Whole,
    texts: Sequence[_Text],
    accept: Callable[[_Text, Sequence[int]], bool],
) -> None:
    """Continue texts until all have ended."""
    tokens = [list(text.tokens) for text in texts]
    going = [True] * len(texts)
    while any(going):
        chosen = most_likely(reader.next_logits(tokens)).tolist()
        for row, token in enumerate(chosen):
            going[row] = going[row] and accept(texts[row], [token])
            tokens[row].append(token)


def _find_way(
    model: PreTrainedModel, waiting: Sequence[_Text], limit: int, pad_token_id: int
) -> type[_Batch | _Padded | _Whole] | None:
    """The fastest way to continue several texts that tells what the model says of each alone.

    Each is tried on two texts: one from the longest prompt's length to the limit, and one that is
    as many tokens longer than the shortest prompt.

    Returns:
        ``None``: none does.
    """
    tokens = trial_tokens(model, limit)
    lengths = [min(len(text.tokens), len(tokens) - 1) for text in waiting]
    begins = [max(min(lengths), 1), max(*lengths, 1)]  # a batch takes the shortest first
    count = len(tokens) - begins[1]
    texts = [tokens[: -begins[0] - count - 1 : -1], tokens]
    expected = [read_alone(model, text) for text in texts]

    def reads_from_own_cache() -> bool:
        batch = _Batch(model, 2, limit, pad_token_id)
        batch.add([_Text(text[:begin]) for text, begin in zip(texts, begins, strict=True)])
        at = [begin - 1 for begin in begins]
        for width in [max(count - SINGLE_STEPS, 1)] + [1] * min(SINGLE_STEPS, count - 1):
            pieces = [text[start : start + width] for text, start in zip(texts, at, strict=True)]
            right = [e[start : start + width] for e, start in zip(expected, at, strict=True)]
            if not agree(batch.read(pieces, at), torch.cat(right)):
                return False
            at = [start + width for start in at]
        return True

    def reads(way: type[_Padded | _Whole]) -> bool:
        reader = way(model, limit, pad_token_id)
        first = min(SINGLE_STEPS, count)
        return all(
            agree(
                reader.next_logits([text[: len(text) - left] for text in texts]),
                torch.stack([e[len(e) - left - 1] for e in expected]),
            )
            for left in range(first, -1, -1)
        )

    if takes_own_masks(model, limit) and succeeds(reads_from_own_cache):
        return _Batch
    ways: tuple[type[_Padded | _Whole], ...] = (_Padded, _Whole)
    return next((way for way in ways if succeeds(partial(reads, way))), None)


def _last_logits(model: PreTrainedModel, count: int, **inputs: Any) -> torch.Tensor:
    """What the model makes of its inputs in the last ``count`` columns."""
    accepted = inspect.signature(model.forward).parameters
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = count
    if "position_ids" not in accepted:
        del inputs["position_ids"]
    return model(**inputs, use_cache=True).logits[:, -count:]
