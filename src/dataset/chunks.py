"""A long text cut into chunks of tokens: prompts with the true continuations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

CHUNK_TOKENS = 512
PROMPT_LENGTHS = (50, 100, 200, 300)
TRAINING_PROMPT_LENGTH = min(PROMPT_LENGTHS)
"""Every token that any evaluation asks for then belongs to the response that is forgotten."""


@dataclass(frozen=True)
class TextChunk:
    """A piece of the source text.

    Attributes:
        text: exactly as in the source, white space included.
        ends: ``ends[i]`` characters of ``text`` are covered by its first ``i + 1`` tokens.
    """

    text: str
    ends: Sequence[int]

    def row(self, prompt_tokens: int) -> dict[str, str]:
        """The first tokens as ``prompt``, the rest as ``response``; together they are the text."""
        cut = self.ends[prompt_tokens - 1]
        return {"prompt": self.text[:cut], "response": self.text[cut:]}


def cut_chunks(text: str, tokenizer: PreTrainedTokenizerBase) -> list[TextChunk]:
    """Consecutive chunks of ``CHUNK_TOKENS`` tokens each; a shorter rest is left out.

    The source is sliced where its tokens end, never decoded from ids, so nothing in it changes,
    whatever the tokenizer does to spaces and line ends. White space between two tokens goes with
    the second one. A character that takes several tokens stays whole.

    Args:
        tokenizer: one that knows where in the text its tokens lie (``is_fast``).
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = list(accumulate((end for _, end in encoded["offset_mapping"]), max))
    return list(_slices(text, ends))


def _slices(text: str, ends: Sequence[int]) -> Iterator[TextChunk]:
    start = 0
    for first in range(0, len(ends) - CHUNK_TOKENS + 1, CHUNK_TOKENS):
        own = ends[first : first + CHUNK_TOKENS]
        yield TextChunk(text[start : own[-1]], [end - start for end in own])
        start = own[-1]


def split_chunks(
    chunks: Sequence[TextChunk], test_share: float
) -> tuple[Sequence[TextChunk], Sequence[TextChunk]]:
    """The chunks to learn and forget, and the last ones, which neither sees: at least one each.

    Raises:
        ValueError: there are fewer than two chunks.
    """
    if len(chunks) < 2:
        raise ValueError(f"{len(chunks)} chunks cannot be split in two parts")
    test = min(max(round(test_share * len(chunks)), 1), len(chunks) - 1)
    return chunks[:-test], chunks[-test:]
