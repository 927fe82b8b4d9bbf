"""What may be asked of a table: which there are, and choices that do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wagle.catalogue import BENCHMARKS
from wagle.config import UnlearnConfig, mask_ratio
from wagle.errors import ConfigError
from wagle.metrics.benchmarks import benchmark_of
from wagle.reporting.grid import Grid, key_of
from wagle.reporting.table_masks import plain

CHAIN = "sustainability"
"""The table in which each run starts from the model of the one before."""
STEPS = {"scalability": "scal", CHAIN: "sust"}
"""Tables about several forget sets, and the part of MUSE's data sets that has them."""
STUDIES = ("mu", "ratio", "cost", *STEPS)
"""Tables about any benchmark; unless more methods are named, about one method. The others are each
about the benchmark whose name they have."""
TABLES = (*(name for name in BENCHMARKS if name != "none"), *STUDIES)
SWEEP = "sweep"
"""What :mod:`wagle.reporting.sweep` plans; it is no table of ``wagle table``."""
FORGET_SET = "forget set"
"""How tables of several forget sets call ``dataset.forget_dataset_name``."""

MU_MASKS = ("WAGLE", "WAGLE-GN")

# Keys that a table sets itself, and the option that decides them.
_TAKEN = {
    "overall.seed": "--seeds",
    "unlearn.unlearn_method": "--methods",
    "unlearn.mask_path": "--masks and --ratios",
    "unlearn.mask_ratio": "--ratios",
    "unlearn.score_type": "--masks",
    "unlearn.use_lora": "--masks LoRA",
    "unlearn.gradient_cache": "-o",
    "unlearn.resume_path": "--methods",
    "logger.name": "-o",
    "logger.json.root": "-o",
}


@dataclass(frozen=True)
class TableRequest:
    """What was asked for; ``None`` leaves a choice to the table.

    Attributes:
        table: one of ``STUDIES``, or the name of the benchmark that is run.
        config_file: a configuration for all methods, or a folder with a ``METHOD.json`` for each.
        output: runs go to ``runs/`` and masks to ``masks/`` in this folder.
        forget_sets: of tables about several, in the order of growth or of the requests.
        grid: values of keys that differ between the runs of a sweep.
        overrides: further ``--section.key value`` arguments of every run.
    """

    table: str
    config_file: Path
    output: Path
    methods: Sequence[str] | None = None
    masks: Sequence[str] | None = None
    ratios: Sequence[float] | None = None
    mus: Sequence[float] | None = None
    forget_sets: Sequence[str] | None = None
    grid: Grid = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    overrides: Sequence[str] = ()


def check_request(request: TableRequest) -> None:
    """Whether the choices go together.

    Raises:
        ConfigError: they do not.
    """
    if request.masks and request.table == "mu":
        raise ConfigError(f"table mu is about {' and '.join(MU_MASKS)}; leave --masks out")
    if request.mus and request.table != "mu":
        raise ConfigError("--mus is for --table mu; elsewhere write --unlearn.mu VALUE")
    for ratio in request.ratios or ():
        if mask_ratio(f"_{plain(ratio)}.pt") != ratio:
            raise ConfigError(
                f"--ratios takes numbers above 0 and up to 1, of at most 8 decimals, not {ratio}"
            )
    if request.forget_sets and request.table not in STEPS:
        raise ConfigError(
            f"--forget_sets is for --table {' and '.join(STEPS)}; elsewhere write "
            "--dataset.forget_dataset_name NAME"
        )
    taken = {**_TAKEN, "unlearn.mu": "--mus"} if request.table == "mu" else _TAKEN
    for key in keys_of(request.overrides):
        if key in taken:
            raise ConfigError(f"{key} differs between the runs of a table; use {taken[key]}")


def _check_grid(request: TableRequest, base: UnlearnConfig) -> None:
    """No key of the grid is decided elsewhere."""
    for name in request.grid:
        key = key_of(name, base)
        if key in _TAKEN:
            raise ConfigError(f"--grid {name}: use {_TAKEN[key]}")
        if key in keys_of(request.overrides):
            raise ConfigError(f"{key} is given for all runs, and in --grid; leave one of them out")


def keys_of(overrides: Sequence[str]) -> list[str]:
    """The keys that are given."""
    return [text[2:].partition("=")[0] for text in overrides if text.startswith("--")]


def check_base(request: TableRequest, method: str, base: UnlearnConfig) -> None:
    """Whether the table can be made of a method's configuration.

    Raises:
        ConfigError: it cannot.
    """
    _check_grid(request, base)
    benchmark = benchmark_of(base)
    if request.table not in (*STUDIES, SWEEP, *BENCHMARKS, benchmark.name):
        raise ConfigError(
            f"there is no table {request.table!r}; --table takes {', '.join(TABLES)}, or the name "
            "of the benchmark from outside the program that unlearn.task_name names"
        )
    if request.table not in (*STUDIES, SWEEP, benchmark.name):
        raise ConfigError(
            f"--table {request.table} needs unlearn.task_name {request.table}, but the "
            f"configuration of {method} has {base.unlearn.task_name}"
        )
    if request.table != "cost" and not benchmark.columns:
        raise ConfigError(f"the configuration of {method} evaluates nothing; set unlearn.task_name")
    if base.unlearn.resume_path is not None:
        raise ConfigError(
            f"the configuration of {method} has unlearn.resume_path, so nothing would be trained"
        )
