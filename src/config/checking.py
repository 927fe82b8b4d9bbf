"""Given values against the keys: every mistake at once, with what may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import fastargs
from fastargs.validation import Checker

from wagle.catalogue import METHODS
from wagle.config.declare import REQUIRED, Key
from wagle.config.help import shown, table, terminal_width
from wagle.config.mask_names import score_type_of_folder
from wagle.config.reading import MOST_PROBLEMS, Given, shortened
from wagle.config.rules import clashes, fit_to_data
from wagle.config.values import Choice, ListOf, Text
from wagle.errors import ConfigError


class _Problem(NamedTuple):
    key: str
    wrong: str
    given: str
    where: str


def resolve(
    keys: Sequence[Key], given: Mapping[str, Given], refused: Mapping[str, str]
) -> dict[str, Any]:
    """Every key's value, in the order of ``keys``.

    Args:
        refused: what is known to be wrong already, by key.
    """
    known = {key.name: key for key in keys}
    sections = _sections(known)
    strange = [
        name
        for name, entry in given.items()
        if name not in known
        and not (name in sections and entry.value in (None, {}))
        and not ("unlearn.unlearn_method" in refused and name.count(".") > 1)
    ]
    problems = [_unknown(name, given[name], known, sections) for name in strange[:MOST_PROBLEMS]]
    declared = _declare(keys)
    set_values = {name: entry.value for name, entry in given.items() if entry.value is not None}
    declared.collect({name: value for name, value in set_values.items() if name in known})
    errors = declared.validate(mode="errordict")
    values: dict[str, Any] = {}
    for key in keys:
        wrong = tuple(key.name.split(".")) in errors or set_values.get(key.name) == {}
        values[key.name] = None if wrong else declared[key.name]
        if key.name in refused:
            entry = given[key.name]
            problems.append(
                _Problem(entry.name, refused[key.name], shown(entry.value), entry.where)
            )
        elif wrong:
            problems.append(_bad_value(key, given.get(key.name)))
    if "unlearn.task_name" in values:
        fit_to_data(values)
    known_wrong = {problem.key for problem in problems}
    for name, wrong in clashes(values):
        if name in known_wrong:  # its value counts as none
            continue
        where = given[name].where if name in given else "default"
        problems.append(_Problem(name, wrong, shown(values[name]), where))
    if problems:
        raise ConfigError(_problem_table(problems, len(strange[MOST_PROBLEMS:])))
    if "unlearn.score_type" in values and values["unlearn.score_type"] is None:
        values["unlearn.score_type"] = score_type_of_folder(values["unlearn.mask_path"])
    return values


def _problem_table(problems: Sequence[_Problem], unseen: int) -> str:
    total = len(problems) + unseen
    count = "1 problem" if total == 1 else f"{total:,} problems"
    listed = problems[:MOST_PROBLEMS]
    rows = table([("key", "what is wrong", "given", "where"), *listed], terminal_width())
    more = f"\nand {total - len(listed):,} more" if total > len(listed) else ""
    return f"{count} in the configuration\n\n{rows}{more}"


def _declare(keys: Sequence[Key]) -> fastargs.Config:
    """The keys as fastargs sections and parameters."""
    declared = fastargs.Config()
    for key in keys:
        section, _, name = key.name.rpartition(".")
        required = key.default is REQUIRED
        default = None if required else key.default
        param = fastargs.Param(key.checker, key.meaning, default=default, required=required)
        fastargs.Section(section, config_descriptor=declared).params(**{name: param})
    return declared


def _sections(known: Iterable[str]) -> set[str]:
    """Names that may stand in a file with nothing in them."""
    sections = set()
    for name in known:
        parts = name.split(".")
        sections |= {".".join(parts[:end]) for end in range(1, len(parts))}
    if "unlearn" in sections:
        sections |= {"unlearn.origin", *(f"unlearn.{method.label}" for method in METHODS.values())}
    return sections


def _unknown(name: str, entry: Given, known: Iterable[str], sections: Iterable[str]) -> _Problem:
    """What to say about a key that does not exist, with up to two that may have been meant."""
    wrong = "unknown key; see --help"
    if name in sections:
        wrong = f"a section, not a key; give {name}.KEY"
    elif len(name) < 100:
        last_part = name.rpartition(".")[2]
        namesakes = [key for key in known if key.rpartition(".")[2] == last_part]
        near = dict.fromkeys([*nearest(name, namesakes, cutoff=0), *nearest(name, known)])
        if near:
            wrong = f"unknown key; did you mean {' or '.join(near)}?"
    return _Problem(shortened(entry.name), wrong, shown(entry.value), entry.where)


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The name that is most like the word, whatever the case; none where none is like it."""
    lower = {name.lower(): name for name in names}
    return [lower[near] for near in difflib.get_close_matches(word.lower(), lower, 1, cutoff)]


def _bad_value(key: Key, given: Given | None) -> _Problem:
    if given is None or given.value is None:
        where = "" if given is None else given.where
        return _Problem(key.name, f"is required: {key.checker.help()}", "nothing", where)
    or_null = "; or null" if key.default is None else ""
    wrong = f"allowed: {key.checker.help()}{or_null}{_hint(key.checker, given.value)}"
    return _Problem(given.name, wrong, shown(given.value), given.where)


def _hint(checker: Checker, value: Any) -> str:
    """The name that a misspelt value may have meant."""
    if isinstance(checker, ListOf):
        try:
            items = checker.items(value)
        except ValueError:
            return ""
        hints = (_hint(checker.item, item) for item in items)
        return next((hint for hint in hints if hint), "")
    if isinstance(checker, Text) and isinstance(value, str) and not Text.is_name(value):
        return ", of whole characters but NUL, at most 255 bytes between slashes"
    if not isinstance(checker, Choice) or not isinstance(value, str) or value in checker.names:
        return ""
    near = nearest(value, checker.names)
    return f"; did you mean {near[0]}?" if near else ""
