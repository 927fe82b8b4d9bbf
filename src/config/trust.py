"""Code from outside that a configuration names: run only where the command line trusts it.

Configuration files come from strangers, so ``overall.trust_code`` has no effect in one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastargs.validation import Checker

from wagle.catalogue import METHOD_ALIASES, METHODS
from wagle.config.declare import Key, method_keys
from wagle.config.reading import Given
from wagle.config.values import Flag, ListOf, Named
from wagle.errors import ConfigError
from wagle.outside import enter, is_outside

TRUST = "overall.trust_code"
HOW = f"add --{TRUST} true to the command line if you trust it"


def trusts(given: Mapping[str, Given]) -> bool:
    """Whether code from outside may run: the command line says so, or a program that calls this."""
    entry = given.get(TRUST)
    return entry is not None and not entry.from_file and _is_true(entry.value)


def drop_trust(given: dict[str, Given]) -> list[str]:
    """Take away what a file cannot give, and say so."""
    entry = given.get(TRUST)
    if entry is None or not entry.from_file or not _is_true(entry.value):
        return []
    del given[TRUST]
    return [f"{TRUST} has no effect in a file ({entry.where}); {HOW}"]


def _is_true(value: Any) -> bool:
    with contextlib.suppress(KeyError):
        return Flag().check(value)
    return False


def enter_given(
    keys: Sequence[Key], given: Mapping[str, Given]
) -> tuple[dict[str, Given], dict[str, str]]:
    """Enter the code that is named in the catalogue, where it is trusted.

    Returns:
        The given values, with complete names of such code; and what is wrong, by key.
    """
    found, wrong = dict(given), {}
    for key in keys:
        entry = given.get(key.name)
        if entry is None or entry.value is None:
            continue
        try:
            value = _entered(key, entry.value, trusts(given))
        except ConfigError as error:
            wrong[key.name] = str(error)
        else:
            found[key.name] = entry._replace(value=value)
    return found, wrong


def _entered(key: Key, value: Any, trusted: bool) -> Any:
    checker = key.checker
    if isinstance(checker, ListOf) and isinstance(checker.item, Named):
        try:
            items = checker.items(value)
        except ValueError:
            return value
        return [_enter(checker.item, item, trusted) for item in items]
    return _enter(checker, value, trusted) if isinstance(checker, Named) else value


def _enter(checker: Named, name: Any, trusted: bool) -> Any:
    if not isinstance(name, str) or not is_outside(name):
        return name
    if not trusted:
        raise ConfigError(f"this is code from outside the program, and would run here: {HOW}")
    return enter(checker.catalogue, name)


def code_of(values: Iterable[tuple[Checker, Any]]) -> dict[str, str]:
    """Fingerprints of the code from outside among values of keys, by its name."""
    found: dict[str, str] = {}
    for checker, value in values:
        if isinstance(checker, ListOf):
            found |= code_of((checker.item, item) for item in value or ())
        elif isinstance(checker, Named) and value in checker.catalogue:
            entry = checker.catalogue[value]
            found |= {entry.name: entry.code} if entry.code else {}
    return found


def identity(checker: Checker, value: Any) -> Any:
    """A value as fingerprints see it: names of code from outside stand for what the code says."""
    if isinstance(checker, ListOf) and value is not None:
        return [identity(checker.item, item) for item in value]
    if isinstance(checker, Named) and value in checker.catalogue:
        return checker.catalogue[value].identity
    return value


def keys_of_method(keys: Sequence[Key], given: Mapping[str, Given]) -> tuple[Key, ...]:
    """The keys of the chosen method's hyper-parameters, where it is one from outside.

    Raises:
        ConfigError: they would hide those of another section.
    """
    entry = given.get("unlearn.unlearn_method")
    method = METHODS.get(entry.value) if entry and isinstance(entry.value, str) else None
    if method is None or not method.code:
        return ()
    taken = {key.name.split(".")[1] for key in keys if key.name.startswith("unlearn.")}
    if method.label in taken | set(METHODS) | set(METHOD_ALIASES) | {"origin", "Original"}:
        raise ConfigError(
            f"{method.name}: unlearn.{method.label} is something else; give the class another name"
        )
    try:
        return method_keys(method)
    except TypeError as error:
        raise ConfigError(f"{method.name}: {error}") from error
