"""The phases of a command as its configuration describes it, and the memory that each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from wagle.catalogue import METHODS, SCORES
from wagle.config import Config, FineTuneConfig, UnlearnConfig
from wagle.dataset.pairing import FORGET, RETAIN
from wagle.dataset.templates import find_family
from wagle.entries import Score
from wagle.errors import ConfigError, WagleError
from wagle.families import Family
from wagle.metrics.benchmarks import benchmark_of
from wagle.metrics.continuation import DRAFT
from wagle.metrics.likelihood import LOGITS_CHUNK, most_tokens
from wagle.model.architecture import feed_forward_names, parameter_kind
from wagle.model.loading import read_tokenizer, resolve_device, resolve_dtype
from wagle.optim.bitmask import Mask
from wagle.planning.memory import (
    ATTRIBUTION,
    TRAINING,
    Phase,
    Training,
    attribution_phase,
    reading_phase,
    share_of,
    training_phase,
)
from wagle.planning.simulation import BatchShape
from wagle.planning.skeleton import add_adapters, read_configuration, skeleton
from wagle.planning.texts import Length, Role, longest_text
from wagle.unlearn.mask.file import load_mask
from wagle.unlearn.objectives import Objective

REFERENCE_LOSSES = "reference losses"
EVALUATION = "evaluation"


@dataclass(frozen=True)
class Job:
    """What is to be planned.

    Attributes:
        config: every key, resolved.
        model: the model's configuration.
        device: where it would run; it need not be there.
        texts: the longest text of each data set, by ``forget``, ``retain`` or ``learned``.
        only_mask: masks are made, and nothing is trained.
        devices: how many share the batches of a step.
        sharded: each holds a part of the weights, else all of them.
    """

    config: Config
    model: PretrainedConfig
    device: torch.device
    texts: Mapping[str, Length]
    only_mask: bool = False
    devices: int = 1
    sharded: bool = False

    @classmethod
    def of(cls, config: Config, *, only_mask: bool = False, devices: int = 1) -> Job:
        """The job of a configuration; its model's configuration and its rows are looked at.

        Raises:
            ConfigError: the model is built from the data (``finetune.from_scratch``).
            WagleError: the model's configuration cannot be read.
        """
        if config.get("finetune.from_scratch"):
            raise ConfigError("--plan: finetune.from_scratch makes a tiny model, which fits")
        name = config.get("unlearn.resume_path") or config.overall.model_name
        model = read_configuration(name, Path(config.overall.cache_dir))
        sets: dict[str, tuple[str, Role]]
        if isinstance(config, FineTuneConfig):
            sets = {"learned": (config.finetune.dataset_name, "retain")}
        else:
            assert isinstance(config, UnlearnConfig)
            sets = {
                FORGET: (config.dataset.forget_dataset_name, "forget"),
                RETAIN: (config.dataset.retain_dataset_name, "retain"),
            }
        texts = {role: longest_text(config, *of, model.model_type) for role, of in sets.items()}
        device = config.overall.device
        there = resolve_device("auto") if device == "auto" else torch.device(device)
        return cls(config, model, there, texts, only_mask, devices)

    def changed(self, changes: Mapping[str, object]) -> Job:
        """The same job with some keys changed."""
        return replace(self, config=self.config.replace(changes))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return resolve_dtype(self.config.overall.dtype, self.device)

    def phases(self) -> list[Phase]:
        """Every phase that takes more than the model, in order, as each device sees it."""
        with skeleton(self.model, self.dtype) as model:
            return [self._own(phase(model), model) for phase in self._phases().values()]

    def phase(self, name: str) -> Phase:
        """One of them."""
        with skeleton(self.model, self.dtype) as model:
            return self._own(self._phases()[name](model), model)

    def _own(self, phase: Phase, model: PreTrainedModel) -> Phase:
        return share_of(phase, model, self.devices) if self.sharded else phase

    def _steps(self, batches: int) -> int:
        """How many batches of a step each device reads."""
        return -(-batches // self.devices)

    def _phases(self) -> dict[str, Callable[[PreTrainedModel], Phase]]:
        """What works out each phase for a skeleton, by name."""
        if isinstance(self.config, FineTuneConfig):
            return {TRAINING: self._fine_tuning}
        config = self._unlearn_config
        trains = config.unlearn.unlearn_method != "origin" and config.unlearn.resume_path is None
        path = config.unlearn.mask_path
        phases: dict[str, Callable[[PreTrainedModel], Phase]] = {}
        makes_mask = self.only_mask or (trains and path is not None and not Path(path).is_file())
        if makes_mask and self._score.sums:
            phases[ATTRIBUTION] = self._attribution
        if self.only_mask:
            return phases
        if trains:
            if self._objective.reference_losses:
                phases[REFERENCE_LOSSES] = self._reference_losses
            phases[TRAINING] = self._training
        if config.unlearn.task_name != "none":
            phases[EVALUATION] = self._evaluation
        return phases

    @cached_property
    def _objective(self) -> Objective:
        config = self._unlearn_config
        objective: Objective = METHODS[config.unlearn.unlearn_method].load()(**config.method_params)
        return objective.fitted(self._family, self.model.get_text_config().num_hidden_layers)

    @property
    def _family(self) -> Family | None:
        """Of the model, where its tokenizer is here."""
        try:
            place = (self.config.overall.model_name, Path(self.config.overall.cache_dir))
            return find_family(self.model.model_type, read_tokenizer(*place))
        except WagleError:
            return None

    @property
    def _unlearn_config(self) -> UnlearnConfig:
        assert isinstance(self.config, UnlearnConfig)
        return self.config

    @property
    def _score(self) -> Score:
        return SCORES[self._unlearn_config.unlearn.score_type]

    def _batch(self, role: str, rows: int, *, whole: bool = False) -> BatchShape:
        """A batch of a role's longest texts, of which the labelled or all tokens are predicted."""
        text = self.texts[role]
        return BatchShape(rows, text.tokens, rows * (text.tokens if whole else text.labelled))

    def _read(self, role: str, rows: int) -> BatchShape:
        """What a forward pass without gradients reads of as many texts at once."""
        text = self.texts[role]
        fit = max(1, int(min(rows, most_tokens(self.device) // text.tokens)))
        return BatchShape(fit, text.tokens, min(fit * text.labelled, LOGITS_CHUNK))

    def _fine_tuning(self, model: PreTrainedModel) -> Phase:
        config = self.config
        assert isinstance(config, FineTuneConfig)
        masters = config.finetune.master_weights
        training = Training(
            terms=[[self._batch("learned", config.finetune.batch_size)]],
            shares={},
            masked=False,
            packed=False,
            clipped=True,
            accumulation=self._steps(config.finetune.gradient_accumulation_steps),
            masters=masters is None or masters,
            eight_bit=config.finetune.moments == "8bit",
        )
        return training_phase(model, training, self.device)

    def _attribution(self, model: PreTrainedModel) -> Phase:
        config = self._unlearn_config
        score, several = self._score, config.unlearn.attribution_batch_size
        rows = {
            RETAIN if kind == RETAIN else FORGET: several if kind in score.gradients else 1
            for kind in (*score.squares, *score.gradients)
        }
        kinds = [
            attribution_phase(
                model,
                self._batch(role, rows[role]),
                offload=config.unlearn.attribution_offload,
                sum_bytes=8 if config.unlearn.attribution_dtype == "float64" else 4,
                device=self.device,
            )
            for role in sorted(rows)
        ]
        return max(kinds, key=lambda phase: phase.total)

    def _reference_losses(self, model: PreTrainedModel) -> Phase:
        config = self._unlearn_config
        batch = self._read(FORGET, config.evaluation.batch_size)
        masked = config.unlearn.mask_path is not None
        return reading_phase(model, REFERENCE_LOSSES, batch, masked=masked)

    def _evaluation(self, model: PreTrainedModel) -> Phase:
        role = max(self.texts, key=lambda role: self.texts[role].tokens)
        config = self._unlearn_config
        rows = config.evaluation.batch_size
        masked = TRAINING in self._phases() and config.unlearn.mask_path is not None
        # Answers are continued in a cache that has room for a draft behind the last token.
        longest = benchmark_of(config).continued(self.texts[role].tokens) + DRAFT
        return reading_phase(
            model,
            EVALUATION,
            self._read(role, rows),
            masked=masked,
            cached_tokens=rows * longest,
        )

    def _training(self, model: PreTrainedModel) -> Phase:
        config, objective = self._unlearn_config, self._objective
        published = (
            config.unlearn.mask_path is not None and config.unlearn.mask_enforcement == "gradient"
        )
        shares = {} if published else self._shares(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(shares.get(name, 1.0) > 0)
        lora, runs_reference = config.unlearn.use_lora, objective.needs_reference_model
        if lora:
            add_adapters(model, config.unlearn.lora_targets)
        if config.unlearn.gradient_checkpointing:
            model.activation_checkpointing_enable()
        steers = getattr(objective, "retain_loss", None) == "states"  # and makes no logits
        layer = getattr(objective, "layer", None) if steers else None
        rows, terms, logits = config.dataset.batch_size, [], 0
        for views in (
            [view for view in objective.views if view != RETAIN],
            [view for view in objective.views if view == RETAIN],
        ):
            # What the reference model is asked about are all tokens of its views.
            whole = (
                runs_reference
                and layer is None
                and (RETAIN in views or config.unlearn.unlearn_method == "KL")
            )
            role = RETAIN if RETAIN in views else FORGET
            batches = [self._batch(role, rows, whole=whole) for _ in views]
            logits += sum(batch.rows * batch.tokens for batch in batches) if whole else 0
            if batches:
                terms.append(batches)
        weights = sum(p.numel() for p in model.parameters())
        kept = sum(shares.get(n, 1.0) * p.numel() for n, p in model.named_parameters()) / weights
        drifts = published and config.unlearn.weight_decay > 0
        masters = config.unlearn.master_weights
        training = Training(
            terms=terms,
            shares=shares,
            masked=config.unlearn.mask_path is not None,
            packed=config.unlearn.gradients == "packed",
            clipped=config.unlearn.max_grad_norm > 0,
            accumulation=self._steps(config.unlearn.gradient_accumulation_steps),
            masters=masters is None or masters,
            eight_bit=config.unlearn.moments == "8bit",
            alone=self.devices == 1,
            reference=0.0 if lora or not runs_reference else 1.0 if drifts else kept,
            reference_logits=logits,
            layer=layer,
            # A displacement, the weights before and, for a moment, those displaced; an average.
            beside=3 * bool(config.unlearn.sam_rho or config.unlearn.smoothing_std)
            + (config.unlearn.average_from is not None)
            + (objective.extrapolation != 1),
        )
        return training_phase(model, training, self.device)

    def _shares(self, model: PreTrainedModel) -> dict[str, float]:
        """Share of each parameter's weights that may change; 1 where it is not named."""
        config = self._unlearn_config
        names = [name for name, _ in model.named_parameters()]
        if config.unlearn.mask_path is None:
            chosen = self._objective.trainable(model)
            if chosen is None or config.unlearn.use_lora:
                return {}
            return {name: float(name in chosen) for name in names}
        if config.unlearn.score_type == "ffn":
            chosen = feed_forward_names(names)
            return {name: float(name in chosen) for name in names}
        if config.ratio is None:
            return _densities(load_mask(Path(config.unlearn.mask_path)))
        excluded = config.unlearn.mask_exclude
        return {name: 0.0 if parameter_kind(name) in excluded else config.ratio for name in names}


def _densities(mask: Mask) -> dict[str, float]:
    return {name: bits.count() / max(bits.numel, 1) for name, bits in mask.items()}
