"""Which runs a table needs, and the command line of each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from wagle.catalogue import DATA_SETS, METHODS, SCORES
from wagle.config import UNLEARN_KEYS, UnlearnConfig, load_config
from wagle.dataset.names import family_of
from wagle.entries import label_of
from wagle.errors import ConfigError
from wagle.loggers.run_folder import CHECKPOINTS
from wagle.outside import is_outside
from wagle.reporting.grid import key_of, settings_of
from wagle.reporting.planned import ORIGINAL, PlannedRun, Settings, TableRow
from wagle.reporting.request import (
    CHAIN,
    FORGET_SET,
    MU_MASKS,
    STEPS,
    STUDIES,
    SWEEP,
    TableRequest,
    check_base,
    check_request,
    keys_of,
)
from wagle.reporting.table_masks import (
    DENSE,
    LORA,
    find_mask,
    mask_folder,
    mask_name,
    plain,
    score_of,
)

USUAL_METHODS = ("GradDiff", "NPO", "PO")
RATIOS = (0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0)
MUS = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)
USUAL_RATIO = 0.8

TASK_MASKS = (DENSE, "Random", "Magnitude", "Wanda", LORA, "WAGLE")
RATIO_MASKS = ("WAGLE", "Random", "Magnitude")
FEW_MASKS = (DENSE, "WAGLE")


def plan_runs(request: TableRequest) -> list[PlannedRun]:
    """All runs of a table, in the order of its lines.

    Raises:
        ConfigError: a configuration is wrong, or the choices do not go together.
    """
    check_request(request)
    output = _near(request.output)
    sources = _sources(request)
    bases = {method: _load(arguments) for method, arguments in sources.items()}
    for method, base in bases.items():
        check_base(request, method, base)
    runs = []
    if request.table != "cost":
        runs.append(_original(bases, output))
    latest: dict[tuple[TableRow, int], PlannedRun] = {}  # of the requests of a chain
    for row in _rows(request, bases):
        for seed in request.seeds:
            chain = replace(row, settings=()), seed
            after = latest.get(chain)
            run = _run(request, row, seed, sources[row.method], output, after)
            if after and "unlearn.save_model" not in keys_of(request.overrides):
                run = replace(run, clears=after.folder / CHECKPOINTS)
            if request.table == CHAIN:
                latest[chain] = run
            runs.append(run)
    return runs


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
                points = _points(request, base, mask)
                rows += [_row(method, mask, ratio, mu, point) for mu in mus for point in points]
    return list(dict.fromkeys(rows))


def _row(method: str, mask: str, ratio: float, mu: float | None, settings: Settings) -> TableRow:
    score = score_of(mask)
    if score is None or not score.has_ratio:
        return TableRow(method, mask, settings=settings)
    if ratio == 1:
        return TableRow(method, DENSE, settings=settings)
    return TableRow(method, mask, ratio, mu, settings)


def _points(request: TableRequest, base: UnlearnConfig, mask: str) -> Sequence[Settings]:
    """What else the runs of a method and a mask differ by."""
    if request.table in STEPS:
        return [((FORGET_SET, name),) for name in forget_sets(request, base)]
    return settings_of(request.grid, base, mask)


def forget_sets(request: TableRequest, base: UnlearnConfig) -> Sequence[str]:
    """Those of a table about several: as asked for, or those that the data's family has for it.

    Raises:
        ConfigError: neither says any.
    """
    if request.forget_sets:
        return request.forget_sets
    family, part = family_of(base.dataset.forget_dataset_name), f"{STEPS[request.table]}_forget_"
    known = DATA_SETS[family].subsets if family else ()
    names = [f"{family}_{subset}" for subset in known if subset.startswith(part)]
    if not names:
        raise ConfigError(
            f"--table {request.table} is about several forget sets, and of "
            f"{base.dataset.forget_dataset_name} there are none; name them with --forget_sets"
        )
    return names


def _masks(request: TableRequest) -> Sequence[str]:
    if request.masks:
        return [_find_mask(name, request.overrides) for name in request.masks]
    few = dict.fromkeys((SWEEP, *STEPS), FEW_MASKS)
    return {"ratio": RATIO_MASKS, "mu": MU_MASKS, **few}.get(request.table, TASK_MASKS)


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
    request: TableRequest,
    row: TableRow,
    seed: int,
    source: Sequence[str],
    output: Path,
    after: PlannedRun | None,
) -> PlannedRun:
    score = score_of(row.mask)
    source = [*source, *_options(_varied(row, source))]
    if after is not None:
        source += ["--overall.model_name", str(after.folder / CHECKPOINTS)]
    settings = {
        "overall.seed": seed,
        "unlearn.use_lora": "true" if row.mask == LORA else "false",
        "unlearn.mask_path": "null",
        "unlearn.mask_ratio": "null",
    }
    if row.mu is not None:
        settings["unlearn.mu"] = repr(row.mu)
    if "unlearn.save_model" not in keys_of(request.overrides):
        settings["unlearn.save_model"] = "true" if request.table == CHAIN else "false"
    if score is None:
        return _finish(row, seed, [*source, *_options(settings)], output, after=after)
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
    place = folder if request.table == "cost" else None
    return _finish(row, seed, arguments, output, place, after)


def _varied(row: TableRow, source: Sequence[str]) -> dict[str, str]:
    """The row's settings by their whole keys."""
    if not row.settings:
        return {}
    base = _load(source)
    names = {FORGET_SET: "dataset.forget_dataset_name"}
    return {names.get(name) or str(key_of(name, base)): value for name, value in row.settings}


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
    after: PlannedRun | None = None,
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
    return PlannedRun(row, seed, (*arguments, *_options(place)), folder, config, after)


def _folder(name: str, seed: int | None, config: UnlearnConfig, output: Path) -> Path:
    run = "evaluation" if seed is None else f"seed{seed}"
    return output / "runs" / name / f"{run}-{config.fingerprint()[:8]}"
