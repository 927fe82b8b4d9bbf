"""The unlearning data set: every drawn forget example with a random retain example."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from wagle.config.keys import PairedDataSection
from wagle.dataset.columns import each_row
from wagle.dataset.encoding import IGNORED, Encoded, pad_batch
from wagle.errors import ConfigError

FORGET, RETAIN, REFUSAL, MISMATCHED = "forget", "retain", "refusal", "mismatched"
ALTERNATE = "alternate"
"""The views of an item: the forget example, its retain partner, and the forget question with a
refusal, with the partner's answer, or with another answer that the model has written."""

Encoder = Callable[[Mapping[str, str]], Encoded]
PairBatch = dict[str, dict[str, torch.Tensor]]


class Item(NamedTuple):
    """What a batch is made of: a forget row and its views, by name."""

    row: int
    views: dict[str, Encoded]


ItemKey = tuple[int, int]
"""Which item: (epoch, index of the forget row)."""


def draw_forget_rows(count: int, ratio: float, seed: int) -> list[int]:
    """Indices of the forget examples, as published: ``random.seed(seed)``, ``random.sample``.

    Args:
        count: rows in the forget data set.
        ratio: above 1, how many rows to draw; otherwise the fraction of them.
        seed: ``dataset.dataset_seed``.

    Raises:
        ConfigError: no row, or more rows than there are, would be drawn.
    """
    wanted = int(ratio) if ratio > 1 else int(count * ratio)
    if not 0 < wanted <= count:
        raise ConfigError(
            f"dataset.forget_ratio {ratio:g} asks for {wanted} of the forget set's {count} rows; "
            f"give a count from 2 to {count} or a fraction above {1 / count:.2g} and at most 1"
        )
    return random.Random(seed).sample(range(count), wanted)


def divide_forget_rows(count: int, data: PairedDataSection) -> tuple[list[int], list[int]]:
    """Which rows of the forget set are drawn, as drawn, and which are left, in their order.

    Args:
        count: rows in the forget data set.

    Raises:
        ConfigError: as :func:`draw_forget_rows`; or none is left where they are to be retained.
    """
    drawn = draw_forget_rows(count, data.forget_ratio, data.dataset_seed)
    left = sorted(set(range(count)) - set(drawn))
    if data.self_retain and not left:
        raise ConfigError(
            "dataset.self_retain keeps the forget rows that were not drawn, but "
            "dataset.forget_ratio draws them all; lower it"
        )
    return drawn, left


def count_shared(forget: Sequence[Mapping[str, str]], retain: Sequence[Mapping[str, str]]) -> int:
    """How many of the forget rows have a question, or a text, that a retain row has too."""
    key = next((key for key in ("question", "text") if key in forget[0] and key in retain[0]), None)
    if key is None:
        return 0
    retained = {row[key] for row in each_row(retain)}
    return sum(row[key] in retained for row in each_row(forget))


class UnlearnDataset(Dataset[Item]):
    """Pairs of one forget and one retain example.

    An item is addressed by ``(epoch, index)``: the retain partner is a function of
    ``(seed, epoch, index)`` alone, so runs repeat exactly with any number of loader workers and
    when resumed in the middle of an epoch.

    Args:
        forget, retain: rows; ``encode_forget`` and ``encode_retain`` turn one into ids and labels.
        encode_refusal: turns a forget row and a refusal sentence into ids and labels.
        refusals: sentences to draw from, one per forget row, once; these two are needed for the
            ``refusal`` view only.
        alternates: another answer to each forget row, for the ``alternate`` view.
        views: which views an item has.
        seed: of the pairing, the order and the drawn refusals.
    """

    def __init__(
        self,
        forget: Sequence[Mapping[str, str]],
        retain: Sequence[Mapping[str, str]],
        *,
        encode_forget: Encoder,
        encode_retain: Encoder,
        encode_refusal: Callable[[Mapping[str, str], str], Encoded] | None = None,
        refusals: Sequence[str] = (),
        alternates: Sequence[str] = (),
        views: Sequence[str] = (FORGET, RETAIN),
        seed: int = 0,
    ) -> None:
        self.forget = forget
        self.retain = retain
        self.encode_forget = encode_forget
        self.encode_retain = encode_retain
        self.encode_refusal = encode_refusal
        self.alternates = alternates
        self.views = tuple(views)
        self.seed = seed
        self.reference_losses: dict[str, torch.Tensor] = {}
        """Per view, the reference model's loss on every forget row, ``(len(self),)``; filled in
        before training when the objective asks for it."""
        rng = random.Random(f"refusal {seed}")
        self.refusals = [rng.choice(refusals) for _ in range(len(forget))] if refusals else []

    def with_alternates(self, alternates: Sequence[Sequence[str]]) -> UnlearnDataset:
        """The data set in which a forget row stands once for each of its alternates.

        Example: the rows a and b with two alternates each make the items a, a, b and b.
        """
        places = [place for place, own in enumerate(alternates) for _ in own]
        whole = copy.copy(self)
        whole.forget = [self.forget[place] for place in places]
        whole.refusals = [self.refusals[place] for place in places] if self.refusals else []
        whole.alternates = [text for own in alternates for text in own]
        whole.reference_losses = {}
        return whole

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, key: ItemKey) -> Item:
        return Item(key[1], {view: self.example(view, key) for view in self.views})

    def order(self, epoch: int) -> list[ItemKey]:
        """The keys of an epoch's items, shuffled; a function of ``(seed, epoch)`` alone."""
        indices = list(range(len(self)))
        random.Random(f"order {self.seed} {epoch}").shuffle(indices)
        return [(epoch, index) for index in indices]

    def example(self, view: str, key: ItemKey) -> Encoded:
        """One view of the item at ``key = (epoch, index)``."""
        epoch, index = key
        if view == FORGET:
            return self.encode_forget(self.forget[index])
        if view == REFUSAL:
            assert self.encode_refusal is not None  # given where the view is
            return self.encode_refusal(self.forget[index], self.refusals[index])
        if view == ALTERNATE:
            assert self.encode_refusal is not None
            return self.encode_refusal(self.forget[index], self.alternates[index])
        partner = random.Random(f"retain {self.seed} {epoch} {index}").randrange(len(self.retain))
        retain = self.encode_retain(self.retain[partner])
        if view == RETAIN:
            return retain
        return _with_answer_of(self.encode_forget(self.forget[index]), retain)


def _with_answer_of(question: Encoded, answer: Encoded) -> Encoded:
    """The unlabelled part of one example followed by the labelled part of another."""
    pairs = zip(question.input_ids, question.labels, strict=True)
    prompt = [token for token, label in pairs if label == IGNORED]
    target = [label for label in answer.labels if label != IGNORED]
    return Encoded(prompt + target, [IGNORED] * len(prompt) + target)


class PairCollator:
    """Pads every view of a list of items to its own longest row.

    The batch maps each view to ``input_ids``, ``attention_mask``, ``labels`` (int64, ``(batch,
    longest)``) and, where the data set has reference losses for it, ``reference_loss`` (float32,
    ``(batch,)``).
    """

    def __init__(self, dataset: UnlearnDataset, pad_token_id: int) -> None:
        self.dataset = dataset
        self.pad_token_id = pad_token_id

    def __call__(self, items: Sequence[Item]) -> PairBatch:
        index = torch.tensor([item.row for item in items])
        batch = {}
        for view in self.dataset.views:
            batch[view] = pad_batch([item.views[view] for item in items], self.pad_token_id)
            if view in self.dataset.reference_losses:
                batch[view]["reference_loss"] = self.dataset.reference_losses[view][index]
        return batch
