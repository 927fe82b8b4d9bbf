"""Code from outside the program, entered in the catalogue: methods, scores, data sets and others.

It is named where its kind is chosen: ``file.py`` where the file holds one such thing,
``file.py:Name`` or ``package.module:Name``. For example ``--unlearn.unlearn_method soft.py:Soft``
enters ``Method("soft.py:Soft", <the class>, …)`` in :data:`wagle.catalogue.METHODS`, with the
fields of the dataclass as hyper-parameters.

To enter code is to run it. Who calls :func:`enter` answers for that; a configuration does where the
command line says ``--overall.trust_code true``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from wagle.catalogue import ATTACKS, BENCHMARKS, DATA_SETS, METHODS, SCORES
from wagle.entries import Attack, DataSet, Entry, Method, Option, Score
from wagle.errors import ConfigError

_NAME = r"[^\W\d]\w*"
_FILE = re.compile(rf"(.*\.py)(?::({_NAME}))?")
_OBJECT = re.compile(rf"({_NAME}(?:\.{_NAME})*):({_NAME})")


def is_outside(name: str) -> bool:
    """Whether a name means code from outside, rather than a line of the catalogue.

    >>> [is_outside(name) for name in ("a/b.py", "b.py:Mine", "package.module:Mine", "GA+FT")]
    [True, True, True, False]
    """
    return bool(_FILE.fullmatch(name) or _OBJECT.fullmatch(name))


def enter(catalogue: dict[str, Any], name: str) -> str:
    """Run the code that a name means, and enter it in a part of the catalogue.

    Args:
        catalogue: ``METHODS``, ``SCORES``, ``DATA_SETS``, ``ATTACKS`` or ``BENCHMARKS``.
        name: for which :func:`is_outside` holds.

    Returns:
        The name that it is entered under, complete: ``file.py:Name``.

    Raises:
        ConfigError: there is no such code, it cannot be run, or it is something else.
    """
    kind = next(kind for kind in _KINDS if kind.catalogue is catalogue)
    file = _FILE.fullmatch(name)
    place, chosen = (file or _OBJECT.fullmatch(name)).groups()  # type: ignore[union-attr]  # fits always
    try:
        module, code = _run_file(place) if file else _import(place)
    except Exception as error:
        raise ConfigError(f"{place} cannot be run: {type(error).__name__}: {error}") from error
    if chosen is None:
        chosen = _only(module, kind, place)
    if not hasattr(module, chosen):
        raise ConfigError(f"{place} has no {chosen}")
    thing, full_name = getattr(module, chosen), f"{place}:{chosen}"
    if not kind.fits(thing):
        raise ConfigError(f"{full_name} is no {kind.wanted}")
    catalogue[full_name] = dataclasses.replace(kind.entry(full_name, thing), code=code)
    return full_name


def _only(module: ModuleType, kind: _Kind, place: str) -> str:
    """The name of the one thing in a file that can be meant."""
    found = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) in (module.__name__, *_MADE_OF)
        and not (inspect.isclass(value) and value.__module__ != module.__name__)
        and kind.fits(value)
    ]
    entries = [name for name in found if isinstance(getattr(module, name), Entry)]
    found = entries or found  # a line for the catalogue counts rather than the function in it
    if not found:
        raise ConfigError(f"{place} holds no {kind.wanted}")
    if len(found) > 1:
        choices = ", ".join(f"{place}:{name}" for name in found)
        raise ConfigError(f"{place} holds several; say which: {choices}")
    return found[0]


# ------------------------------------------------------------------------------------ running


def _run_file(place: str) -> tuple[ModuleType, str]:
    """The module that a file makes, and the fingerprint of just what was run."""
    path = Path(place).expanduser()
    source = path.read_bytes()
    code = hashlib.sha256(source).hexdigest()
    name = f"{path.stem}_{code[:16]}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path.resolve())
        sys.modules[name] = module  # dataclasses look there for what annotations mean
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name], code


def _import(place: str) -> tuple[ModuleType, str]:
    """A module, found as Python finds it or from the working directory, and its fingerprint.

    The fingerprint is of all Python files of its package: any of them may decide what it does.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    module = importlib.import_module(place)
    top = sys.modules[place.partition(".")[0]]
    if hasattr(top, "__path__"):
        files = sorted(path for folder in top.__path__ for path in Path(folder).rglob("*.py"))
    else:
        files = [Path(inspect.getfile(module))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return module, digest.hexdigest()


# -------------------------------------------------------------------------------- what it may be


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A part of the catalogue, what fits into it, and the line that is made of it."""

    catalogue: Mapping[str, Any]
    wanted: str
    fits: Callable[[Any], bool]
    entry: Callable[[str, Any], Entry]


def _is_objective(thing: Any) -> bool:
    from wagle.unlearn.objectives import Objective

    return inspect.isclass(thing) and issubclass(thing, Objective) and not inspect.isabstract(thing)


def _method(name: str, thing: Any) -> Method:
    from wagle.dataset.pairing import MISMATCHED, REFUSAL

    if not dataclasses.is_dataclass(thing) and vars(thing).get("__annotations__"):
        raise ConfigError(f"{name} has fields, but is no dataclass: put @dataclass above it")
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    kinds = typing.get_type_hints(thing)
    refused = ("forget",) if REFUSAL in thing.views else ()
    return Method(
        name,
        thing,
        options=tuple(_option(name, field, kinds[field.name]) for field in fields),
        questions=("forget", "retain") if MISMATCHED in thing.views else refused,
    )


def _option(name: str, field: dataclasses.Field[Any], kind: Any) -> Option:
    """A field; its metadata may hold a ``meaning`` and bounds, as in :class:`Option`."""
    default = ... if field.default is dataclasses.MISSING else field.default
    if field.default_factory is not dataclasses.MISSING:
        raise ConfigError(f"{name}.{field.name}: give a default, not a default_factory")
    about = {"meaning": f"of {name.rpartition(':')[2]}", **field.metadata}
    try:
        return Option(field.name, kind, default, **about)
    except TypeError as error:
        raise ConfigError(
            f"{name}.{field.name}: metadata takes meaning, above and at_least, not "
            f"{', '.join(field.metadata)}"
        ) from error


def _score(name: str, thing: Score) -> Score:
    kinds = ("forget", "retain", "refusal")
    for what, given, known in (
        ("gradients", thing.gradients, kinds),
        ("squares", thing.squares, kinds),
        ("activations", thing.activations, kinds),
        ("inputs", thing.inputs, ("mu", "seed")),
    ):
        if unknown := [repr(item) for item in given if item not in known]:
            raise ConfigError(f"{name} has {what} {unknown[0]}; there are {', '.join(known)}")
    entry = dataclasses.replace(thing, name=name, title="", aliases=())
    others = {score.mask_title for score in SCORES.values() if not score.code}
    if entry.label.lower() in map(str.lower, others | {"Dense", "LoRA"}):
        raise ConfigError(f"there is another mask called {entry.label}; give {name} another name")
    return entry


def _attack(name: str, thing: Any) -> Attack:
    return dataclasses.replace(thing if isinstance(thing, Attack) else Attack("", thing), name=name)


def _data_set(name: str, thing: Any) -> DataSet:
    entry = thing if isinstance(thing, DataSet) else DataSet("", thing)
    return DataSet(name, entry.place, max_length=entry.max_length, refusals=entry.refusals)


def _is_benchmark(thing: Any) -> bool:
    from wagle.metrics.benchmark import Benchmark

    return isinstance(thing, Benchmark)


_MADE_OF = (Entry.__module__, "wagle.metrics.benchmark")
"""Where the classes stand of which code from outside makes objects."""
_KINDS = (
    _Kind(METHODS, "class that derives from Objective", _is_objective, _method),
    _Kind(SCORES, "wagle.entries.Score", lambda thing: isinstance(thing, Score), _score),
    _Kind(
        ATTACKS,
        "function of an AttackedText or wagle.entries.Attack",
        lambda thing: inspect.isfunction(thing) or isinstance(thing, Attack),
        _attack,
    ),
    _Kind(
        DATA_SETS,
        "function of a RowsRequest or wagle.entries.DataSet",
        lambda thing: inspect.isfunction(thing) or isinstance(thing, DataSet),
        _data_set,
    ),
    _Kind(BENCHMARKS, "wagle.metrics.benchmark.Benchmark", _is_benchmark, Entry),
)
