"""Configuration: every key once, and strict parsing.

The command line beats configuration files, which beat defaults. Sections, parameters and checks are
those of fastargs; its gaps are closed here: unknown keys are errors that name the nearest known
one, everything that is wrong is reported at once, environment variables play no part, and booleans
mean what they say. Nothing heavy is imported, so that mistakes show at once.

To add a key: one row in the tables below.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import fastargs
from fastargs.validation import Checker

from wagle.config_files import MOST_PROBLEMS, read_file, repeated, shortened, split_command_line
from wagle.config_kinds import Choice, Date, Flag, Float, Int, ListOf, Maybe, Steps, Text
from wagle.errors import ConfigError

# ---------------------------------------------------------------------------------- the names

_TOFU_SUBSETS = (
    *("full", "forget01", "forget05", "forget10", "retain90", "retain95", "retain99"),
    *("holdout01", "holdout05", "holdout10", "real_authors", "world_facts"),
    *("forget01_perturbed", "forget05_perturbed", "forget10_perturbed", "retain_perturbed"),
    *("real_authors_perturbed", "world_facts_perturbed"),
)
_DEMO_SUBSETS = ("knowledge", "dialogues")
TEXT_DATASETS = ("WMDPCyber", "WMDPBio", "WMDPALL", "C4", "wikitext")  # no questions, no answers
_PLAIN_DATASETS = (*TEXT_DATASETS[:3], "HP", "SafePku", *TEXT_DATASETS[3:], "TruthfulQA")
DATASETS = (
    *(f"Tofu_{subset}" for subset in _TOFU_SUBSETS),
    *(f"Demo_{subset}" for subset in (*_TOFU_SUBSETS, *_DEMO_SUBSETS)),
    *_PLAIN_DATASETS,
)
DATASET_ALIASES = {"Copyright": "HP"}

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

METHODS = (
    *("origin", "FT", "l1_sparse", "GA", "GA+FT", "GA+KL", "NPO+FT"),
    *("CL", "CL+FT", "CL+KL", "RL", "KL", "SimNPO+FT", "DPO+FT", "RMU"),
)
METHOD_ALIASES = {
    **{"GradDiff": "GA+FT", "NPO": "NPO+FT", "PO": "CL+FT"},
    **{"SimNPO": "SimNPO+FT", "DPO": "DPO+FT"},
}
REFUSING_METHODS = ("CL", "CL+FT", "CL+KL", "DPO+FT")  # they answer forget questions with refusals

# ----------------------------------------------------------------------------------- the keys

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


_Row = tuple[Any, ...]  # a Key, without its section


def _section(section: str, *rows: _Row) -> tuple[Key, ...]:
    return tuple(Key(f"{section}.{name}", *rest) for name, *rest in rows)


_COUNT = Int(at_least=1, at_most=1_000_000)
_RATE = Float(at_least=0)
_POSITIVE = Float(above=0)
_DECAY = Float(at_least=0, below=1)
_SEED = Int(at_least=0, at_most=2**32 - 1)  # numpy takes no larger one
_FOLDER = Text("folder")
_LM_EVAL_TASK = Text("lm-eval task")
_DATASET = Choice(
    *DATASETS,
    aliases=DATASET_ALIASES,
    summary=", ".join(["Tofu_SUBSET", "Demo_SUBSET", *_PLAIN_DATASETS, *DATASET_ALIASES]),
)
_RETAIN_WEIGHT = ("gamma", Float(), 0.0, "weight of the retain term")
_FORGET_WEIGHT = ("gamma", Float(), 0.0, "weight of the forget term")
_BETA = ("beta", _POSITIVE, 0.1, "inverse temperature")

# fmt: off
METHOD_PARAMS: dict[str, tuple[_Row, ...]] = {
    "l1_sparse": (("alpha", _RATE, 0.0, "weight of the sum of all |weights|"),),
    "GA+FT": (_RETAIN_WEIGHT,),
    "GA+KL": (("gamma", Float(), 0.0, "weight of the forget term; the retain term has 1 - gamma"),),
    "NPO+FT": (_RETAIN_WEIGHT, _BETA),
    "CL+FT": (("gamma", Float(), 1.0, "weight of the retain term"),),
    "CL+KL": (_RETAIN_WEIGHT,),
    "KL": (_FORGET_WEIGHT,),
    "SimNPO+FT": (
        _RETAIN_WEIGHT,
        ("beta", _POSITIVE, 2.5, "inverse temperature"),
        ("delta", _RATE, 0.0, "margin"),
    ),
    "DPO+FT": (_RETAIN_WEIGHT, _BETA),
    "RMU": (
        ("layer", Int(at_least=0), 7, "decoder layer whose output is steered"),
        ("steering_coefficient", _RATE, 6.5, "length of the vector that it is steered to"),
        ("alpha", _RATE, 1200.0, "weight of the retain term"),
    ),
}

OVERALL_KEYS = _section(
    "overall",
    ("model_name", Text("hub id or folder"), REQUIRED, "model to start from"),
    ("logger", Choice("json", "none", "wandb"), "none", "where results go", True),
    ("cache_dir", _FOLDER, ".cache", "cache of hub downloads", True),
    ("seed", _SEED, 0, "seeds python, numpy and torch"),
    ("dtype", Choice("auto", "bfloat16", "float16", "float32"), "auto",
     "of the weights; auto: bfloat16 on a GPU, float32 on the CPU"),
    ("device", Choice("auto", "cpu", "cuda", "mps"), "auto", "where to run"),
)
LOGGER_KEYS = _section(
    "logger",
    ("name", Text("name"), None,
     "run folder below json.root; not set: follows from the configuration", True),
    ("json.root", _FOLDER, "files/logs", "where run folders are made", True),
    ("wandb.project", Text("name"), "wagle", "Weights & Biases project", True),
    ("wandb.mode", Choice("online", "offline", "disabled"), "offline",
     "offline keeps the run on this machine until it is synced", True),
)
SOURCE_KEYS = _section(
    "dataset",
    ("data_dir", _FOLDER, None, "read data sets from files here instead of the hub"),
    ("template", Choice("auto", "llama2_published", "llama2", "question_answer", "chat"), "auto",
     "prompt template; auto: the model's own, which protocol published takes from its name"),
    ("system_prompt", Maybe("text"), None,
     "system turn of the chat template; not set: as saved with the model, or usual for it"),
    ("date_string", Date(), None,
     "date that the chat template writes; not set: as saved with the model, or 10 Apr 2025"),
)
UNLEARN_KEYS = (
    *OVERALL_KEYS,
    *_section(
        "unlearn",
        ("unlearn_method", Choice(*METHODS, aliases=METHOD_ALIASES), "origin",
         "objective; GradDiff is GA+FT, PO is CL+FT, NPO, SimNPO and DPO have +FT"),
        ("num_epochs", _COUNT, 1, "passes over the forget set"),
        ("lr", _RATE, 1e-4, "learning rate"),
        ("weight_decay", _RATE, 0.0, "decoupled weight decay"),
        ("gradient_accumulation_steps", _COUNT, 1, "batches per optimizer step"),
        ("task_name", Choice("toxic", "copyright", "tofu", "wmdp", "none"), None,
         "which evaluation runs; not set: the one of the forget set, where its files are there"),
        ("mask_path", Text("file, like tofu_0.8.pt"), None,
         "weights that may change; made at the ratio in its name when missing; not set: all. "
         "{score}, {ratio}, {mu}, {seed} and {task} stand for this run's"),
        ("mask_ratio", Float(above=0, at_most=1), None,
         "share of the weights that a missing mask selects; not set: the number in its name"),
        ("mask_mismatch", Choice("error", "accept", "remake"), "error",
         "what to do with a mask file that other settings, data or another model made"),
        ("lock_timeout", _RATE, None,
         "seconds to wait for another process that makes the same files; not set: no limit", True),
        ("score_type", Choice(*SCORE_TYPES, aliases=PUBLISHED_SCORE_TYPES), None,
         "how a missing mask is made; not set: what the mask's folder is named after, else wagle"),
        ("mu", _POSITIVE, 1e-3, "Hessian diagonal in WAGLE's scores"),
        ("mask_scope", Choice("global", "layer", "tensor"), "global",
         "what weights are ranked within"),
        ("mask_exclude", ListOf(Choice("embedding", "norm", "head")), [],
         "weights that are never selected"),
        ("attribution_batch_size", _COUNT, 8,
         "rows run at once to make a mask; only time and memory depend on it"),
        ("attribution_offload", Choice("none", "cpu", "disk"), "none",
         "where sums of gradients are kept; none: with the weights"),
        ("attribution_dtype", Choice("float32", "float64"), "float32", "of sums of gradients"),
        ("gradient_cache", Text("path"), None,
         "sums of gradients are kept in files that start so; not set: beside the mask", True),
        ("p", Float(), 0.01, "accepted for old configs, has no effect", True),
        ("q", Float(), 0.01, "accepted for old configs, has no effect", True),
        ("sophia", Flag(), False, "Sophia-G instead of AdamW"),
        ("sophia_params.betas_low", _DECAY, 0.9, "decay of the mean gradient"),
        ("sophia_params.betas_high", _DECAY, 0.95, "decay of the mean Hessian diagonal"),
        ("sophia_params.rho", _POSITIVE, 0.03, "where updates are clipped"),
        ("resume_path", _FOLDER, None, "evaluate this saved model; nothing is trained"),
        ("max_steps", Steps(), -1, "optimizer steps; -1: num_epochs decides"),
        ("step_formula", Choice("published", "whole_epochs"), "published",
         "steps of num_epochs; whole_epochs: every row in every epoch, as in fine-tuning; "
         "published: num_epochs * rows // (batch_size * accumulation)"),
        ("use_lora", Flag(), False, "train LoRA adapters, merged into the weights when saved"),
        ("mask_enforcement", Choice("optimizer", "gradient"), "optimizer",
         "gradient: as published, weights outside the mask still decay"),
        ("master_weights", Flag(), None,
         "float32 copy of the selected weights; not set: where the dtype is 16-bit"),
        ("gradient_checkpointing", Flag(), False, "saves memory, takes time"),
        ("save_model", Flag(), True, "false: keep the run's numbers, not its model", True),
    ),
    *_section("unlearn", *((f"{method}.{name}", *rest) for method, rows in METHOD_PARAMS.items()
                           for name, *rest in rows)),
    *_section(
        "dataset",
        ("forget_dataset_name", _DATASET, "SafePku", "forget set"),
        ("retain_dataset_name", _DATASET, "TruthfulQA", "retain set"),
        ("dataset_seed", _SEED, 0, "which forget examples are drawn"),
        ("forget_ratio", _POSITIVE, None,
         "up to 1: the fraction of the forget set to draw; above 1: how many examples; not set: "
         "200 of SafePku and with self_retain, else all"),
        ("self_retain", Flag(), False, "retain the forget set's rows that were not drawn"),
        ("batch_size", _COUNT, 16, "examples per batch"),
        ("num_workers", Int(at_least=0, at_most=256), 0, "processes that load data", True),
    ),
    *SOURCE_KEYS,
    *_section(
        "evaluation",
        ("protocol", Choice("corrected", "published", "official"), "corrected",
         "of TOFU; published: as the paper's numbers were made; official: as its authors' and "
         "open-unlearning's"),
        ("word_tokenizer", Choice("auto", "rouge_score", "unicode"), "auto",
         "words of ROUGE and BLEU; rouge_score: of a-z and 0-9 alone; unicode: of every script; "
         "auto: unicode where the true answers would lose much"),
        ("batch_size", _COUNT, 32, "sequences run at once"),
        ("limit", _COUNT, None, "first rows of each set, for a quick look"),
        ("tasks", ListOf(_LM_EVAL_TASK), None, "what to run as well"),
        ("task_names.bio", _LM_EVAL_TASK, "wmdp_bio", "WMDP on biology"),
        ("task_names.chem", _LM_EVAL_TASK, "wmdp_chem", "WMDP on chemistry"),
        ("task_names.cyber", _LM_EVAL_TASK, "wmdp_cyber", "WMDP on cybersecurity"),
        ("task_names.mmlu", _LM_EVAL_TASK, "mmlu", "general knowledge"),
        ("task_names.perplexity", _LM_EVAL_TASK, "wikitext", "perplexity per word"),
        ("task_names.zero_shot", ListOf(_LM_EVAL_TASK),
         [*("boolq", "rte", "hellaswag", "winogrande", "arc_challenge", "arc_easy"),
          *("openbookqa", "piqa")], "their mean accuracy is the zero-shot accuracy"),
        ("task_names.truthfulqa", _LM_EVAL_TASK, "truthfulqa_mc2", "truthfulness"),
        ("sentence_model", Text("name, folder, package"),
         "sentence-transformers/paraphrase-MiniLM-L6-v2",
         "sentence encoder for TOFU's accuracy: from the hub, a folder or a Python package"),
        ("retain_results", Text("file"), None,
         "the retain-only model's tofu.json, TOFU_EVAL.json or eval_log_aggregated.json, for the "
         "forget quality"),
        ("attacks", ListOf(Choice("loss", "zlib", "min_k++", "reference")), [],
         "TOFU's membership attacks beside Min-k%"),
        ("reference_model", Text("hub id or folder"), None, "model of the reference attack"),
        ("prompt_tokens", _COUNT, 300, "of the copyright task's prompts: 50, 100, 200 or 300"),
        ("toxicity_model", Text("hub id or folder"), "unitary/toxic-bert",
         "text classifier with the label toxic"),
    ),
    *LOGGER_KEYS,
)
FINE_TUNE_KEYS = (
    *OVERALL_KEYS,
    *_section(
        "finetune",
        ("dataset_name", _DATASET, REQUIRED, "what to learn"),
        ("extra_dataset_names", ListOf(_DATASET), [], "what to learn as well"),
        ("subset_limit", _COUNT, None, "first rows of each data set"),
        ("num_epochs", _COUNT, 1, "passes over the data"),
        ("max_steps", Steps(), -1, "optimizer steps; -1: num_epochs decides"),
        ("lr", _RATE, 1e-5, "learning rate"),
        ("weight_decay", _RATE, 0.01, "decoupled weight decay"),
        ("batch_size", _COUNT, 8, "examples per batch"),
        ("gradient_accumulation_steps", _COUNT, 1, "batches per optimizer step"),
        ("master_weights", Flag(), None,
         "float32 copy of the weights; not set: where the dtype is 16-bit"),
        ("warmup_ratio", Float(at_least=0, at_most=1), 0.05, "share of the steps to warm up in"),
        ("output_dir", _FOLDER, REQUIRED, "where the model goes"),
        ("from_scratch", Flag(), False, "build the demo's tiny Llama instead of loading a model"),
    ),
    *SOURCE_KEYS,
    *LOGGER_KEYS,
)
# fmt: on

# ------------------------------------------------------------------------------ configuration


class Given(NamedTuple):
    """A value as somebody gave it: the key as written, the value, and where it stood."""

    name: str
    value: Any
    where: str


class Config(Mapping[str, Any]):
    """A resolved configuration, a mapping from every ``section.key`` to its value.

    Args:
        keys: those that the program knows.
        given: values by canonical key name; ``None`` leaves the default.

    Attributes:
        notices: remarks for the user, about settings without effect.

    Raises:
        ConfigError: the message lists everything that is wrong.
    """

    def __init__(self, keys: Sequence[Key], given: Mapping[str, Given]) -> None:
        self._keys = tuple(keys)
        self._given = dict(given)
        self._values = _resolve(self._keys, self._given)
        self._mask_template = self._values.get("unlearn.mask_path")
        if self._mask_template is not None:
            self._values["unlearn.mask_path"] = _filled(self._mask_template, self._values)
        self.notices = list(_notices(self))

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def method_params(self) -> dict[str, float]:
        """Hyper-parameters of the chosen unlearning method, by name."""
        method = self["unlearn.unlearn_method"]
        return {row[0]: self[f"unlearn.{method}.{row[0]}"] for row in METHOD_PARAMS.get(method, ())}

    @property
    def files(self) -> list[str]:
        """The configuration files that keys were taken from."""
        places = dict.fromkeys(entry.where for entry in self._given.values())
        return [place for place in places if place not in (_COMMAND_LINE, _REPLACED)]

    @property
    def changes(self) -> dict[str, Any]:
        """Values of the keys that influence results and were set elsewhere than in a file."""
        inert = {key.name for key in self._keys if key.inert}
        return {
            name: self[name]
            for name, entry in self._given.items()
            if entry.where in (_COMMAND_LINE, _REPLACED) and name not in inert
        }

    @property
    def ratio(self) -> float | None:
        """Share of the weights that a missing mask selects; ``None`` where nothing says it."""
        return self["unlearn.mask_ratio"] or mask_ratio(self["unlearn.mask_path"] or "")

    def mask_file(self, ratio: float) -> Path:
        """Where the mask of a ratio lies: ``unlearn.mask_path`` with that ratio in its name.

        Raises:
            ConfigError: the key is not set, or its name has no place for a ratio.
        """
        template = self._mask_template or ""
        if "{ratio}" not in template:
            if mask_ratio(template) is None:
                raise ConfigError(
                    "unlearn.mask_path should name a mask like mask/tofu_0.8.pt or "
                    "mask/tofu_{ratio}.pt"
                )
            path = Path(template)
            template = str(path.with_name(f"{path.stem.rpartition('_')[0]}_{{ratio}}{path.suffix}"))
        return Path(_filled(template, {**self._values, "unlearn.mask_ratio": ratio}))

    def gradient_cache(self) -> Path:
        """What the names of the files with sums of gradients start with.

        They serve every score type, ratio and μ, so that none of these is in the default's name.
        """
        if self["unlearn.gradient_cache"] is not None:
            return Path(self["unlearn.gradient_cache"])
        template = Path(self._mask_template)
        parts = (
            re.sub(r"[ _.-]*\{(score|ratio|mu)\}", "", _filled(part, {**self._values, **_SHARED}))
            for part in (str(template.parent), template.stem)
        )
        folder, name = parts
        if mask_ratio(template) is not None:
            name = name.rpartition("_")[0]
        return Path(folder) / (name.strip(" _.-") or "sums")

    def replace(self, changes: Mapping[str, Any]) -> Config:
        """The configuration with some keys changed, checked anew; ``None`` restores a default.

        Raises:
            ConfigError: the message lists everything that is wrong.
        """
        return Config(self._keys, {**self._given, **_by_key(changes.items(), _REPLACED)})

    def as_dict(self) -> dict[str, Any]:
        """Every key, as nested dicts; loading that as a file gives the same configuration."""
        nested: dict[str, Any] = {}
        for key, value in self.items():
            *sections, name = key.split(".")
            level = nested
            for section in sections:
                level = level.setdefault(section, {})
            level[name] = value
        return nested

    def fingerprint(self) -> str:
        """SHA-256, in hex, of the keys that influence results."""
        return self._fingerprint(lambda name: True)

    def training_fingerprint(self) -> str:
        """As :meth:`fingerprint`, of the keys that influence the unlearned model."""
        return self._fingerprint(
            lambda name: not name.startswith("evaluation.") and name != "unlearn.task_name"
        )

    def _fingerprint(self, counts: Callable[[str], bool]) -> str:
        others = set(METHOD_PARAMS) - {self.get("unlearn.unlearn_method")}
        idle = tuple(f"unlearn.{method}." for method in others)
        relevant = {
            key.name: self[key.name]
            for key in self._keys
            if not key.inert and not key.name.startswith(idle) and counts(key.name)
        }
        results = relevant.get("evaluation.retain_results")
        if results is not None and Path(results).is_file():  # what it holds counts
            content = Path(results).read_bytes()
            relevant["evaluation.retain_results"] = hashlib.sha256(content).hexdigest()
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
    files, pairs = split_command_line(argv)
    given: dict[str, Given] = {}
    for path in files:
        given |= _given_in(path)
    return Config(keys, given | _by_key(pairs, _COMMAND_LINE))


def plain_number(number: float) -> str:
    """The shortest decimal of a float, without exponent or useless zeros: 0.8, 1, 0.000001."""
    return f"{Decimal(repr(float(number))):f}".removesuffix(".0")


_PLACEHOLDERS = {
    "score": "unlearn.score_type",
    "ratio": "unlearn.mask_ratio",
    "mu": "unlearn.mu",
    "seed": "overall.seed",
    "task": "unlearn.task_name",
}


_SHARED = dict.fromkeys(_PLACEHOLDERS[name] for name in ("score", "ratio", "mu"))
"""Values that leave the placeholders of what sums of gradients do not depend on."""


def _filled(mask_path: str, values: Mapping[str, Any]) -> str:
    """The path with each placeholder that has a value replaced by it."""

    def value(match: re.Match) -> str:
        given = values.get(_PLACEHOLDERS.get(match[1], ""))
        if given is None:
            return match[0]
        return plain_number(given) if isinstance(given, float) else str(given)

    return re.sub(r"\{(\w*)\}", value, mask_path)


def mask_ratio(path: str | Path) -> float | None:
    """The ratio in a mask's file name: ``tofu_0.8.pt`` and ``with_0.8.safetensors`` carry 0.8.

    Returns:
        A number in (0, 1], or ``None`` where the name carries none.
    """
    match = re.search(r"_(\d*\.?\d+)\.(pt|safetensors)$", Path(path).name)
    ratio = float(match.group(1)) if match else 0.0
    return ratio if 0 < ratio <= 1 else None


# ------------------------------------------------------------------------------------ reading

_COMMAND_LINE, _REPLACED = "command line", "replaced"  # where values are given beside files


def _by_key(pairs: Iterable[tuple[str, Any]], where: str) -> dict[str, Given]:
    """Given values by canonical name; the last of several for one key counts."""
    return {_canonical(name): Given(name, value, where) for name, value in pairs}


def _canonical(name: str) -> str:
    """A key in the section of a method's alias, as the same key of the method itself."""
    top, _, rest = name.partition(".")
    section, dot, key = rest.partition(".")
    if top == "unlearn" and section in METHOD_ALIASES:
        return f"unlearn.{METHOD_ALIASES[section]}{dot}{key}"
    return name


def _given_in(name: str) -> dict[str, Given]:
    pairs = read_file(name)
    given = _by_key(pairs, name)
    if len(given) < len(pairs):
        twice = repeated(_canonical(key) for key, _ in pairs)
        raise ConfigError(f"the configuration file {name} gives {', '.join(twice)} twice")
    return given


# ----------------------------------------------------------------------------------- checking


class _Problem(NamedTuple):
    key: str
    wrong: str
    given: str
    where: str


def _resolve(keys: Sequence[Key], given: Mapping[str, Given]) -> dict[str, Any]:
    """Every key's value, in the order of ``keys``."""
    known = {key.name: key for key in keys}
    sections = _sections(known)
    strange = [
        name
        for name, entry in given.items()
        if name not in known and not (name in sections and entry.value in (None, {}))
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
        if wrong:
            problems.append(_bad_value(key, given.get(key.name)))
    if "unlearn.task_name" in values:
        _fit_to_data(values)
    for name, wrong in _clashes(values):
        where = given[name].where if name in given else "default"
        problems.append(_Problem(name, wrong, _shown(values[name]), where))
    if problems:
        raise ConfigError(_problem_table(problems, len(strange[MOST_PROBLEMS:])))
    if "unlearn.score_type" in values and values["unlearn.score_type"] is None:
        values["unlearn.score_type"] = _score_type_of_folder(values["unlearn.mask_path"])
    return values


def _problem_table(problems: Sequence[_Problem], unseen: int) -> str:
    total = len(problems) + unseen
    count = "1 problem" if total == 1 else f"{total:,} problems"
    shown = problems[:MOST_PROBLEMS]
    table = _table([("key", "what is wrong", "given", "where"), *shown], _terminal_width())
    more = f"\nand {total - len(shown):,} more" if total > len(shown) else ""
    return f"{count} in the configuration\n\n{table}{more}"


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
        sections |= {f"unlearn.{method}" for method in METHODS}
    return sections


def _unknown(name: str, entry: Given, known: Iterable[str], sections: Iterable[str]) -> _Problem:
    """What to say about a key that does not exist, with up to two that may have been meant."""
    wrong = "unknown key; see --help"
    if name in sections:
        wrong = f"a section, not a key; give {name}.KEY"
    elif len(name) < 100:
        last_part = name.rpartition(".")[2]
        namesakes = [key for key in known if key.rpartition(".")[2] == last_part]
        near = dict.fromkeys([*_nearest(name, namesakes, cutoff=0), *_nearest(name, known)])
        if near:
            wrong = f"unknown key; did you mean {' or '.join(near)}?"
    return _Problem(shortened(entry.name), wrong, _shown(entry.value), entry.where)


def _nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The name that is most like the word, whatever the case; none where none is like it."""
    lower = {name.lower(): name for name in names}
    return [lower[near] for near in difflib.get_close_matches(word.lower(), lower, 1, cutoff)]


def _bad_value(key: Key, given: Given | None) -> _Problem:
    if given is None or given.value is None:
        where = "" if given is None else given.where
        return _Problem(key.name, f"is required: {key.checker.help()}", "nothing", where)
    or_null = "; or null" if key.default is None else ""
    wrong = f"allowed: {key.checker.help()}{or_null}{_hint(key.checker, given.value)}"
    return _Problem(given.name, wrong, _shown(given.value), given.where)


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
    near = _nearest(value, checker.names)
    return f"; did you mean {near[0]}?" if near else ""


def _clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rules about several keys, or about the files they name; keys with bad values are ``None``."""
    yield from _mask_clashes(values)
    yield from _text_clashes(values)
    yield from _training_clashes(values)
    for name in ("unlearn.resume_path", "dataset.data_dir"):
        if values.get(name) is not None and not Path(values[name]).is_dir():
            yield name, "there is no such folder"
    results = values.get("evaluation.retain_results")
    if results is not None and not Path(results).is_file():
        yield "evaluation.retain_results", "there is no such file"
    if "reference" in (values.get("evaluation.attacks") or []) and not values.get(
        "evaluation.reference_model"
    ):
        yield "evaluation.attacks", "reference needs evaluation.reference_model"
    if values.get("evaluation.protocol") == "official":
        if values.get("evaluation.attacks"):
            yield "evaluation.attacks", "evaluation.protocol official has none; leave this empty"
        if values.get("evaluation.word_tokenizer") == "unicode":
            yield "evaluation.word_tokenizer", "evaluation.protocol official means rouge_score"
    ratio = values.get("dataset.forget_ratio")
    if ratio is not None and ratio > 1 and not ratio.is_integer():
        yield "dataset.forget_ratio", "above 1 it counts examples, and must be whole"
    if ratio == 1 and values["dataset.self_retain"]:
        yield "dataset.self_retain", "dataset.forget_ratio 1.0 leaves no row to retain; lower it"
    name = values.get("logger.name")
    if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts):
        yield "logger.name", "must name a folder below logger.json.root"


def _mask_clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    template, ratio = values.get("unlearn.mask_path"), values.get("unlearn.mask_ratio")
    if template is None:
        return
    path = _mask_file(values)
    name = "unlearn.mask_path"
    unknown = sorted(set(re.findall(r"\{([^{}]*)\}", template)) - set(_PLACEHOLDERS))
    if unknown:
        known = ", ".join(f"{{{known}}}" for known in _PLACEHOLDERS)
        yield name, f"{{{unknown[0]}}} stands for nothing; what stands for a value: {known}"
    if ratio is not None and mask_ratio(path) not in (None, ratio):
        yield (
            "unlearn.mask_ratio",
            f"unlearn.mask_path says {plain_number(mask_ratio(path))}; drop either",
        )
    if Path(path).suffix not in (".pt", ".safetensors"):
        yield name, "a mask file ends in .pt or .safetensors"
    elif Path(path).is_dir():
        yield name, "this is a folder, not a file"
    elif not (Path(path).exists() or ratio or "{ratio}" in template) and mask_ratio(path) is None:
        yield (
            name,
            "there is no such file, and its name carries no ratio to make one: name it "
            "NAME_RATIO.pt, with a ratio above 0 and at most 1, like tofu_0.8.pt, or give "
            "unlearn.mask_ratio",
        )
    if values["unlearn.use_lora"]:
        yield name, "LoRA trains adapters, not masked weights; choose one of them"
    score_type = values["unlearn.score_type"] or _score_type_of_folder(template)
    if score_type in ("wanda", "ffn"):
        rule = f"{score_type} masks have a rule of their own"
        if values["unlearn.mask_scope"] not in ("global", None):
            yield "unlearn.mask_scope", f"{rule}; leave this at global"
        if values["unlearn.mask_exclude"]:
            yield "unlearn.mask_exclude", f"{rule}; leave this empty"


def _training_clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What would train nothing, or nothing right."""
    section = "unlearn" if "unlearn.unlearn_method" in values else "finetune"
    if values.get("unlearn.unlearn_method") == "origin" or values.get("unlearn.resume_path"):
        return
    if values["overall.dtype"] == "float16":
        yield (
            "overall.dtype",
            "small gradients vanish in float16, and losses are not scaled against that; train in "
            "bfloat16 or float32 (float16 can be evaluated)",
        )
    if values[f"{section}.max_steps"] == 1:
        yield (
            f"{section}.max_steps",
            "the first step has learning rate 0 (warm-up), so 1 step trains nothing; allowed: -1 "
            "or int >= 2",
        )
    if values[f"{section}.lr"] == 0:
        yield f"{section}.lr", "a learning rate of 0 trains nothing; allowed: float > 0"


def _text_clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Running text has no question to be refused and no answer to be exchanged."""
    names = ["dataset.forget_dataset_name"]
    if not values.get("dataset.self_retain"):
        names.append("dataset.retain_dataset_name")
    texts = [name for name in names if values.get(name) in (*TEXT_DATASETS, "Demo_dialogues")]
    if not texts:
        return
    wrong = "{} needs questions with answers, and this is running text; change either"
    method = values["unlearn.unlearn_method"]
    needed = names if method == "RL" else names[:1] if method in REFUSING_METHODS else []
    if values["unlearn.resume_path"] is None:
        yield from ((name, wrong.format(method)) for name in texts if name in needed)
    score_type = values["unlearn.score_type"] or _score_type_of_folder(values["unlearn.mask_path"])
    made = values["unlearn.mask_path"] and not Path(_mask_file(values)).exists()
    if made and score_type == "wagle_cl" and names[0] in texts:
        yield names[0], wrong.format(score_type)
    if values["unlearn.task_name"] == "toxic" and names[0] in texts:
        yield names[0], wrong.format("unlearn.task_name toxic")


_EVALUATIONS = {
    # by the family of the forget set: the task, and a file below data_dir that only it needs
    "Tofu": ("tofu", "TOFU/retain_perturbed.json"),
    "Demo": ("tofu", "demo/retain_perturbed.json"),
    "HP": ("copyright", "HP/hp_test_qa_{}.jsonl"),
    "SafePku": ("toxic", "SafePku/test.jsonl"),
    **{f"WMDP{part}": ("wmdp", None) for part in ("Cyber", "Bio", "ALL")},
}


def _fit_to_data(values: dict[str, Any]) -> None:
    """What is not set and follows from the forget set: the evaluation, and how many rows."""
    family, _, subset = (values["dataset.forget_dataset_name"] or "").partition("_")
    if values["dataset.forget_ratio"] is None:
        some = family == "SafePku" or values["dataset.self_retain"]
        values["dataset.forget_ratio"] = 200.0 if some else 1.0
    if values["unlearn.task_name"] is None:
        task, file = _EVALUATIONS.get(family, ("none", None))
        folder = values["dataset.data_dir"]
        if folder and file:
            path = Path(folder, file.format(values["evaluation.prompt_tokens"]))
            task = task if path.is_file() else "none"
        if task == "tofu" and not re.match(r"forget|full|retain\d", subset):
            task = "none"
        values["unlearn.task_name"] = task


def _mask_file(values: Mapping[str, Any]) -> str:
    """The filled ``unlearn.mask_path``, before the score type is resolved."""
    path = values["unlearn.mask_path"]
    score_type = values["unlearn.score_type"] or _score_type_of_folder(path)
    return _filled(path, {**values, "unlearn.score_type": score_type})


def _score_type_of_folder(mask_path: str | None) -> str:
    """Published masks lie in a folder that is named after their score type."""
    folder = Path(mask_path).parent.name if mask_path else ""
    folder = PUBLISHED_SCORE_TYPES.get(folder, folder)
    return folder if folder in SCORE_TYPES else "wagle"


def _notices(config: Config) -> Iterator[str]:
    unused = [name for name in ("unlearn.p", "unlearn.q") if name in config._given]
    if unused:
        yield f"accepted for old configs, without effect: {' and '.join(unused)}"
    if "unlearn.unlearn_method" not in config:
        return
    if config["unlearn.task_name"] == "none" and not config["evaluation.tasks"]:
        yield "unlearn.task_name is none: no evaluation runs"
    method = config["unlearn.unlearn_method"]
    trains = method != "origin" and config["unlearn.resume_path"] is None
    if config["unlearn.mask_path"] is not None and not trains:
        yield "unlearn.mask_path has no effect: nothing is trained"
    for name in ("gamma", "alpha"):
        if trains and config.method_params.get(name) == 0:
            yield f"unlearn.{method}.{name} is 0: that term of the loss is off"


# ------------------------------------------------------------------------------------ display

_GROUPS = {
    "overall": "the model and the machine",
    "unlearn": "the mask and the training",
    "unlearn.METHOD": "parameters of one method, used only where it is chosen",
    "finetune": "the training",
    "dataset": "the data",
    "evaluation": "the evaluation",
    "logger": "where a run is kept",
}


def _terminal_width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _shown(value: Any) -> str:
    plain = isinstance(value, str) and value.strip() and value.isprintable()
    return shortened(value if plain else json.dumps(value, default=str))


def _table(rows: Sequence[Sequence[str]], width: int) -> str:
    """Rows in aligned columns, in lines of at most ``width``; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths[1:]) > 12:  # names, in front, are kept whole
        widths[widths.index(max(widths[1:]), 1)] -= 1
    head, *body = rows
    ruled = [head, ["-" * width for width in widths], *body]
    return "\n".join(line for row in ruled for line in _lines(row, widths))


def _lines(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """One row of a table; cells that are too wide go on below."""
    cells = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    for index in range(max(map(len, cells))):
        parts = (cell[index] if index < len(cell) else "" for cell in cells)
        padded = (part.ljust(width) for part, width in zip(parts, widths, strict=True))
        yield "  ".join(padded).rstrip()


def _group(key: Key) -> str:
    top, method = key.name.split(".")[:2]
    return "unlearn.METHOD" if method in METHOD_PARAMS else top


def _help(keys: Sequence[Key], prog: str, description: str) -> str:
    """The help text; plain ASCII, since not every terminal can show more."""
    width = min(_terminal_width(), 100)
    head = ("key", "takes", "default", "meaning")
    rows = [
        (
            key.name,
            key.checker.help(),
            "required" if key.default is REQUIRED else _shown(key.default),
            key.meaning,
        )
        for key in keys
    ]
    lines = [
        f"usage: {prog} --config_file FILE [--section.key value ...]",
        "",
        description,
        "",
        "Keys come from JSON or YAML files (--config_file, --config-file or -C; of several, the",
        "later wins) and from the command line, which beats files. null: not set, the default",
        "holds. Exit status: 0 done, 1 failure, 2 wrong configuration.",
    ]
    for group in dict.fromkeys(map(_group, keys)):
        members = [row for key, row in zip(keys, rows, strict=True) if _group(key) == group]
        lines += ["", f"{group}: {_GROUPS[group]}", "", _table([head, *members], width)]
    subsets = (
        f"SUBSET of a data set: {', '.join(_TOFU_SUBSETS)}; of Demo also knowledge, dialogues."
    )
    return "\n".join([*lines, "", *textwrap.wrap(subsets, width)])
