"""Configuration files and the command line as keys with values, within bounds."""

from __future__ import annotations

import json
import stat
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from wagle.catalogue import METHOD_ALIASES
from wagle.config.values import Text
from wagle.errors import ConfigError
from wagle.shipped import here_or_shipped

LARGEST_FILE = 1_000_000  # bytes
_MOST_VALUES, _DEEPEST = 10_000, 20  # in a file, with what YAML's aliases repeat
MOST_PROBLEMS = 20
"""So many mistakes are listed at once."""

EXTENDS = "extends"
"""Beside the sections of a file: other files, whose keys it takes over."""
_MOST_IN_A_ROW = 10  # files that extend one another

_FILE_OPTIONS = ("--config_file", "--config-file", "-C")

Pairs = list[tuple[str, Any]]

COMMAND_LINE, REPLACED = "command line", "replaced"  # where values are given beside files


class Given(NamedTuple):
    """A value as somebody gave it: the key as written, the value, and where it stood."""

    name: str
    value: Any
    where: str
    from_file: bool = False


def split_command_line(argv: Sequence[str]) -> tuple[list[str], Pairs]:
    """Configuration files in order, and the other options with their values.

    Raises:
        ConfigError: something is no option, or an option has no value.
    """
    files: list[str] = []
    pairs: Pairs = []
    wrong: list[str] = []
    waiting = deque(argv)
    while waiting:
        argument = waiting.popleft()
        option, equals, value = argument.partition("=")
        if option not in _FILE_OPTIONS and not option.startswith("--"):
            wrong.append(
                f"{shortened(repr(argument))} belongs to no option; write --section.key value"
            )
            continue
        if not equals:
            if not waiting or waiting[0].startswith("--") or waiting[0] in _FILE_OPTIONS:
                wrong.append(f"{shortened(option)} needs a value")
                continue
            value = waiting.popleft()
        if option in _FILE_OPTIONS:
            files.append(value)
        else:
            pairs.append((option.removeprefix("--"), None if value == "null" else value))
    if wrong:
        raise ConfigError("\n".join(["the command line is wrong", *first(wrong)]))
    return files, pairs


def read_file(name: str) -> tuple[Pairs, list[str]]:
    """The keys and values of a JSON or YAML file, sections joined by dots; the files it extends.

    Raises:
        ConfigError: there is no such file, it is too large, or it is no JSON or YAML object.
    """
    try:
        text = _read_text(here_or_shipped(name))
        is_yaml = Path(name).suffix in (".yaml", ".yml")
        content = _parse_yaml(text) if is_yaml else _parse_json(text)
        if not isinstance(content, dict):
            raise ValueError('it should hold one object of sections, like {"overall": {"seed": 0}}')
        _check_extent(content)
        extended = _list_of_names(content.pop(EXTENDS, []))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration file {name} cannot be read: {error}") from error
    return list(_flatten(content)), extended


def _list_of_names(value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name and Text.is_name(name) for name in names
    ):
        raise ValueError(f'"{EXTENDS}" takes the name of a file, or a list of them')
    return names


def by_key(
    pairs: Iterable[tuple[str, Any]], where: str, from_file: bool = False
) -> dict[str, Given]:
    """Given values by canonical name; the last of several for one key counts."""
    return {canonical(name): Given(name, value, where, from_file) for name, value in pairs}


def canonical(name: str) -> str:
    """A key in the section of a method's alias, as the same key of the method itself."""
    top, _, rest = name.partition(".")
    section, dot, key = rest.partition(".")
    if top == "unlearn" and section in METHOD_ALIASES:
        return f"unlearn.{METHOD_ALIASES[section]}{dot}{key}"
    return name


def given_in(name: str) -> tuple[dict[str, Given], list[str]]:
    """What a configuration file gives, by canonical name, and the files that were read for it.

    A file that says ``"extends": ["base.json", "npo.json"]`` gives what these give, in that order,
    and then its own keys: the later wins, as with several files on the command line. They are found
    from the folder that the file lies in, else like any other.

    Raises:
        ConfigError: as :func:`read_file`; a file gives a key twice, or extends one that is not
            there; files extend one another in a circle, or too many in a row.
    """
    return _given(name, (), {})


_Read = tuple[dict[str, Given], list[str]]


def _given(name: str, below: tuple[Path, ...], done: dict[Path, _Read]) -> _Read:
    """As :func:`given_in`.

    Args:
        below: the files that led here, each extending the next.
        done: what has been read already.
    """
    pairs, extended = read_file(name)  # first: it says what is wrong with the name
    file = here_or_shipped(name)
    place = file.resolve()
    way = (*below, place)
    if place in below or len(way) > _MOST_IN_A_ROW:
        wrong = " in a circle" if place in below else f", more than {_MOST_IN_A_ROW} of them"
        raise ConfigError(
            f"configuration files extend one another{wrong}: {' -> '.join(map(str, way))}"
        )
    if place in done:
        return done[place]
    own = by_key(pairs, name, from_file=True)
    if len(own) < len(pairs):
        twice = repeated(canonical(key) for key, _ in pairs)
        raise ConfigError(f"the configuration file {name} gives {', '.join(twice)} twice")
    given: dict[str, Given] = {}
    files: list[str] = []
    for other in extended:
        beside = file.parent / other
        found = beside if beside.exists() else here_or_shipped(other)
        if not found.exists():
            raise ConfigError(f"{name} extends {other}, and there is no such configuration file")
        more, read = _given(str(found), way, done)
        given |= more
        files += read
    done[place] = {**given, **own}, [*dict.fromkeys([*files, name])]
    return done[place]


def first(items: Sequence[str]) -> list[str]:
    """As many as are listed at once, and how many more there are."""
    more = len(items) - MOST_PROBLEMS
    return [*items[:MOST_PROBLEMS], *([f"and {more:,} more"] if more > 0 else [])]


def repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, as many as are listed at once."""
    twice = (shortened(name) for name, count in Counter(names).items() if count > 1)
    return sorted(islice(twice, MOST_PROBLEMS))


def shortened(text: str) -> str:
    """A text for a message, however long it was."""
    return text if len(text) <= 100 else f"{text[:99]}…"


def _read_text(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no ordinary file")
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise ValueError(f"it is larger than {LARGEST_FILE:,} bytes, the most a configuration has")
    return content.decode("utf-8-sig")


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: Pairs) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"the same key twice: {', '.join(repeated(name for name, _ in pairs))}")
    return content


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it is there


class _StrictYaml(_SafeLoader):
    """YAML without duplicate keys, whose numbers and dates are texts, as on the command line.

    YAML 1.1 reads 1:30 as 90, 010 as 8 and 2024-01-01 as a date, and 1e-5 as a text.
    """

    yaml_implicit_resolvers: ClassVar = {
        start: [pair for pair in resolvers if pair[0].endswith((":null", ":bool", ":merge"))]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):  # else the library says what is wrong
            _without_duplicates([(str(key.value), None) for key, _ in node.value])
        return super().construct_mapping(node, deep)


for _tag in ("int", "float", "timestamp"):
    _StrictYaml.add_constructor(f"tag:yaml.org,2002:{_tag}", yaml.SafeLoader.construct_yaml_str)


def _parse_yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictYaml)
    except Exception as error:  # what a tag makes of a value that is none ends in anything
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _check_extent(content: Any) -> None:
    """Refuse what is too large or too deep to be a configuration, aliases of aliases included."""
    waiting, count = [(content, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
        if count > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES:,} values")
        if isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            waiting += [(item, depth + 1) for item in inner]


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted name; an empty section is a leaf too, lest a misspelt one go unseen."""
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
