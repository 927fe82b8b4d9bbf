"""How keys are declared: a section is a dataclass, a key a field of it.

Example::

    class Overall:
        seed: int = key(0, "seeds python, numpy and torch", at_least=0)

declares ``overall.seed``, read as ``config.overall.seed``. The field's type is that of the resolved
value; it says what the key takes as well, unless a checker does. A section alone has the defaults
of the keys that it is not given: ``Overall(seed=1)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, get_type_hints

from fastargs.validation import Checker

from wagle.config.values import checker_of
from wagle.entries import Method, Option

REQUIRED = ...  # Ellipsis stays itself when a configuration is sent to another process


@dataclass(frozen=True)
class Key:
    """One configuration key.

    Attributes:
        name: ``section.key``.
        checker: what it takes.
        default: ``None`` where it is not set by default, ``REQUIRED`` where it must be given.
        meaning: one line for ``--help``.
        inert: changes where things go or how fast they are done, not what comes out.
    """

    name: str
    checker: Checker
    default: Any
    meaning: str
    inert: bool = False


def method_keys(method: Method) -> tuple[Key, ...]:
    """The keys of a method's hyper-parameters, ``unlearn.METHOD.option``."""
    return tuple(_option_key(f"unlearn.{method.label}.{o.name}", o) for o in method.options)


def _option_key(name: str, option: Option) -> Key:
    bounds = {"above": option.above, "at_least": option.at_least}
    checker = checker_of(option.kind, **{k: v for k, v in bounds.items() if v is not None})
    return Key(name, checker, option.default, option.meaning)


_MARK = "key"


def key(
    default: Any,
    meaning: str,
    checker: Checker | None = None,
    *,
    inert: bool = False,
    **bounds: float,
) -> Any:
    """A key, as the default of a section's field; the arguments are those of :class:`Key`.

    Args:
        checker: not given: what the field's type says, with the bounds of a number.
    """
    metadata = {_MARK: (default, meaning, checker, inert, bounds)}
    if default is REQUIRED:
        return field(metadata=metadata)
    return field(default_factory=partial(copy, default), metadata=metadata)


def keys_of(section: type, name: str) -> Iterator[Key]:
    """The keys of a section and of those within it, in their order, inherited ones last."""
    kinds = get_type_hints(section)
    own_first = [field_name for parent in section.__mro__ for field_name in _annotated(parent)]
    for field_name in dict.fromkeys(own_first):
        declared = section.__dataclass_fields__[field_name].metadata.get(_MARK)  # type: ignore[attr-defined]  # a dataclass
        full_name, kind = f"{name}.{field_name}", kinds[field_name]
        if declared is None:
            yield from keys_of(kind, full_name)
            continue
        default, meaning, checker, inert, bounds = declared
        yield Key(full_name, checker or checker_of(kind, **bounds), default, meaning, inert)


def _annotated(section: type) -> Mapping[str, Any]:
    return vars(section).get("__annotations__", {})


_Section = TypeVar("_Section")


def section_of(section: type[_Section], name: str, values: Mapping[str, Any]) -> _Section:
    """A section with the values of its keys."""
    kinds = get_type_hints(section)
    found = {}
    for field_name, declared in section.__dataclass_fields__.items():  # type: ignore[attr-defined]  # a dataclass
        full_name = f"{name}.{field_name}"
        is_key = _MARK in declared.metadata
        found[field_name] = (
            values[full_name] if is_key else section_of(kinds[field_name], full_name, values)
        )
    return section(**found)
