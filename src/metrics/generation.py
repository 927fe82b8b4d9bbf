"""Greedy answers, batched; rows leave the batch at their own ends and others take their places."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import takewhile
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle import shards
from wagle.dataset.encoding import tokenize
from wagle.dataset.templates import Template
from wagle.metrics.continuation import CachedTexts, PaddedTexts, Text, WholeTexts
from wagle.metrics.likelihood import most_likely
from wagle.metrics.partial_work import PartialWork
from wagle.metrics.replay import ReplayedTexts
from wagle.model.reading import (
    agree,
    evaluating,
    read_alone,
    reads_right,
    takes_own_masks,
    trial_tokens,
)
from wagle.terminal import Progress

SINGLE_STEPS = 4  # that a way to read texts is tried with
PIECE = 16  # times the batch's size: after so many answers the cache is filled anew


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

    After each :data:`PIECE` of the answers, texts that are not at their ends are read again into an
    empty cache, interrupted or not. So the tokens so far are all that it takes to go on to the same
    answers (:mod:`wagle.metrics.partial_work`).

    Args:
        prompts: token ids, at least one each.
        max_total_length: of prompt and continuation together.
        batch_size: the most rows in the batch.

    Returns:
        The new tokens of each prompt, without the EOS, in the order given.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))

    def continued(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        return _continue_distinct(
            model,
            prompts,
            set(eos_token_ids),
            pad_token_id,
            max_total_length,
            batch_size,
            description,
        )

    answers = dict(zip(distinct, shards.deal(model, distinct, continued), strict=True))
    return [answers[tuple(prompt)] for prompt in prompts]


def _continue_distinct(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    stop: set[int],
    pad_token_id: int,
    max_total_length: int,
    batch_size: int,
    description: str,
) -> list[list[int]]:
    """:func:`generate_greedy` for prompts no two of which are equal."""
    texts = [Text(prompt) for prompt in prompts]
    waiting = [text for text in texts if len(text.tokens) < max_total_length]
    waiting.sort(key=lambda text: len(text.tokens), reverse=True)
    total = len(waiting)
    partial_work = PartialWork(
        model,
        description,
        total,
        lambda: [prompts, sorted(stop), pad_token_id, max_total_length, batch_size],
        until=f"at most {min(PIECE * batch_size, total)} more answers",
    )

    def next_texts(count: int) -> list[Text]:
        return [waiting.pop() for _ in range(min(count, len(waiting)))]

    def accept(text: Text, chosen: Sequence[int]) -> bool:
        """Note the chosen tokens; whether the text goes on."""
        room = max_total_length - len(text.tokens)
        new = list(takewhile(lambda token: token not in stop, chosen[:room]))
        text.extend(new)
        goes_on = len(new) == len(chosen) < room
        bar.update(not goes_on)
        return goes_on

    def so_far() -> dict[str, Any]:
        """The new tokens of every text, and which texts go on, the next one last."""
        places = {id(text): place for place, text in enumerate(texts)}
        return {"new": new_tokens(), "waiting": [places[id(text)] for text in waiting]}

    def new_tokens() -> list[list[int]]:
        return [text.tokens[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]

    with evaluating(model), Progress(description, total) as bar, partial_work:
        way = _find_way(model, waiting, max_total_length, pad_token_id) if waiting else None
        if partial_work.found:
            for text, new in zip(texts, partial_work.found["new"], strict=True):
                text.extend(new)
            waiting = [texts[place] for place in partial_work.found["waiting"]]
            bar.update(total - len(waiting))
        while waiting:
            if way is not None and issubclass(way, CachedTexts):
                left = max(len(waiting) - PIECE * batch_size, 0)
                batch = way(model, min(batch_size, len(waiting)), max_total_length, pad_token_id)
                while len(batch.texts) + len(waiting) > left:
                    free = batch_size - len(batch.texts)
                    if waiting and 4 * free >= batch_size:
                        batch.add(next_texts(free))
                    chosen = batch.step(batch.drafts())
                    batch.keep([accept(*pair) for pair in zip(batch.texts, chosen, strict=True)])
                waiting += reversed(batch.texts)
            else:
                reader = (way or WholeTexts)(model, max_total_length, pad_token_id)
                _continue_together(reader, next_texts(batch_size if way else 1), accept)
            partial_work.note(total - len(waiting), so_far)
    return new_tokens()


def _continue_together(
    reader: PaddedTexts | WholeTexts,
    texts: Sequence[Text],
    accept: Callable[[Text, Sequence[int]], bool],
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
    model: PreTrainedModel, waiting: Sequence[Text], limit: int, pad_token_id: int
) -> type[CachedTexts | PaddedTexts | WholeTexts] | None:
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

    @cache
    def expected() -> list[torch.Tensor]:
        return [read_alone(model, text) for text in texts]

    def reads_from_own_cache(way: type[CachedTexts]) -> bool:
        batch = way(model, 3, limit, pad_token_id)  # one place is free
        batch.add([Text(text[:begin]) for text, begin in zip(texts, begins, strict=True)])
        at = [begin - 1 for begin in begins]
        for width in [max(count - SINGLE_STEPS, 1)] + [1] * min(SINGLE_STEPS, count - 1):
            pieces = [text[start : start + width] for text, start in zip(texts, at, strict=True)]
            right = [e[start : start + width] for e, start in zip(expected(), at, strict=True)]
            if not agree(batch.read(pieces, at), torch.cat(right)):
                return False
            at = [start + width for start in at]
        return True

    def reads_together(way: type[PaddedTexts | WholeTexts]) -> bool:
        reader = way(model, limit, pad_token_id)
        first = min(SINGLE_STEPS, count)
        return all(
            agree(
                reader.next_logits([text[: len(text) - left] for text in texts]),
                torch.stack([e[len(e) - left - 1] for e in expected()]),
            )
            for left in range(first, -1, -1)
        )

    def reads(way: type[CachedTexts | PaddedTexts | WholeTexts]) -> bool:
        def trial() -> bool:
            if issubclass(way, CachedTexts):
                return reads_from_own_cache(way)
            return reads_together(way)

        prompts, whole = range(begins[0], begins[1] + 1), range(len(tokens) + 1)
        return reads_right(model, way.__name__, trial, prompts, whole)

    ways: list[type[CachedTexts | PaddedTexts | WholeTexts]] = [PaddedTexts, WholeTexts]
    if takes_own_masks(model, limit):
        ways.insert(0, CachedTexts)
        if ReplayedTexts.is_for(model):
            ways.insert(0, ReplayedTexts)
    return next(filter(reads, ways), None)
