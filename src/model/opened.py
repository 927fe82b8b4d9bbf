"""What a configuration of unlearning names, opened: the model, how it is asked, and the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from wagle.catalogue import METHODS
from wagle.config import UnlearnConfig
from wagle.dataset.pairing import ALTERNATE
from wagle.dataset.sources import find_source
from wagle.dataset.templates import Template, announcement, find_family, resolve_template
from wagle.entries import label_of
from wagle.errors import ConfigError
from wagle.families import Family
from wagle.loggers.files import bytes_fingerprint
from wagle.model.alternates import read_alternates
from wagle.model.architecture import adapted_modules
from wagle.model.loading import find_saved_template, load_model, resolve_dtype
from wagle.model.masking import MaskFiles
from wagle.model.reading import check_readable
from wagle.model.record import Record, find_saved_model, read_record
from wagle.model.run_data import RunData
from wagle.planning.parallel import join_processes
from wagle.terminal import say
from wagle.unlearn.mask.fingerprints import model_fingerprint
from wagle.unlearn.objectives import Objective

TRAINLESS = "origin"


class OpenedRun:
    """The model and the rows of a run, for unlearning or for looking into.

    Args:
        config: every key, resolved.

    Attributes:
        data: the rows that the configuration names.
        model, tokenizer: after :meth:`load`.
        family: of the model, where it is one that is known, after :meth:`load`.
        fingerprints: of the model, after :meth:`load`, and of the rows, after
            :meth:`build_dataset`.
        trains: whether the run unlearns, and not only evaluates.
        paired: pairs of forget and retain examples, after :meth:`build_dataset`.
        dataset: what is trained on: these, or one for each alternate of a forget row.
        record: how the model of ``unlearn.resume_path`` was made, where it says so.

    Raises:
        ConfigError: the configuration lacks a ratio that the mask's path asks for.
    """

    def __init__(self, config: UnlearnConfig) -> None:
        self.config = config
        self.data = RunData(config)
        self._template: Template | None = None
        self.family: Family | None = None
        self._fitted: dict[str, Any] = {}  # what follows from the model, by key
        self.record: Record | None = None
        self.fingerprints: dict[str, str] = {}
        self.device, self.sharded = join_processes(config)
        self.dtype = resolve_dtype(config.overall.dtype, self.device)
        self.trains = (
            config.unlearn.unlearn_method != TRAINLESS and config.unlearn.resume_path is None
        )
        self._objective: Objective | None = None
        if self.trains:
            objective = METHODS[config.unlearn.unlearn_method].load()
            self._objective = objective(**config.method_params)
            if config.unlearn.mask_path and "{ratio}" in config.unlearn.mask_path:
                raise ConfigError(
                    f"unlearn.mask_path is {config.unlearn.mask_path}, so "
                    "unlearn.mask_ratio must say the ratio"
                )

    @property
    def template(self) -> Template:
        """The prompt template, after :meth:`load`."""
        assert self._template is not None
        return self._template

    @property
    def objective(self) -> Objective:
        """The loss, where something is trained."""
        assert self._objective is not None
        return self._objective

    def load(self) -> None:
        """Load the model to be unlearned, or the saved one to be evaluated."""
        self.model, self.tokenizer = load_model(
            self.model_name,
            dtype=self.dtype,
            device=self.device,
            cache_dir=self.cache_dir,
            sharded=self.sharded,
        )
        if self.config.unlearn.resume_path is not None:
            self.record = read_record(Path(self.model_name))
        data = self.config.dataset
        names = (data.forget_dataset_name, data.retain_dataset_name)
        check_readable(
            self.model,
            max(find_source(name).max_length for name in names),
            self.tokenizer.pad_token_id,
            in_batches=self.trains and self._reads_batches,
        )
        self.fingerprints["model"] = model_fingerprint(self.model)
        saved = find_saved_template(self.model_name, Path(self.config.overall.cache_dir))
        self._template = resolve_template(
            data,
            self.tokenizer,
            protocol=self.config.evaluation.protocol,
            model_name=self.config.overall.model_name,
            dataset_name=self.config.dataset.forget_dataset_name,
            architecture=self.model.config.model_type,
            saved=saved,
        )
        self.family = find_family(self.model.config.model_type, self.tokenizer)
        if self.trains:
            self._fit()
        say(announcement(self.template, saved, self.family))
        chosen = {key: value for key, value in self.resolved().items() if "template" not in key}
        say(", ".join(f"{key} {value}" for key, value in chosen.items()))

    def _fit(self) -> None:
        """Choose what is not set and follows from the model."""
        layers = self.model.config.get_text_config().num_hidden_layers
        before = vars(self.objective)
        self._objective = self.objective.fitted(self.family, layers)
        label = label_of(self.config.unlearn.unlearn_method)
        for name, value in vars(self.objective).items():
            if before[name] is None and value is not None:
                self._fitted[f"unlearn.{label}.{name}"] = value
        if self.config.unlearn.use_lora:
            wanted = self.config.unlearn.lora_targets
            self._fitted["unlearn.lora_targets"] = adapted_modules(self.model, wanted)

    @property
    def _reads_batches(self) -> bool:
        """Whether training or attribution reads several rows at once."""
        return max(self.config.dataset.batch_size, self.config.unlearn.attribution_batch_size) > 1

    @property
    def cache_dir(self) -> Path:
        return Path(self.config.overall.cache_dir)

    @property
    def model_name(self) -> str:
        saved = self.config.unlearn.resume_path
        return str(find_saved_model(Path(saved))) if saved else self.config.overall.model_name

    def resolved(self) -> dict[str, Any]:
        """What was chosen where the configuration leaves the choice, by key."""
        resolved: dict[str, Any] = {
            "overall.device": self.device.type,
            "overall.dtype": str(self.dtype).removeprefix("torch."),
            "dataset.template": self._template.name if self._template else None,
        }
        if self.trains:
            resolved["unlearn.master_weights"] = self.master_weights()
            resolved["unlearn.mask_enforcement"] = self.enforcement()
        return resolved | self._fitted

    def build_dataset(self) -> None:
        """Draw the forget examples and pair them with retain examples."""
        views = self._objective.views if self._objective else ()
        self.paired = self.data.pairs(self.model, self.tokenizer, self.template, views)
        self.fingerprints |= self.data.fingerprints
        self.dataset = self.paired
        if ALTERNATE in views:
            path = Path(self.config["unlearn.AltPO+FT.alternates"])
            rows, model = self.paired.forget, self.fingerprints["model"]
            self.dataset = self.paired.with_alternates(read_alternates(path, rows, model=model))
            self.fingerprints["alternates"] = bytes_fingerprint(path)

    def mask_files(self, on_resume: Callable[[dict[str, str]], None] = lambda _: None) -> MaskFiles:
        """Masks for the loaded model and data.

        Args:
            on_resume: told when an attribution went on after an interruption.
        """
        return MaskFiles(
            self.config,
            self.model,
            self.paired,
            model_fingerprint=self.fingerprints["model"],
            template=self.template.name,
            pad_token_id=self.tokenizer.pad_token_id,
            on_resume=on_resume,
        )

    def enforcement(self) -> Literal["optimizer", "gradient"]:
        """How the mask is enforced; the published way is for mask files only."""
        if self.config.unlearn.mask_path is None:
            return "optimizer"
        return self.config.unlearn.mask_enforcement

    def master_weights(self) -> bool:
        """Whether 16-bit weights are updated by way of float32 copies."""
        masters = self.config.unlearn.master_weights
        return self.dtype.itemsize == 2 if masters is None else masters


def opened(config: UnlearnConfig, changes: Mapping[str, Any]) -> OpenedRun:
    """A run like one that is configured, but for some keys, with its model loaded."""
    run = OpenedRun(config.replace(changes))
    run.load()
    return run
