"""One unlearning run: load, data, mask, train, save, evaluate."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wagle import ranks, shards
from wagle.config import UnlearnConfig
from wagle.dataset.pairing import PairCollator
from wagle.devices import seed_everything
from wagle.errors import ConfigError, WagleError
from wagle.loggers import Logger
from wagle.loggers.files import bytes_fingerprint, check_room
from wagle.loggers.run_folder import MANIFEST
from wagle.metrics.partial_work import keeping
from wagle.model.attempts import Attempts
from wagle.model.environment import (
    Stopwatch,
    git_commit,
    mask_fingerprint,
    peak_memory,
    versions,
)
from wagle.model.evaluation import check_evaluation, check_length, evaluate
from wagle.model.evaluation_context import EvaluationContext
from wagle.model.loading import (
    check_model,
    load_model,
    save_model,
)
from wagle.model.lora import adapted_share, add_lora, merge_lora, without_lora
from wagle.model.measured import Measured
from wagle.model.opened import OpenedRun
from wagle.model.record import (
    RECORD,
    Record,
    about_run,
)
from wagle.model.training_evaluation import choice_of, training_evaluation
from wagle.optim.bitmask import BitMask, Mask
from wagle.stopping import deferring
from wagle.terminal import say
from wagle.training.loop import Hooks, TrainingData
from wagle.training.schedule import Plan
from wagle.unlearn.mask.certificate import Certificate, frozen_count, model_digest
from wagle.unlearn.mask.fingerprints import examples_fingerprint, model_fingerprint
from wagle.unlearn.mask.provenance import MaskOrigin
from wagle.unlearn.mask.statistics import density
from wagle.unlearn.objectives import ReferenceModel
from wagle.unlearn.reference import SwappedWeights, reference_losses
from wagle.unlearn.training import unlearn

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Unlearn(OpenedRun):
    """A run as its configuration describes it.

    Args:
        config: every key, resolved.
        logger: where the run's numbers go.

    Attributes:
        mask: the weights that may change (``None``: all), after :meth:`prepare_mask`.
        mask_origin: what made it, where it is a file.
        certificate: of the weights that the mask leaves out, after :meth:`train`.
        adapted_share: share of the weights that LoRA changes, after :meth:`train`; else 1.
        training_log: one dict per logged step, after :meth:`train`.
        attempts: what earlier ones have left, and what this one leaves.
    """

    def __init__(self, config: UnlearnConfig, logger: Logger) -> None:
        super().__init__(config)
        self.logger = logger
        self.watch = Stopwatch()
        self.mask: Mask | None = None
        self.mask_origin: MaskOrigin | None = None
        self.certificate: Certificate | None = None
        self.adapted_share = 1.0
        self.attempts = Attempts(config, logger)

    def run(self) -> dict[str, Any]:
        """Do everything and return the flat summary that goes into ``results.json``."""
        earlier = self.logger.start(
            self.config.as_dict(),
            self.config.fingerprint(),
            wants_model=self.trains and self.config.unlearn.save_model,
        )
        if earlier is not None:
            say(f"already finished with this configuration: {self.logger.folder}")
            self._check_inputs()
            return earlier
        try:
            results = self._run()
            self.logger.finish(results, self._manifest())
            self.attempts.remove()
        except BaseException as error:
            self.logger.fail(error, self._manifest())
            say(self.attempts.left_behind(self.watch.phases), sys.stderr)
            raise
        finally:
            self.attempts.close()
        return results

    def _check_inputs(self) -> None:
        """Make sure that a finished run is about the model and the rows that are there today.

        Raises:
            ConfigError: it is about others, whose names are the same.
        """
        manifest = self.logger.load(MANIFEST) or {}
        known = {**manifest.get("fingerprints", {}), **manifest.get("evaluated_rows", {})}
        try:
            self.load()
            if self.trains:
                self.build_dataset()
            today = {**self.fingerprints, **self.data.evaluated()}
        except WagleError as error:
            say(f"not checked whether its model and data are still the same: {error}")
            return
        if manifest.get("resolved") != self.resolved():
            say("not checked whether its model is still the same: it ran in another way, elsewhere")
            return
        changed = [name for name in known if name in today and known[name] != today[name]]
        if changed:
            raise ConfigError(
                f"the run in {self.logger.folder} was made from other files than are there now, of "
                f"the same names ({', '.join(changed)}): remove the folder or pass another "
                "--logger.name"
            )

    def _run(self) -> dict[str, Any]:
        seed_everything(self.config.overall.seed)
        # Without a network the model is missing first: its message says how to give all that is.
        check_model(self.model_name, self.cache_dir)
        check_evaluation(self.config, self.data.rows)
        if self.trains:
            choice_of(self.config)
        with self.watch.phase("load"):
            self.load()
        check_length(self.config, self.model)
        if self.trains:
            with self.watch.phase("data"):
                self.build_dataset()
                say(f"training: {self.plan.describe()}")
                if warning := self.plan.warning():
                    say(f"warning: training {warning}")
            with self.watch.phase("mask"):
                self.prepare_mask()
            self._find_checkpoints()
            if not self._continue():
                if folder := self.attempts.model_folder:
                    check_room(folder.parent, shards.weight_bytes(self.model))
                with self.watch.phase("train"):
                    self.train()
                with self.watch.phase("save"):
                    self.save()
            if self.attempts.saved:
                self.attempts.drop_checkpoints()
            with self.watch.phase("draw"):
                self.draw()
        with self.watch.phase("evaluate"), shards.opened(self.model):
            return self.evaluate()

    @cached_property
    def plan(self) -> Plan:
        """How long training is, after :meth:`build_dataset`.

        Raises:
            ConfigError: nothing would be trained.
        """
        config = self.config
        return Plan.make(
            len(self.dataset),
            batch_size=config.dataset.batch_size,
            accumulation=config.unlearn.gradient_accumulation_steps * ranks.size(),
            num_epochs=config.unlearn.num_epochs,
            max_steps=config.unlearn.max_steps,
            whole_epochs=config.unlearn.step_formula == "whole_epochs",
        )

    def prepare_mask(self) -> None:
        """Load the mask file, or make it and save it there.

        Without a path all weights may change, unless the method itself chooses some of them.
        """
        chosen = self.objective.trainable(self.model)
        if self.config.unlearn.mask_path is None:
            if chosen is not None and not self.config.unlearn.use_lora:
                parameters = self.model.named_parameters()
                self.mask = {name: BitMask.full(p.shape, name in chosen) for name, p in parameters}
                method = self.config.unlearn.unlearn_method
                say(f"{method} updates {self.density():.4%} of the weights")
            return
        self.mask, self.mask_origin = self.mask_files(self.attempts.resumed.append).prepare()
        self.fingerprints["mask"] = mask_fingerprint(self.mask)

    def density(self) -> float:
        """Share of the weights that may change."""
        return self.adapted_share if self.mask is None else density(self.mask)

    def train(self) -> None:
        """Unlearn in place."""
        config = self.config
        with shards.opened(self.model):
            for view in self.objective.reference_losses:
                self.dataset.reference_losses[view] = reference_losses(
                    self.model,
                    self.dataset,
                    view,
                    batch_size=config.evaluation.batch_size,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
        before = None if self.mask is None else model_digest(self.model, self.mask)
        model, adapted = self.model, None
        if config.unlearn.use_lora:
            adapted = add_lora(model, config.unlearn.lora_targets)
            self.adapted_share = adapted_share(adapted)
            model = cast("PreTrainedModel", adapted)  # has all that a model has
        needs_reference = self.objective.needs_reference_model
        reference = self._reference(adapted) if needs_reference else None
        collate = PairCollator(self.dataset, self.tokenizer.pad_token_id)
        checkpoints = self.attempts.checkpoints
        watching = training_evaluation(
            self._context(Logger().save, Measured(None, {})),
            checkpoints.folder if checkpoints else None,
        )
        self.training_log = unlearn(
            model,
            TrainingData(self.dataset, self.dataset.order, collate, config.dataset.num_workers),
            self.objective,
            self.mask,
            reference,
            self.plan,
            replace(
                config.unlearn,
                mask_enforcement=self.enforcement(),
                master_weights=self.master_weights(),
            ),
            seed=config.overall.seed,
            after_step=watching.after_step if watching else Hooks.after_step,
            on_log=self.logger.log_step,
            checkpoints=checkpoints,
        )
        if watching:
            watching.restore_best(self.training_log)
        if adapted is not None:
            self.model = merge_lora(adapted)
        self.model.eval()
        if self.mask is not None and before is not None:
            after = model_digest(self.model, self.mask)
            self.certificate = Certificate(frozen_count(self.mask), before, after)
            say(self.certificate.describe())

    def _reference(self, adapted: PeftModel | None) -> ReferenceModel:
        """What opens the model before unlearning during training."""
        if adapted is not None:
            return lambda: without_lora(adapted)
        drifts = self.enforcement() == "gradient" and self.config.unlearn.weight_decay > 0
        reference = SwappedWeights(self.model, None if drifts else self.mask)
        size = f"{reference.nbytes:,} bytes"
        if drifts:
            size += ": all of them, since unlearn.mask_enforcement gradient lets every weight decay"
        elif self.mask is None:
            size += ": a second set of all weights; with unlearn.mask_path it is the mask's share"
        say(f"{self.config.unlearn.unlearn_method} keeps original weights, {size}")
        return reference

    def save(self) -> None:
        """Save model and tokenizer into the run folder, unless only numbers are wanted."""
        folder = self.attempts.model_folder
        if folder is None:
            return
        documents = {RECORD: asdict(self._record())}
        template = self.template
        with deferring("the model is saved"):
            save_model(self.model, self.tokenizer, folder, template=template, documents=documents)
            self.attempts.saved = folder

    def _record(self) -> Record:
        seconds = self.watch.report()
        return Record(
            **self._about(),
            training=self._training_origin(),
            certificate=self.certificate.as_dict() if self.certificate else None,
            seconds={name: seconds[name] for name in ("mask", "train")},
            log=self.training_log,
            config=self.config.as_dict(),
            resumed=self.attempts.resumed,
        )

    def _about(self) -> dict[str, Any]:
        """What the results say about the evaluated model."""
        if self.config.unlearn.resume_path is not None:
            return self.record.about if self.record else about_run(Path(self.model_name).parent)
        return {
            "method": self.config.unlearn.unlearn_method,
            "mask": self.config.unlearn.mask_path if self.trains else None,
            "density": self.density(),
            "seed": self.config.overall.seed,
        }

    def _training_origin(self) -> dict[str, Any]:
        """Everything that decides the trained weights."""
        return {
            "config": self.config.training_fingerprint(),
            "fingerprints": self.fingerprints,
            "resolved": self.resolved(),
        }

    def _find_checkpoints(self) -> None:
        first = [self.dataset.example(view, (0, 0)) for view in self.objective.views]
        encoded = examples_fingerprint(first)  # what tokenizer and template make of rows
        origin = {**self._training_origin(), "encoded": encoded, "versions": versions()}
        self.attempts.find_checkpoints(origin)

    def _continue(self) -> bool:
        """Take the model that an earlier attempt at the same training has saved, if it has."""
        record = self.attempts.find_trained(self._training_origin())
        if record is None:
            return False
        self.model, self.tokenizer = load_model(
            str(self.attempts.saved),
            dtype=self.dtype,
            device=self.device,
            cache_dir=self.cache_dir,
            sharded=self.sharded,
        )
        self.adapted_share = record.density
        self.training_log = record.log
        self.certificate = Certificate.of(record.certificate)
        self.watch.seconds |= record.seconds
        for entry in record.log:
            self.logger.log_step(entry)
        return True

    def draw(self) -> None:
        """Keep pictures of the training and of what the mask selects, and the latter's numbers."""
        if self.logger.folder is None or not ranks.is_first():
            return
        # matplotlib takes its time to import
        from wagle.reporting.run_figures import draw_run

        draw_run(self.logger, self.config, self.training_log, self.mask, self.density())

    def evaluate(self) -> dict[str, Any]:
        """Run the task's evaluation; its documents go to the logger, its summary is returned.

        What an earlier attempt has measured of the same weights, rows and code is taken over.
        """
        measured = self.attempts.find_measured(self._evaluation_origin())
        context = self._context(self.logger.save, measured)
        task = self.config.unlearn.task_name
        with keeping(self.model, measured.pieces, measured.origin, self.attempts.note):
            return {"task": task, **self._about(), **evaluate(context)}

    def _context(self, save: Callable[[str, Any], None], measured: Measured) -> EvaluationContext:
        """What an evaluation of the model works with."""
        return EvaluationContext(
            config=self.config,
            model=self.model,
            tokenizer=self.tokenizer,
            template=self.template,
            load_rows=self.data.rows,
            forget_rows=self.data.forget_rows,
            save=save,
            measured=measured,
        )

    def _evaluation_origin(self) -> dict[str, Any]:
        """Everything that decides the numbers."""
        given = {
            name: getattr(self.config.evaluation, name)
            for name in ("retain_results", "original_results")
        }
        return {
            "config": self.config.fingerprint(),
            **{name: path and bytes_fingerprint(Path(path)) for name, path in given.items()},
            "model": model_fingerprint(self.model) if self.trains else self.fingerprints["model"],
            "rows": self.data.evaluated(),
            "versions": versions(),
            "git_commit": git_commit(),
            "resolved": self.resolved(),
        }

    def _manifest(self) -> dict[str, Any]:
        return {
            **({"trained_with": self.record.config} if self.record else {}),
            "versions": versions(),
            "git_commit": git_commit(),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "template": self._template.record() if self._template else None,
            "model_family": self.family.name if self.family else None,
            "resolved": self.resolved(),
            "phase": self.watch.phases[-1] if self.watch.phases else None,
            "seeds": {
                "overall": self.config.overall.seed,
                "dataset": self.config.dataset.dataset_seed,
            },
            "config_files": self.config.files,
            "code": self.config.code,
            "fingerprints": self.fingerprints,
            "evaluated_rows": self.data.evaluated_so_far,
            "mask": self.mask_origin.as_dict() if self.mask_origin else None,
            "certificate": self.certificate.as_dict() if self.certificate else None,
            "resumed": self.attempts.resumed,
            "seconds": self.watch.report(),
            "peak_memory_bytes": peak_memory(),
            "peak_memory_bytes_after": self.watch.memory,
        }
