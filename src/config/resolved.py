"""A resolved configuration, read from the command line and from files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self, TypeVar, get_type_hints, overload

from wagle import launch
from wagle.catalogue import METHODS
from wagle.config.attack_keys import AttackSection
from wagle.config.checking import resolve
from wagle.config.compare_keys import CompareSection
from wagle.config.declare import Key, keys_of, method_keys, section_of
from wagle.config.depth_keys import DepthSection
from wagle.config.help import help_text
from wagle.config.keys import (
    DURING_TRAINING,
    DataSection,
    EvaluationSection,
    FineTuneSection,
    LoggerSection,
    OverallSection,
    PairedDataSection,
    UnlearnSection,
)
from wagle.config.mask_names import SHARED, filled, mask_ratio
from wagle.config.plant_keys import PlantSection
from wagle.config.reading import (
    COMMAND_LINE,
    REPLACED,
    Given,
    by_key,
    given_in,
    split_command_line,
)
from wagle.config.rules import notices
from wagle.config.trust import code_of, drop_trust, enter_given, identity, keys_of_method
from wagle.entries import label_of
from wagle.errors import ConfigError


class Config(Mapping[str, Any]):
    """A resolved configuration: its sections as attributes, ``config.overall.seed``.

    It is a mapping from every ``section.key`` to its value as well, for what goes over all of them.
    A program's configuration is a subclass, which declares the sections that it knows, in order.

    Args:
        given: values by canonical key name; ``None`` leaves the default.
        files: the configuration files that were read.

    Attributes:
        files: the configuration files that were read, those that others extend included.
        notices: remarks for the user, about settings without effect.
        code: fingerprints of the code from outside that is named, by its name.

    Raises:
        ConfigError: the message lists everything that is wrong.
    """

    overall: OverallSection
    dataset: DataSection
    logger: LoggerSection

    KEYS: ClassVar[tuple[Key, ...]]
    _sections: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls) -> None:
        hints: dict[str, Any] = get_type_hints(cls)
        cls._sections = {name: hints[name] for name in vars(cls)["__annotations__"]}
        keys: list[Key] = []
        for name, section in cls._sections.items():
            keys += keys_of(section, name)
            if section is UnlearnSection:
                keys += [key for method in METHODS.values() for key in method_keys(method)]
        cls.KEYS = tuple(keys)

    def __init__(self, given: Mapping[str, Given], files: Sequence[str] = ()) -> None:
        self.files = list(dict.fromkeys(files))
        self._given = dict(given)
        distrusted = drop_trust(self._given)
        entered, wrong = enter_given(self.KEYS, self._given)
        self._keys = (*self.KEYS, *keys_of_method(self.KEYS, entered))
        self._values = resolve(self._keys, entered, wrong)
        self._mask_template = self._values.get("unlearn.mask_path")
        if self._mask_template is not None:
            self._values["unlearn.mask_path"] = filled(self._mask_template, self._values)
        # Of the code as it is now: the file may change, and be entered again, in this process.
        self.code = code_of((key.checker, self[key.name]) for key in self.KEYS)
        self._identities = {key.name: identity(key.checker, self[key.name]) for key in self.KEYS}
        for name, section in self._sections.items():
            setattr(self, name, section_of(section, name, self._values))
        self.notices = [*distrusted, *notices(self._values, self._given)]

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def changes(self) -> dict[str, Any]:
        """Values of the keys that influence results and were set elsewhere than in a file."""
        inert = {key.name for key in self._keys if key.inert}
        return {
            name: self[name]
            for name, entry in self._given.items()
            if not entry.from_file and name not in inert
        }

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """The configuration with some keys changed, checked anew; ``None`` restores a default.

        Raises:
            ConfigError: the message lists everything that is wrong.
        """
        changed = {**self._given, **by_key(changes.items(), REPLACED)}
        return type(self)(changed, self.files)

    def as_dict(self) -> dict[str, Any]:
        """Every key, as nested dicts; loading that as a file gives the same configuration.

        But for ``overall.trust_code``, which no file can give.
        """
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
            lambda name: (
                name in DURING_TRAINING
                or (not name.startswith("evaluation.") and name != "unlearn.task_name")
            )
        )

    def _fingerprint(self, counts: Callable[[str], bool]) -> str:
        chosen = label_of(self.get("unlearn.unlearn_method", ""))
        idle = tuple(f"unlearn.{m.label}." for m in METHODS.values() if m.label != chosen)
        relevant = {
            key.name: self._identities.get(key.name, self[key.name])
            for key in self._keys
            if not key.inert and not key.name.startswith(idle) and counts(key.name)
        }
        for name in ("unlearn", "finetune"):  # each process reads as many batches in a step
            accumulation = f"{name}.gradient_accumulation_steps"
            if accumulation in relevant and chosen != "origin":  # which has no steps
                relevant[accumulation] *= launch.processes()
        results = relevant.get("evaluation.retain_results")
        if results is not None and Path(results).is_file():  # what it holds counts
            content = Path(results).read_bytes()
            relevant["evaluation.retain_results"] = hashlib.sha256(content).hexdigest()
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


class UnlearnConfig(Config):
    """Of unlearning and evaluation."""

    overall: OverallSection
    unlearn: UnlearnSection
    dataset: PairedDataSection
    evaluation: EvaluationSection
    logger: LoggerSection

    @property
    def method_params(self) -> dict[str, float]:
        """Hyper-parameters of the chosen unlearning method, by name."""
        section = f"unlearn.{label_of(self['unlearn.unlearn_method'])}."
        return {key.removeprefix(section): self[key] for key in self if key.startswith(section)}

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
        return Path(filled(template, {**self._values, "unlearn.mask_ratio": ratio}))

    def gradient_cache(self) -> Path:
        """What the names of the files with sums of gradients start with.

        They serve every score type, ratio and μ, so that none of these is in the default's name.
        """
        if self["unlearn.gradient_cache"] is not None:
            return Path(self["unlearn.gradient_cache"])
        assert self._mask_template is not None  # else there is no mask to make
        template = Path(self._mask_template)
        parts = (
            re.sub(r"[ _.-]*\{(score|ratio|mu)\}", "", filled(part, {**self._values, **SHARED}))
            for part in (str(template.parent), template.stem)
        )
        folder, name = parts
        if mask_ratio(template) is not None:
            name = name.rpartition("_")[0]
        return Path(folder) / (name.strip(" _.-") or "sums")


class FineTuneConfig(Config):
    """Of fine-tuning."""

    overall: OverallSection
    finetune: FineTuneSection
    dataset: DataSection
    logger: LoggerSection


class PlantConfig(UnlearnConfig):
    """Of planted ground truth: the model that never saw the forget set, and its data."""

    overall: OverallSection
    plant: PlantSection
    unlearn: UnlearnSection
    dataset: PairedDataSection
    evaluation: EvaluationSection
    logger: LoggerSection


class AttackConfig(Config):
    """Of attacks on finished runs, which have data and model in their own configuration."""

    attack: AttackSection


class CompareConfig(Config):
    """Of comparing finished runs."""

    compare: CompareSection


class DepthConfig(Config):
    """Of looking into finished runs, which have data and model in their own configuration."""

    depth: DepthSection


UNLEARN_KEYS, FINE_TUNE_KEYS = UnlearnConfig.KEYS, FineTuneConfig.KEYS

_Config = TypeVar("_Config", bound=Config)


@overload
def load_config(argv: Sequence[str], *, prog: str, description: str) -> UnlearnConfig: ...


@overload
def load_config(
    argv: Sequence[str], program: type[_Config], *, prog: str, description: str
) -> _Config: ...


def load_config(
    argv: Sequence[str], program: type[Config] = UnlearnConfig, *, prog: str, description: str
) -> Config:
    """Read the command line and the configuration files that it names.

    Args:
        argv: without the program's name: ``--config_file FILE``, ``--section.key value`` or
            ``--section.key=value``, ``--help``.
        program: whose keys may be given.
        prog, description: for the help text.

    Raises:
        ConfigError: the message lists everything that is wrong.
        SystemExit: after ``--help``.
    """
    if "--help" in argv or "-h" in argv:
        _show_help(
            [word for word in argv if word not in ("--help", "-h")], program.KEYS, prog, description
        )
    return program(*_read(argv))


def _read(argv: Sequence[str]) -> tuple[dict[str, Given], list[str]]:
    names, pairs = split_command_line(argv)
    given: dict[str, Given] = {}
    files: list[str] = []
    for name in names:
        more, read = given_in(name)
        given |= more
        files += read
    return given | by_key(pairs, COMMAND_LINE), files


def _show_help(argv: Sequence[str], keys: Sequence[Key], prog: str, description: str) -> NoReturn:
    """Print the help, with the keys of a method from outside where one is given."""
    note = ""
    with contextlib.suppress(ConfigError):  # what else is wrong is not asked for
        given, wrong = enter_given(keys, _read(argv)[0])
        keys = (*keys, *keys_of_method(keys, given))
        if "unlearn.unlearn_method" in wrong:
            note = f"{given['unlearn.unlearn_method'].value}: {wrong['unlearn.unlearn_method']}"
    print(help_text(keys, prog, description))
    if note:
        print(f"\n{note}")
    sys.exit(0)
