"""The kinds of values that configuration keys take."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from fastargs.validation import Checker

from wagle.catalogue import DATA_SET_ALIASES, DATA_SETS
from wagle.dataset.names import OWN_FORMS, is_own


class Text(Checker):
    """A string that is not blank; ``what`` says what it names."""

    def __init__(self, what: str) -> None:
        self.what = what

    def check(self, value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or not self.is_name(value):
            raise ValueError
        return value

    def help(self) -> str:
        return self.what

    @staticmethod
    def is_name(text: str) -> bool:
        """Whether files could be called so: Unicode without NUL, parts that are not too long."""
        try:
            parts = text.encode().split(b"/")
        except UnicodeEncodeError:  # half a character
            return False
        return "\0" not in text and len(text) < 4096 and all(len(part) <= 255 for part in parts)


class Flag(Checker):
    """A boolean: JSON's own, or true, false, 1, 0."""

    def check(self, value: Any) -> bool:
        return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]

    def help(self) -> str:
        return "true or false"


class Float(Checker):
    """A finite number within bounds; a boolean is none."""

    kind = "float"

    def __init__(
        self,
        *,
        above: float = -math.inf,
        at_least: float = -math.inf,
        below: float = math.inf,
        at_most: float = math.inf,
    ) -> None:
        self.above, self.at_least, self.below, self.at_most = above, at_least, below, at_most

    def check(self, value: Any) -> float:
        if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
            raise ValueError  # Python itself would read True as 1 and 1_0 as 10
        number = float(value)
        if not (self.above < number < self.below and self.at_least <= number <= self.at_most):
            raise ValueError
        return number

    def help(self) -> str:
        bounds = {">": self.above, ">=": self.at_least, "<": self.below, "<=": self.at_most}
        limits = [f"{sign} {bound:.10g}" for sign, bound in bounds.items() if math.isfinite(bound)]
        return f"{self.kind} {', '.join(limits)}".strip()


class Int(Float):
    """A whole number within bounds; 5.0 is one, 5.5 is not."""

    kind = "int"

    def check(self, value: Any) -> int:
        number = super().check(value)
        if not number.is_integer():
            raise ValueError
        return int(number)


class Maybe(Text):
    """A string that may be empty."""

    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        return value


class Date(Checker):
    """A day, as :func:`read_date` reads it."""

    def check(self, value: Any) -> str:
        read_date(str(value))
        return str(value)

    def help(self) -> str:
        return "date like 10 Apr 2025 or 2025-04-10"


def read_date(text: str) -> datetime:
    """The day that is written like 10 Apr 2025, 10 April 2025 or 2025-04-10.

    Raises:
        ValueError: it is written otherwise.
    """
    for form in ("%d %b %Y", "%d %B %Y", "%Y-%m-%d"):
        with contextlib.suppress(ValueError):
            return datetime.strptime(text, form)
    raise ValueError(f"{text!r} is no date like 10 Apr 2025 or 2025-04-10")


class Steps(Int):
    """A number of optimizer steps, or -1: the number of epochs decides."""

    most = 100_000_000

    def check(self, value: Any) -> int:
        steps = super().check(value)
        if steps != -1 and not 1 <= steps <= self.most:
            raise ValueError
        return steps

    def help(self) -> str:
        return f"-1 or int >= 1, <= {self.most}"


class Choice(Checker):
    """One of some names; an alias is replaced by the name that it stands for."""

    def __init__(
        self, *names: str, aliases: Mapping[str, str] | None = None, summary: str | None = None
    ) -> None:
        self.names = {**{name: name for name in names}, **(aliases or {})}
        self.summary = summary or ", ".join(self.names)

    def check(self, value: Any) -> str:
        return self.names[value]

    def help(self) -> str:
        return self.summary


class Named(Choice):
    """A line of the catalogue by its name; also one that was entered from outside the program."""

    def __init__(
        self, catalogue: dict[str, Any], *others: str, aliases: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(*others, *catalogue, aliases=aliases)
        self.catalogue = catalogue

    def check(self, value: Any) -> str:
        entry = self.catalogue.get(value)
        return value if entry and entry.code else super().check(value)


class DataSetName(Named):
    """The name of a known data set, or of one's own: a file, a data set of the hub, code."""

    def __init__(self) -> None:
        super().__init__(DATA_SETS, aliases=DATA_SET_ALIASES)
        known = [name for entry in DATA_SETS.values() for name in entry.names(entry.subsets)]
        self.names = {**{name: name for name in known}, **DATA_SET_ALIASES}
        # Those with many subsets are named once; what may be a subset stands below the keys.
        short = [
            entry.name if len(entry.subsets) == 1 else f"{entry.name}_SUBSET"
            for entry in DATA_SETS.values()
            if entry.subsets
        ]
        self.summary = ", ".join([*short, *DATA_SET_ALIASES, OWN_FORMS])

    def check(self, value: Any) -> str:
        own = isinstance(value, str) and Text.is_name(value) and is_own(value)
        return value if own else super().check(value)


class ListOf(Checker):
    """A list, or a string: a JSON list, or items separated by commas."""

    def __init__(self, item: Checker) -> None:
        self.item = item

    def items(self, value: Any) -> list[Any]:
        """The unchecked items."""
        if isinstance(value, str):
            if value.lstrip().startswith("["):
                try:
                    value = json.loads(value)
                except RecursionError as error:
                    raise ValueError from error
            else:
                value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list):
            raise ValueError
        return value

    def check(self, value: Any) -> list[Any]:
        return [self.item.check(item) for item in self.items(value)]

    def help(self) -> str:
        return f"list of {self.item.help()}"


def checker_of(kind: Any, **bounds: float) -> Checker:
    """What a value of an annotated kind must be.

    Args:
        kind: ``int``, ``float``, ``bool``, ``str`` or a ``Literal`` of strings, or one of them
            ``| None``, or a list of a ``Literal``.
        bounds: of a number, as in :class:`Float`.

    Raises:
        TypeError: it is another kind.

    >>> checker_of(float, above=0).help()
    'float > 0'
    """
    if get_origin(kind) in (Union, UnionType):
        others = [part for part in get_args(kind) if part is not NoneType]
        kind = others[0] if len(others) == 1 else kind
    if get_origin(kind) is Literal and all(isinstance(name, str) for name in get_args(kind)):
        return Choice(*get_args(kind))
    if get_origin(kind) is list and get_origin(get_args(kind)[0]) is Literal:
        return ListOf(checker_of(get_args(kind)[0]))
    if kind in (int, float):
        return {int: Int, float: Float}[kind](**bounds)
    if kind in (bool, str) and not bounds:
        return Flag() if kind is bool else Text("text")
    raise TypeError(f"{kind} is none of int, float, bool and str, or one of them | None")
