"""What a line of the catalogue says of a method, a score, a data set or an attack."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


def label_of(name: str) -> str:
    """A name without a place: ``Mine`` of ``path/to/file.py:Mine``; others as they are."""
    return name.rpartition(":")[2]


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue.

    Attributes:
        name: what the configuration calls it.
        place: ``module:object``, or the object itself.
        code: fingerprint of the code that it comes from, where that is none of the program's.
    """

    name: str
    place: Any
    code: str = field(default="", kw_only=True)

    @property
    def label(self) -> str:
        """The name without a place."""
        return label_of(self.name)

    @property
    def identity(self) -> str:
        """What it is, wherever its code lies."""
        return f"{self.label} {self.code}" if self.code else self.name

    def load(self) -> Any:
        """The object, imported now if it has not been."""
        if not isinstance(self.place, str):
            return self.place
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Option:
    """A hyper-parameter of a method: a field of its dataclass, the key ``unlearn.METHOD.name``.

    Attributes:
        kind: ``int``, ``float``, ``bool``, ``str`` or one of them ``| None``; or a ``Literal`` of
            strings.
        default: ``...`` where it must be given.
        meaning: one line for ``--help``.
        above, at_least: bounds of a number.
    """

    name: str
    kind: Any
    default: Any
    meaning: str
    above: float | None = None
    at_least: float | None = None


@dataclass(frozen=True)
class Method(Entry):
    """An unlearning method; the object is a subclass of ``Objective``.

    Attributes:
        aliases: other names; the first is the one in tables and figures.
        options: its hyper-parameters.
        questions: which sets must have questions with answers, of ``forget`` and ``retain``:
            running text has no question to be refused and no answer to be exchanged.
    """

    aliases: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    questions: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """As tables call it."""
        return self.aliases[0] if self.aliases else self.label


SQUARES = "_squares"
"""Behind a kind of gradient: the sum of its squares over examples."""


@dataclass(frozen=True)
class Score(Entry):
    """How weights are chosen for a mask.

    The object is a function (weights, gradients by kind, inputs, where) -> scores. Weights,
    gradients and scores are flat vectors of equal length, float32 (or float64 on request), on the
    CPU; gradients carry the published factor 1/A; ``inputs`` is a ``ScoreInputs``; ``where`` is
    (position of the parameter, start of the chunk). It may overwrite what it created, not its
    arguments. Where ``grouped`` is true it is a function of a ``WholeTensor`` instead, and where
    ``ranks`` is false one like ``make_masks``.

    Attributes:
        title: of its masks in tables, where that is not the name.
        aliases: names in published configurations.
        gradients: the kinds of gradient that it reads: ``forget``, ``retain``, ``refusal``.
        squares: the kinds of which it reads the mean over examples of the squared gradient, beside
            the gradients and by the names ``forget_squares``, …
        activations: the kinds of examples on which it reads what enters linear layers.
        inputs: what else it depends on, of ``mu`` and ``seed``.
        grouped: whether rows, neurons or tensors have a score, and are selected as wholes.
        ranks: whether weights are ranked by a score each, within ``unlearn.mask_scope`` and but
            for ``unlearn.mask_exclude``, rather than by a rule of its own.
        has_ratio: whether the share of selected weights can be chosen.
    """

    title: str = ""
    aliases: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()
    squares: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    grouped: bool = False
    ranks: bool = True
    has_ratio: bool = True

    @property
    def mask_title(self) -> str:
        """As tables call a mask that it made."""
        return self.title or self.label

    @property
    def sums(self) -> tuple[str, ...]:
        """The kinds of sums over backward passes that it is a function of."""
        return (*self.gradients, *(f"{kind}{SQUARES}" for kind in self.squares))

    @property
    def examples(self) -> set[str]:
        """The kinds of examples that it depends on: ``forget``, ``retain``, ``refusal``."""
        return {*self.gradients, *self.squares, *self.activations}

    def depends_on(self, what: str) -> bool:
        """Whether a mask differs with ``mu`` or ``seed``; refusals and partners are drawn by it."""
        drawn = what == "seed" and bool({"retain", "refusal"} & self.examples)
        return drawn or what in self.inputs


@dataclass(frozen=True)
class DataSet(Entry):
    """A data set, or a family of them: ``Tofu`` with its subsets is ``Tofu_forget10`` and others.

    The object is a function of a ``RowsRequest`` that returns rows with the columns ``question``
    and ``answer``, or ``text``.

    Attributes:
        max_length: how long its examples may become (tokens).
        subsets: what may follow the underscore of its name; "" where nothing does.
        asked: the same, of those that are for evaluation alone.
        texts: of these, running text; the others hold questions with answers.
        any_subset: whether its loader knows others as well.
        pieces: whether its running text is joined and cut into pieces of ``max_length`` tokens.
        refusals: which sentences refuse its questions; "": those for anything.
        aliases: other names.
    """

    max_length: int = 512
    subsets: tuple[str, ...] = ("",)
    asked: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    any_subset: bool = False
    pieces: bool = False
    refusals: str = ""
    aliases: tuple[str, ...] = ()

    def names(self, subsets: Iterable[str]) -> list[str]:
        """The whole names of some subsets."""
        return [f"{self.name}_{subset}".removesuffix("_") for subset in subsets]


@dataclass(frozen=True)
class Attack(Entry):
    """A membership attack on texts.

    The object is a function of an ``AttackedText`` that returns scores by the names of their
    columns; the larger a score, the less the text looks like training data.

    Attributes:
        standardized: whether it reads standardised log-probabilities.
        reference: whether it reads the loss under ``evaluation.reference_model``.
        gradients: whether it reads the norm of gradients, a backward pass a text.
    """

    standardized: bool = False
    reference: bool = False
    gradients: bool = False
