"""Which runs a table needs, and the command line of each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wagle.catalogue import BENCHMARKS, METHODS, SCORES
from wagle.config import UNLEARN_KEYS, UnlearnConfig, load_config, mask_ratio
from wagle.entries import label_of
from wagle.errors import ConfigError
from wagle.metrics.benchmarks import benchmark_of
from wagle.outside import is_outside
from wagle.reporting.table_masks import (
    DENSE,
    LORA,
    find_mask,
    mask_folder,
    mask_name,
    plain,
    score_of,
)

STUDIES = ("mu", "ratio", "cost")
"""Tables about any benchmark; unless more methods are named, about one method. The others are each
about the benchmark whose name they have."""
TABLES = (*(name for name in BENCHMARKS if name != "none"), *STUDIES)

USUAL_METHODS = ("GradDiff", "NPO", "PO")
RATIOS = (0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0)
MUS = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)
USUAL_RATIO = 0.8

ORIGINAL = "Original"
"""The model before unlearning, in tables."""
RETAIN_ONLY = "Retain-only"
"""The model that never saw the forget set, as far as runs were given its results."""

TASK_MASKS = (DENSE, "Random", "Magnitude", "Wanda", LORA, "WAGLE")
RATIO_MASKS = ("WAGLE", "Random", "Magnitude")
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
class TableRow:
    """A line of a table: everything about a run but its seed.

    Attributes:
        method: as in the table; ``ORIGINAL`` stands for the model before unlearning.
        mask: a name in ``MASKS``, empty for the original.
        ratio: share of the weights that are selected, where the mask has one to choose.
        mu: WAGLE's μ, in tables that vary it.
    """

    method: str
    mask: str = ""
    ratio: float | None = None
    mu: float | None = None

    @property
    def name(self) -> str:
        """Readable, and fit for a folder: ``GradDiff+WAGLE_0.8``."""
        mask = f"+{self.mask}" if self.mask else ""
        ratio = "" if self.ratio is None else f"_{plain(self.ratio)}"
        mu = "" if self.mu is None else f"_mu{self.mu!r}"
        return f"{self.method}{mask}{ratio}{mu}"


@dataclass(frozen=True)
class PlannedRun:
    """One run of ``unlearn_model.py``.

    Attributes:
        row: where it belongs in the table.
        seed: ``overall.seed``; ``None`` for the original, which is evaluated once.
        arguments: of ``unlearn_model.py``.
        folder: the run folder.
        config: what the arguments amount to.
    """

    row: TableRow
    seed: int | None
    arguments: tuple[str, ...]
    folder: Path
    config: UnlearnConfig

    @cached_property
    def fingerprint(self) -> str:
        """Of the configuration; finished runs are found by it."""
        return self.config.fingerprint()

    @property
    def title(self) -> str:
        """For messages."""
        return self.row.name if self.seed is None else f"{self.row.name}, seed {self.seed}"


@dataclass(frozen=True)
class TableRequest:
    """What was asked for; ``None`` leaves a choice to the table.

    Attributes:
        table: one of ``STUDIES``, or the name of the benchmark that is run.
        config_file: a configuration for all methods, or a folder with a ``METHOD.json`` for each.
        output: runs go to ``runs/`` and masks to ``masks/`` in this folder.
        overrides: further ``--section.key value`` arguments of every run.
    """

    table: str
    config_file: Path
    output: Path
    methods: Sequence[str] | None = None
    masks: Sequence[str] | None = None
    ratios: Sequence[float] | None = None
    mus: Sequence[float] | None = None
    seeds: Sequence[int] = (0, 1, 2)
    overrides: Sequence[str] = ()


def plan_runs(request: TableRequest) -> list[PlannedRun]:
    """All runs of a table, in the order of its lines.

    Raises:
        ConfigError: a configuration is wrong, or the choices do not go together.
    """
    _check(request)
    output = _near(request.output)
    sources = _sources(request)
    bases = {method: _load(arguments) for method, arguments in sources.items()}
    for method, base in bases.items():
        _check_base(request, method, base)
    runs = []
    if request.table != "cost":
        runs.append(_original(bases, output))
    for row in _rows(request, bases):
        runs += [_run(request, row, seed, sources[row.method], output) for seed in request.seeds]
    return runs


def _check(request: TableRequest) -> None:
    if request.masks and request.table == "mu":
        raise ConfigError(f"table mu is about {' and '.join(MU_MASKS)}; leave --masks out")
    if request.mus and request.table != "mu":
        raise ConfigError("--mus is for --table mu; elsewhere write --unlearn.mu VALUE")
    for ratio in request.ratios or ():
        if mask_ratio(f"_{plain(ratio)}.pt") != ratio:
            raise ConfigError(
                f"--ratios takes numbers above 0 and up to 1, of at most 8 decimals, not {ratio}"
            )
    taken = {**_TAKEN, "unlearn.mu": "--mus"} if request.table == "mu" else _TAKEN
    for key in _keys(request.overrides):
        if key in taken:
            raise ConfigError(f"{key} differs between the runs of a table; use {taken[key]}")


def _keys(overrides: Sequence[str]) -> list[str]:
    return [text[2:].partition("=")[0] for text in overrides if text.startswith("--")]


def _check_base(request: TableRequest, method: str, base: UnlearnConfig) -> None:
    benchmark = benchmark_of(base)
    if request.table not in (*STUDIES, *BENCHMARKS, benchmark.name):
        raise ConfigError(
            f"there is no table {request.table!r}; --table takes {', '.join(TABLES)}, or the name "
            "of the benchmark from outside the program that unlearn.task_name names"
        )
    if request.table not in (*STUDIES, benchmark.name):
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


def _near(folder: Path) -> Path:
    """The folder from here, so that other spellings of it give the same configurations."""
    folder = folder.resolve()
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _load(arguments: Sequence[str]) -> UnlearnConfig:
    return load_config(arguments, prog="unlearn_model.py", description="")


def _sources(request: TableRequest) -> dict[str, list[str]]:
    """For each method the arguments that all its runs share."""
    given = Path(request.config_file)
    if given.is_dir():
        files = {method: _method_file(given, method) for method in request.methods or USUAL_METHODS}
        if request.methods is None:
            files = {method: path for method, path in files.items() if path.is_file()}
        if not files:
            raise ConfigError(
                f"{given} holds none of {', '.join(f'{m}.json' for m in USUAL_METHODS)}; say with "
                "--methods which of its files to use"
            )
        sources = {m: ["--config_file", str(path), *request.overrides] for m, path in files.items()}
    else:
        common = ["--config_file", str(given), *request.overrides]
        methods = request.methods or [_method_of(_load(common), given)]
        sources = {_title(m, common): [*common, "--unlearn.unlearn_method", m] for m in methods}
    if request.methods is None and request.table in STUDIES:
        sources = dict(list(sources.items())[:1])
    return sources


def _title(method: str, common: Sequence[str]) -> str:
    """The method as the table calls it; one from outside by the name of its class."""
    if not is_outside(method):
        return method
    return label_of(_load([*common, "--unlearn.unlearn_method", method])["unlearn.unlearn_method"])


def _method_file(folder: Path, method: str) -> Path:
    paths = [folder / f"{method}{suffix}" for suffix in (".json", ".yaml", ".yml")]
    return next((path for path in paths if path.is_file()), paths[0])


def _method_of(config: UnlearnConfig, path: Path) -> str:
    method = config.unlearn.unlearn_method
    if method == "origin":
        raise ConfigError(
            f"{path} names no unlearn.unlearn_method; say with --methods which to use"
        )
    return method if METHODS[method].code else METHODS[method].title


def _rows(request: TableRequest, bases: Mapping[str, UnlearnConfig]) -> list[TableRow]:
    """The lines below the original, each once: at ratio 1 every mask is the dense one."""
    rows = []
    for method, base in bases.items():
        for ratio in request.ratios or _ratios(request, method, base):
            for mask in _masks(request):
                mus = request.mus or MUS if request.table == "mu" and mask == "WAGLE" else (None,)
                rows += [_row(method, mask, ratio, mu) for mu in mus]
    return list(dict.fromkeys(rows))


def _row(method: str, mask: str, ratio: float, mu: float | None) -> TableRow:
    score = score_of(mask)
    if score is None or not score.has_ratio:
        return TableRow(method, mask)
    return TableRow(method, DENSE) if ratio == 1 else TableRow(method, mask, ratio, mu)


def _masks(request: TableRequest) -> Sequence[str]:
    if request.masks:
        return [_find_mask(name, request.overrides) for name in request.masks]
    return {"ratio": RATIO_MASKS, "mu": MU_MASKS}.get(request.table, TASK_MASKS)


def _find_mask(name: str, overrides: Sequence[str]) -> str:
    """As :func:`find_mask`; a score from outside is entered in the catalogue where trusted."""
    if not is_outside(name):
        return find_mask(name)
    options = ["--overall.model_name", "any", *overrides, "--unlearn.score_type", name]
    return SCORES[_load(options)["unlearn.score_type"]].mask_title


def _ratios(request: TableRequest, method: str, base: UnlearnConfig) -> Sequence[float]:
    """All for the sweep; else that of METHOD+WAGLE's configuration, or of the method's own mask."""
    if request.table == "ratio":
        return RATIOS
    masked = _method_file(Path(request.config_file), f"{method}+WAGLE")
    if masked.is_file():
        base = _load(["--config_file", str(masked)])
    return (base.ratio or USUAL_RATIO,)


def _original(bases: Mapping[str, UnlearnConfig], output: Path) -> PlannedRun:
    """The model before unlearning; only keys that its evaluation may depend on are given.

    Raises:
        ConfigError: the methods' configurations would evaluate it in different ways.
    """
    settings = {method: _evaluation_settings(base) for method, base in bases.items()}
    (first, chosen), *others = settings.items()
    for method, other in others:
        differing = [key for key in {**chosen, **other} if chosen.get(key) != other.get(key)]
        if differing:
            raise ConfigError(
                f"the configurations of {first} and {method} belong in different tables: they "
                f"differ in {', '.join(differing)}"
            )
    arguments = ["--unlearn.unlearn_method", "origin"]
    for key, value in chosen.items():
        arguments += [f"--{key}", value]
    return _finish(TableRow(ORIGINAL), None, arguments, output)


def _evaluation_settings(base: UnlearnConfig) -> dict[str, str]:
    """What is not at its default, as it is written on the command line."""
    settings = {}
    for key in UNLEARN_KEYS:
        evaluated = key.name.startswith(("overall.", "dataset.", "evaluation."))
        idle = key.name in ("overall.seed", "overall.logger", "dataset.batch_size")
        value = base[key.name]
        if key.name != "unlearn.task_name" and (not evaluated or idle or value == key.default):
            continue
        settings[key.name] = value if isinstance(value, str) else json.dumps(value)
    return settings


def _run(
    request: TableRequest, row: TableRow, seed: int, source: Sequence[str], output: Path
) -> PlannedRun:
    score = score_of(row.mask)
    settings = {
        "overall.seed": seed,
        "unlearn.use_lora": "true" if row.mask == LORA else "false",
        "unlearn.mask_path": "null",
        "unlearn.mask_ratio": "null",
    }
    if row.mu is not None:
        settings["unlearn.mu"] = repr(row.mu)
    if "unlearn.save_model" not in _keys(request.overrides):
        settings["unlearn.save_model"] = "false"
    if score is None:
        return _finish(row, seed, [*source, *_options(settings)], output)
    settings["unlearn.score_type"] = score.name
    if request.table == "cost":
        # In the run's own folder: there is nothing to be reused, also after an interruption.
        name = f"cost/{row.name}"
        mask = f"mask_{plain(row.ratio or 1)}.safetensors"
        settings["unlearn.mask_path"] = str(output / "runs" / name / mask)
        folder = _folder(name, seed, _load([*source, *_options(settings)]), output)
    else:
        base = _load([*source, *_options(settings)])
        folder = output / "masks" / mask_folder(base, score)
        mask = mask_name(base, score, row.ratio)
    settings["unlearn.mask_path"] = str(folder / mask)
    settings["unlearn.gradient_cache"] = str(folder / "sums")
    arguments = [*source, *_options(settings)]
    return _finish(row, seed, arguments, output, folder if request.table == "cost" else None)


def _options(settings: Mapping[str, object]) -> Iterator[str]:
    for key, value in settings.items():
        yield f"--{key}"
        yield str(value)


def _finish(
    row: TableRow,
    seed: int | None,
    arguments: Sequence[str],
    output: Path,
    folder: Path | None = None,
) -> PlannedRun:
    """Choose the run folder unless it is given: the name is readable, and other settings differ."""
    try:
        config = _load(arguments)
    except ConfigError as error:
        raise ConfigError(f"{row.name}: {error}") from error
    root = output / "runs"
    folder = folder or _folder(row.name, seed, config, output)
    logger = "wandb" if config.overall.logger == "wandb" else "json"
    place = {
        "overall.logger": logger,
        "logger.json.root": root,
        "logger.name": folder.relative_to(root),
    }
    return PlannedRun(row, seed, (*arguments, *_options(place)), folder, config)


def _folder(name: str, seed: int | None, config: UnlearnConfig, output: Path) -> Path:
    run = "evaluation" if seed is None else f"seed{seed}"
    return output / "runs" / name / f"{run}-{config.fingerprint()[:8]}"
