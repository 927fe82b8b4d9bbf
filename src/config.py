"""Configuration: every key once, and strict parsing.

The command line beats configuration files, which beat defaults. Sections and parameters are those
of fastargs; its gaps are closed here: unknown keys are errors that name the nearest known key, all
bad values are reported at once, environment variables play no part, and booleans mean what they
say. Nothing heavy is imported, so that mistakes show at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastargs
import yaml
from fastargs.validation import Checker

from src.errors import ConfigError

# --------------------------------------------------------------------------- kinds of values


@dataclass(frozen=True, eq=False)
class Text(Checker):
    """A non-empty string."""

    what: str = "text"

    def check(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise ValueError
        return value

    def help(self) -> str:
        return self.what


@dataclass(frozen=True, eq=False)
class Flag(Checker):
    """A boolean: JSON's own, or true, false, 1, 0."""

    def check(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]

    def help(self) -> str:
        return "true or false"


@dataclass(frozen=True, eq=False)
class Number(Checker):
    """A finite number, at least ``low`` (or above it) and at most ``high``; maybe whole."""

    whole: bool = False
    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def check(self, value: Any) -> int | float:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        low_enough = number > self.low if self.above else number >= self.low
        if not math.isfinite(number) or not low_enough or number > self.high:
            raise ValueError
        if not self.whole:
            return number
        if number != int(number):
            raise ValueError
        return int(number)

    def help(self) -> str:
        text = "whole number" if self.whole else "number"
        if self.low > -math.inf:
            text += f" above {self.low:g}" if self.above else f" from {self.low:g}"
        if self.high < math.inf:
            text += f" to {self.high:g}"
        return text


@dataclass(frozen=True, eq=False)
class Choice(Checker):
    """One of some names; aliases are replaced by the name they stand for."""

    names: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def check(self, value: Any) -> str:
        value = self.aliases.get(value, value)
        if value not in self.names:
            raise ValueError
        return value

    def help(self) -> str:
        return "one of " + ", ".join([*self.names, *self.aliases])


@dataclass(frozen=True, eq=False)
class ListOf(Checker):
    """A JSON list, or items separated by commas."""

    item: Checker

    def check(self, value: Any) -> list:
        items = [part for part in value.split(",") if part] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise ValueError
        return [self.item.check(item) for item in items]

    def help(self) -> str:
        return f"list; each {self.item.help()}"


TOFU_SUBSETS = (
    *("full", "forget01", "forget05", "forget10", "retain90", "retain95", "retain99"),
    *("holdout01", "holdout05", "holdout10", "real_authors", "world_facts"),
    *("forget01_perturbed", "forget05_perturbed", "forget10_perturbed", "retain_perturbed"),
    *("real_authors_perturbed", "world_facts_perturbed"),
)
DATASETS = (
    *(f"Tofu_{subset}" for subset in TOFU_SUBSETS),
    *(f"Demo_{subset}" for subset in (*TOFU_SUBSETS, "knowledge")),
    *("WMDPCyber", "WMDPBio", "WMDPALL", "HP", "SafePku", "C4", "wikitext", "TruthfulQA"),
)


@dataclass(frozen=True, eq=False)
class DatasetName(Checker):
    """The name of a data set."""

    def check(self, value: Any) -> str:
        value = {"Copyright": "HP"}.get(value, value)
        if value not in DATASETS:
            raise ValueError
        return value

    def help(self) -> str:
        return "Tofu_SUBSET, Demo_SUBSET, " + ", ".join(DATASETS[-8:]) + ", Copyright"


# ----------------------------------------------------------------------------------- the keys

REQUIRED = object()


@dataclass(frozen=True)
class Key:
    """One configuration key: ``section.key``, what it takes, its default, what it means."""

    name: str
    checker: Checker
    default: Any
    meaning: str


METHODS = (
    *("origin", "FT", "l1_sparse", "GA", "GA+FT", "GA+KL", "NPO+FT"),
    *("CL", "CL+FT", "CL+KL", "RL", "KL"),
)
METHOD_ALIASES = {"GradDiff": "GA+FT", "NPO": "NPO+FT", "PO": "CL+FT"}
METHOD_PARAMS: dict[str, dict[str, tuple[Checker, float]]] = {
    "l1_sparse": {"alpha": (Number(low=0), 0.0)},
    "GA+FT": {"gamma": (Number(), 0.0)},
    "GA+KL": {"gamma": (Number(), 0.0)},
    "NPO+FT": {"gamma": (Number(), 0.0), "beta": (Number(low=0, above=True), 0.1)},
    "CL+FT": {"gamma": (Number(), 1.0)},
    "CL+KL": {"gamma": (Number(), 0.0)},
    "KL": {"gamma": (Number(), 0.0)},
}
SCORE_TYPES = (
    *("wagle", "wagle_cl", "wagle_gn", "random", "magnitude", "gradient", "snip"),
    *("wanda", "ffn"),
)
PUBLISHED_SCORE_TYPES = {
    "snip_advanced": "wagle",
    "snip_advanced_CL": "wagle_cl",
    "snip_advanced_gn": "wagle_gn",
    "weight": "magnitude",
    "FFN": "ffn",
}

_COUNT = Number(whole=True, low=1)
_SEED = Number(whole=True, low=0)
_STEPS = Number(whole=True, low=-1)
_MEANINGS = {"gamma": "weight of the retain term", "alpha": "weight of Σ|θ|", "beta": "NPO's β"}

OVERALL_KEYS = (
    Key("overall.model_name", Text("hub id or folder"), REQUIRED, "model to start from"),
    Key("overall.logger", Choice(("json", "none", "wandb")), "none", "where results go"),
    Key("overall.cache_dir", Text("folder"), ".cache", "hub cache"),
    Key("overall.seed", _SEED, 0, "seeds python, numpy and torch"),
    Key(
        "overall.dtype",
        Choice(("auto", "bfloat16", "float16", "float32")),
        "auto",
        "of the weights; auto: bfloat16 on a GPU, float32 on the CPU",
    ),
    Key("overall.device", Choice(("auto", "cpu", "cuda", "mps")), "auto", "where to run"),
)
DATA_SOURCE_KEYS = (
    Key("dataset.data_dir", Text("folder"), None, "read data sets here instead of from the hub"),
    Key(
        "dataset.template",
        Choice(("auto", "llama2_published", "llama2", "question_answer", "chat")),
        "auto",
        "prompt template; auto: the published rule",
    ),
)
LOGGER_KEYS = (
    Key("logger.name", Text("name"), None, "run folder below the root; default: a timestamp"),
    Key("logger.json.root", Text("folder"), "files/logs", "where run folders are made"),
    Key("logger.wandb.project", Text("name"), "wagle", "Weights & Biases project"),
    Key(
        "logger.wandb.mode",
        Choice(("online", "offline", "disabled")),
        "offline",
        "offline keeps the run on this machine until it is synced",
    ),
)
UNLEARN_KEYS = (
    *OVERALL_KEYS,
    Key("unlearn.unlearn_method", Choice(METHODS, METHOD_ALIASES), "origin", "objective"),
    Key("unlearn.num_epochs", _COUNT, 1, "passes over the forget set"),
    Key("unlearn.lr", Number(low=0, above=True), 1e-4, "learning rate"),
    Key("unlearn.weight_decay", Number(low=0), 0.0, "decoupled weight decay"),
    Key("unlearn.gradient_accumulation_steps", _COUNT, 1, "micro-batches per step"),
    Key(
        "unlearn.task_name",
        Choice(("toxic", "copyright", "tofu", "wmdp")),
        "toxic",
        "which evaluation runs",
    ),
    Key("unlearn.mask_path", Text("file"), None, "mask; computed when missing; null: dense"),
    Key(
        "unlearn.score_type",
        Choice(SCORE_TYPES, PUBLISHED_SCORE_TYPES),
        None,
        "how to make a missing mask; default: the mask folder's name if it is one, else wagle",
    ),
    Key("unlearn.mu", Number(low=0, above=True), 1e-3, "WAGLE's Hessian diagonal μ"),
    Key("unlearn.mask_scope", Choice(("global", "layer", "tensor")), "global", "what is ranked"),
    Key(
        "unlearn.mask_exclude",
        ListOf(Choice(("embedding", "norm", "head"))),
        [],
        "kinds of weights that are never selected",
    ),
    Key("unlearn.attribution_batch_size", _COUNT, 8, "rows run at once for gradients"),
    Key(
        "unlearn.attribution_offload",
        Choice(("none", "cpu", "disk")),
        "none",
        "where sums of gradients live",
    ),
    Key(
        "unlearn.attribution_dtype",
        Choice(("float32", "float64")),
        "float32",
        "of the sums of gradients",
    ),
    Key("unlearn.p", Number(), 0.01, "accepted for old configs, unused"),
    Key("unlearn.q", Number(), 0.01, "accepted for old configs, unused"),
    Key("unlearn.sophia", Flag(), False, "Sophia-G instead of AdamW"),
    Key("unlearn.sophia_params.betas_low", Number(low=0, high=1), 0.9, "β1"),
    Key("unlearn.sophia_params.betas_high", Number(low=0, high=1), 0.95, "β2"),
    Key("unlearn.sophia_params.rho", Number(low=0, above=True), 0.03, "clipping ρ"),
    Key("unlearn.resume_path", Text("folder"), None, "evaluate this saved model; no training"),
    Key("unlearn.max_steps", _STEPS, -1, "optimizer steps; -1: from num_epochs"),
    Key("unlearn.use_lora", Flag(), False, "train LoRA adapters, merged when saved"),
    Key(
        "unlearn.mask_enforcement",
        Choice(("optimizer", "gradient")),
        "optimizer",
        "gradient: as published, frozen weights still decay",
    ),
    Key(
        "unlearn.master_weights",
        Flag(),
        None,
        "float32 masters of the selected weights; default: where dtype is 16-bit",
    ),
    Key("unlearn.gradient_checkpointing", Flag(), False, "less memory, more time"),
    *(
        Key(f"unlearn.{method}.{name}", checker, default, _MEANINGS[name])
        for method, params in METHOD_PARAMS.items()
        for name, (checker, default) in params.items()
    ),
    Key("dataset.forget_dataset_name", DatasetName(), "SafePku", "forget set"),
    Key("dataset.retain_dataset_name", DatasetName(), "TruthfulQA", "retain set"),
    Key("dataset.dataset_seed", _SEED, 0, "which forget examples are drawn"),
    Key(
        "dataset.forget_ratio",
        Number(low=0, above=True),
        200.0,
        "above 1: how many forget examples; otherwise which fraction",
    ),
    Key("dataset.self_retain", Flag(), False, "retain the forget set's rows not drawn"),
    Key("dataset.batch_size", _COUNT, 16, "examples per micro-batch"),
    Key("dataset.num_workers", Number(whole=True, low=0), 0, "loader processes"),
    *DATA_SOURCE_KEYS,
    Key(
        "evaluation.protocol",
        Choice(("corrected", "published")),
        "corrected",
        "published: as the paper's numbers were made",
    ),
    Key("evaluation.batch_size", _COUNT, 32, "sequences run at once"),
    Key("evaluation.limit", _COUNT, None, "first rows of each set, for a quick look"),
    Key("evaluation.tasks", ListOf(Text("task")), None, "lm-eval tasks to run as well"),
    Key(
        "evaluation.sentence_model",
        Text("hub id, folder or Python package"),
        "sentence-transformers/paraphrase-MiniLM-L6-v2",
        "sentence encoder for acc",
    ),
    Key(
        "evaluation.retain_results",
        Text("file"),
        None,
        "the retain-only model's tofu.json, for the official forget quality",
    ),
    *LOGGER_KEYS,
)
FINE_TUNE_KEYS = (
    *OVERALL_KEYS,
    Key("finetune.dataset_name", DatasetName(), REQUIRED, "what to learn"),
    Key("finetune.extra_dataset_names", ListOf(DatasetName()), [], "what to learn as well"),
    Key("finetune.subset_limit", _COUNT, None, "first rows of each data set"),
    Key("finetune.num_epochs", _COUNT, 1, "passes over the data"),
    Key("finetune.max_steps", _STEPS, -1, "optimizer steps; -1: from num_epochs"),
    Key("finetune.lr", Number(low=0, above=True), 1e-5, "learning rate"),
    Key("finetune.weight_decay", Number(low=0), 0.01, "decoupled weight decay"),
    Key("finetune.batch_size", _COUNT, 8, "examples per micro-batch"),
    Key("finetune.gradient_accumulation_steps", _COUNT, 1, "micro-batches per step"),
    Key("finetune.warmup_ratio", Number(low=0, high=1), 0.05, "share of the steps"),
    Key("finetune.output_dir", Text("folder"), REQUIRED, "where the model goes"),
    Key("finetune.from_scratch", Flag(), False, "build the tiny Llama of the demo"),
    *DATA_SOURCE_KEYS,
)

# Keys that change where things go or how fast, not what comes out.
_NO_INFLUENCE = ("logger.", "overall.cache_dir", "overall.logger", "dataset.num_workers")

# ------------------------------------------------------------------------------ configuration


class Config:
    """A resolved configuration: read keys with ``config["unlearn.lr"]``.

    Attributes:
        notices: remarks for the user about accepted but ineffective settings.
    """

    def __init__(self, values: Mapping[str, Any], notices: Sequence[str] = ()) -> None:
        self._values = dict(values)
        self.notices = list(notices)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    @property
    def method_params(self) -> dict[str, float]:
        """Hyper-parameters of the chosen unlearning method, by name."""
        method = self["unlearn.unlearn_method"]
        names = METHOD_PARAMS.get(method, {})
        return {name: self[f"unlearn.{method}.{name}"] for name in names}

    def as_dict(self) -> dict[str, Any]:
        """Every key as nested dicts; loading that as a file gives the same configuration."""
        nested: dict[str, Any] = {}
        for key, value in self._values.items():
            *sections, name = key.split(".")
            level = nested
            for section in sections:
                level = level.setdefault(section, {})
            level[name] = value
        return nested

    def fingerprint(self) -> str:
        """SHA-256 of the keys that influence results."""
        relevant = {k: v for k, v in self._values.items() if not k.startswith(_NO_INFLUENCE)}
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def load_config(
    argv: Sequence[str], *, keys: Sequence[Key] = UNLEARN_KEYS, prog: str, description: str
) -> Config:
    """Read the command line and the configuration files that it names.

    Args:
        argv: without the program's name: ``--config_file FILE``, ``--section.key value`` or
            ``--section.key=value``, ``--help``.
        keys: those that this program knows.
        prog, description: for the help text.

    Raises:
        ConfigError: the message lists everything that is wrong.
        SystemExit: after ``--help``.
    """
    if "--help" in argv or "-h" in argv:
        print(_help(keys, prog, description))
        sys.exit(0)
    files, overrides = _split_command_line(argv)
    given: dict[str, _Given] = {}
    for path in files:
        given.update(_read_file(path))
    given.update(overrides)
    given = {_canonical(name): value for name, value in given.items()}
    known = {key.name: key for key in keys}
    problems = [
        _unknown_key(name, value, known) for name, value in given.items() if name not in known
    ]
    values, bad = _check_values({n: g for n, g in given.items() if n in known}, keys)
    problems += bad
    if not problems:
        problems = _check_together(values)
    if problems:
        raise ConfigError("the configuration is wrong\n" + _table(_PROBLEM_HEAD, problems))
    if "unlearn.mask_path" in values and values["unlearn.score_type"] is None:
        values["unlearn.score_type"] = _score_type_of_folder(values["unlearn.mask_path"])
    unused = [name for name in ("unlearn.p", "unlearn.q") if name in given]
    notices = [f"{' and '.join(unused)} have no effect"] if unused else []
    return Config(values, notices)


def mask_ratio(path: str | Path) -> float | None:
    """The ratio in a mask's file name: ``tofu_0.8.pt`` and ``…with_0.8.pt`` carry 0.8.

    Returns:
        A number in (0, 1], or ``None`` where the name carries none.
    """
    match = re.search(r"_(\d*\.?\d+)\.(pt|safetensors)$", Path(path).name)
    ratio = float(match.group(1)) if match else 0.0
    return ratio if 0 < ratio <= 1 else None


# ------------------------------------------------------------------------------------ parsing


@dataclass(frozen=True)
class _Given:
    """A value as it was given, and where."""

    value: Any
    origin: str


_PROBLEM_HEAD = ("key", "problem", "given", "where")
_Problem = tuple[str, str, str, str]
_CONFIG_OPTIONS = ("--config_file", "--config-file", "-C")
_COMMAND_LINE = "command line"


def _split_command_line(argv: Sequence[str]) -> tuple[list[str], dict[str, _Given]]:
    files: list[str] = []
    overrides: dict[str, _Given] = {}
    arguments = iter(argv)
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option not in _CONFIG_OPTIONS and not option.startswith("--"):
            raise ConfigError(
                f"{argument!r} on the command line belongs to no option; write --section.key value"
            )
        if not equals:
            value = next(arguments, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"{option} on the command line needs a value")
        if option in _CONFIG_OPTIONS:
            files.append(value)
        else:
            value = None if value == "null" else value
            overrides[option.removeprefix("--")] = _Given(value, _COMMAND_LINE)
    return files, overrides


def _read_file(name: str) -> dict[str, _Given]:
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"there is no configuration file {name}")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix in (".yaml", ".yml"):
            content = yaml.safe_load(text)
        else:
            content = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f'{name} should hold one object of sections, like {{"overall": …}}')
    return {key: _Given(value, name) for key, value in _flatten(content)}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the same key twice: {', '.join(twice)}")
    return result


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _canonical(name: str) -> str:
    """A key in the section of a method's alias, as the same key of the method itself."""
    section, _, rest = name.removeprefix("unlearn.").partition(".")
    if name.startswith("unlearn.") and section in METHOD_ALIASES and rest:
        return f"unlearn.{METHOD_ALIASES[section]}.{rest}"
    return name


def _unknown_key(name: str, given: _Given, known: Mapping[str, Key]) -> _Problem:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    by_last_part = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    near = by_last_part[:1] or near
    hint = f"unknown key; did you mean {near[0]}?" if near else "unknown key; see --help"
    return name, hint, _shown(given.value), given.origin


def _check_values(
    given: Mapping[str, _Given], keys: Sequence[Key]
) -> tuple[dict[str, Any], list[_Problem]]:
    declared = _declare(keys)
    declared.collect({name: g.value for name, g in given.items() if g.value is not None})
    errors = declared.validate(mode="errordict")
    problems = []
    for path in errors:
        name = ".".join(path)
        checker = declared.entries[path].checker
        if name in given and given[name].value is not None:
            problem = f"should be {checker.help()}"
            problems.append((name, problem, _shown(given[name].value), given[name].origin))
        else:
            problems.append((name, f"is required: {checker.help()}", "nothing", ""))
    values = {}
    for key in keys:
        path = tuple(key.name.split("."))
        values[key.name] = None if path in errors else declared[key.name]
    return values, problems


def _declare(keys: Sequence[Key]) -> fastargs.Config:
    """The keys as fastargs sections and parameters."""
    declared = fastargs.Config()
    for key in keys:
        section, _, name = key.name.rpartition(".")
        required = key.default is REQUIRED
        param = fastargs.Param(
            key.checker,
            key.meaning,
            default=None if required else key.default,
            required=required,
        )
        fastargs.Section(section, config_descriptor=declared).params(**{name: param})
    return declared


def _check_together(values: Mapping[str, Any]) -> list[_Problem]:
    """Rules that concern more than one key, or the files that keys name."""
    problems: list[_Problem] = []

    def refuse(key: str, problem: str) -> None:
        problems.append((key, problem, _shown(values[key]), ""))

    mask_path = values.get("unlearn.mask_path")
    if mask_path is not None:
        if Path(mask_path).suffix not in (".pt", ".safetensors"):
            refuse("unlearn.mask_path", "a mask file ends in .pt or .safetensors")
        elif not Path(mask_path).is_file() and mask_ratio(mask_path) is None:
            refuse(
                "unlearn.mask_path",
                "there is no such file, and its name carries no ratio to make one: name it "
                "NAME_RATIO.pt with a ratio above 0 and up to 1, like tofu_0.8.pt",
            )
        if values["unlearn.use_lora"]:
            refuse("unlearn.mask_path", "LoRA trains adapters, not masked weights: choose one")
    resume = values.get("unlearn.resume_path")
    if resume is not None and not Path(resume).is_dir():
        refuse("unlearn.resume_path", "there is no such folder")
    data_dir = values.get("dataset.data_dir")
    if data_dir is not None and not Path(data_dir).is_dir():
        refuse("dataset.data_dir", "there is no such folder")
    return problems


def _score_type_of_folder(mask_path: str | None) -> str:
    folder = Path(mask_path).parent.name if mask_path else ""
    folder = PUBLISHED_SCORE_TYPES.get(folder, folder)
    return folder if folder in SCORE_TYPES else "wagle"


# ------------------------------------------------------------------------------------ display


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows in aligned columns; wide columns wrap so that lines fit the terminal."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    room = min(shutil.get_terminal_size((100, 24)).columns, 100) - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths[1:]) > 12:  # the first column holds names: kept whole
        widths[widths.index(max(widths[1:]), 1)] -= 1
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [
            textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)
        ]
        for index in range(max(len(cell) for cell in cells)):
            parts = [
                (cell[index] if index < len(cell) else "").ljust(width)
                for cell, width in zip(cells, widths, strict=True)
            ]
            lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _help(keys: Sequence[Key], prog: str, description: str) -> str:
    rows = []
    for key in keys:
        default = "required" if key.default is REQUIRED else _shown(key.default)
        rows.append((key.name, key.checker.help(), default, key.meaning))
    return (
        f"usage: python src/exec/{prog} --config_file FILE [--section.key value …]\n\n"
        f"{description}\n\n"
        "Keys come from JSON or YAML files (--config_file, may be repeated, the later wins) and\n"
        "from the command line, which beats files. null means: not set.\n\n"
        + _table(("key", "takes", "default", "meaning"), rows)
    )
