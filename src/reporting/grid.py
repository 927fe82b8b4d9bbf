"""What runs of a table may differ by beside method, mask and seed: values of any keys.

A key is named whole, ``unlearn.lr``, or by its last part: ``lr``, and ``gamma`` for that of the
method, whichever it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from wagle.catalogue import METHODS
from wagle.config import UnlearnConfig
from wagle.entries import label_of
from wagle.errors import ConfigError
from wagle.reporting.planned import Settings
from wagle.reporting.table_masks import score_of

Grid = Mapping[str, Sequence[str]]
"""Values by the name of their key."""


def read_grid(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The grid of a command line.

    >>> read_grid(["lr=1e-4,3e-4", "gamma=1"])
    {'lr': ('1e-4', '3e-4'), 'gamma': ('1',)}

    Raises:
        ConfigError: a text has another form, or a key comes twice.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        values = tuple(dict.fromkeys(value.strip() for value in rest.split(",")))
        if not (name and equals and all(values)):
            raise ConfigError(f"--grid takes KEY=VALUE,VALUE, like lr=1e-4,3e-4, not {text!r}")
        if name in grid:
            raise ConfigError(f"--grid has {name} twice; write all its values behind one")
        grid[name] = values
    return grid


def key_of(name: str, config: UnlearnConfig) -> str | None:
    """The key that a name means for a method; ``None`` where it is one that other methods have.

    Args:
        config: of a run of the method.

    Raises:
        ConfigError: there is no such key, or there are several.
    """
    mine = f"unlearn.{label_of(config['unlearn.unlearn_method'])}."
    methods = tuple(f"unlearn.{method.label}." for method in METHODS.values())
    found = [key for key in config if name in (key, key.rpartition(".")[2])]
    common = [key for key in found if not key.startswith(methods)]
    chosen = [key for key in found if key.startswith(mine)] or common
    if len(chosen) > 1:
        raise ConfigError(f"--grid {name} may be {' or '.join(chosen)}; write one of them whole")
    if not found:
        raise ConfigError(f"--grid {name}: there is no such key; --help of unlearn lists all keys")
    return chosen[0] if chosen else None


def settings_of(grid: Grid, config: UnlearnConfig, mask: str) -> list[Settings]:
    """The points of a grid for a method and a mask, each once, as far as the keys concern them.

    For example, of a β that only NPO has, GradDiff has no values; nor of a μ has a random mask.

    Raises:
        ConfigError: as :func:`key_of`.
    """
    score = score_of(mask)
    keys = {name: key_of(name, config) for name in grid}
    named = {name: key for name, key in keys.items() if key is not None}
    if not (score and score.depends_on("mu")):
        named = {name: key for name, key in named.items() if key != "unlearn.mu"}
    if len(set(named.values())) < len(named):
        raise ConfigError(f"--grid names one key in two ways: {', '.join(named)}")
    return [
        tuple(zip(named, values, strict=True))
        for values in itertools.product(*(grid[name] for name in named))
    ]
