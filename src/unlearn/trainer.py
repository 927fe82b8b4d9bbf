"""Masked unlearning through the hook points of the Hugging Face Trainer."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from src.dataset.pairing import EpochSampler, PairCollator, UnlearnDataset
from src.errors import ConfigError, WagleError
from src.optim.bitmask import Mask
from src.optim.masked_adamw import MaskedAdamW
from src.optim.sophia import SophiaG, sample_labels
from src.unlearn.objectives import Objective, ReferenceModel
from src.unlearn.objectives.losses import View, answer_lengths, forward_logits, token_losses

SOPHIA_REFRESH_STEPS = 10  # k of Liu et al. 2023 (arXiv 2305.14342), Algorithm 3


@dataclass(frozen=True)
class SophiaSettings:
    """Hyper-parameters of Sophia-G."""

    betas: tuple[float, float]
    rho: float


@dataclass(frozen=True)
class TrainingSettings:
    """The training recipe.

    Attributes:
        max_steps: optimizer steps; -1: ``num_epochs`` passes, in whole steps.
        mask_enforcement: ``optimizer``: only selected weights are seen by the optimizer;
            ``gradient``: gradients are multiplied by the mask before a dense step, as published
            (with weight decay, frozen weights shrink).
        master_weights: keep float32 masters of the selected weights.
        sophia: use Sophia-G instead of AdamW.
    """

    lr: float
    weight_decay: float
    num_epochs: int
    max_steps: int
    batch_size: int
    gradient_accumulation_steps: int
    seed: int
    mask_enforcement: str
    master_weights: bool
    gradient_checkpointing: bool = False
    sophia: SophiaSettings | None = None
    num_workers: int = 0

    def steps(self, examples: int, world_size: int = 1) -> int:
        """Number of optimizer steps, by the published formula.

        Raises:
            ConfigError: not even one step fits.
        """
        if self.max_steps > 0:
            return self.max_steps
        per_step = self.batch_size * self.gradient_accumulation_steps * world_size
        steps = int(self.num_epochs * examples) // per_step
        if steps == 0:
            raise ConfigError(
                f"{self.num_epochs} epochs of {examples} forget examples make no whole step of "
                f"{per_step} examples (batch size × accumulation × processes); lower "
                "dataset.batch_size or unlearn.gradient_accumulation_steps, or set "
                "unlearn.max_steps"
            )
        return steps


class UnlearnTrainer(Trainer):
    """The Hugging Face Trainer with an unlearning objective and a weight mask.

    Args:
        model: updated in place; its device decides where training runs.
        tokenizer: gives the padding token.
        dataset: pairs of forget and retain examples.
        objective: the loss.
        mask: the weights that may change; ``None``: all of them.
        reference: opens the model before unlearning, for objectives that run it.
        settings: the recipe.
        work_dir: the Trainer wants an output folder; nothing is saved there.
        callbacks: for logging.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: UnlearnDataset,
        objective: Objective,
        mask: Mask | None,
        reference: ReferenceModel | None,
        settings: TrainingSettings,
        *,
        work_dir: Path,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.objective = objective
        self.mask = mask
        self.reference = reference
        self.settings = settings
        arguments = _training_arguments(settings, model.device, work_dir)
        steps = settings.steps(len(dataset), arguments.world_size)
        arguments.max_steps = steps
        arguments.warmup_steps = max(1, steps // 10)
        arguments.logging_steps = max(1, steps // 20)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=PairCollator(dataset, tokenizer.pad_token_id),
            callbacks=[StopOnNonFiniteLoss(), *callbacks],
        )
        self.remove_callback(PrinterCallback)  # log.json has the numbers
        if mask is not None:
            self._freeze_unselected()
        self._refreshed_at = -1
        # Without this the Trainer would divide an accumulation window's summed loss by its token
        # count; the published loss is the mean of the micro-batches.
        self.model_accepts_loss_kwargs = False

    def _freeze_unselected(self) -> None:
        selected = {name for name, bits in self.mask.items() if bits.count()}
        if not selected:
            raise WagleError("the mask selects no weight at all: there is nothing to train")
        if self.settings.mask_enforcement == "gradient":
            self.add_callback(_MaskGradients(self.mask))
            return
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in selected)

    def _get_train_sampler(self, train_dataset=None) -> EpochSampler:
        return EpochSampler(len(self.train_dataset), self.settings.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The objective's value; see :class:`src.unlearn.objectives.base.Objective`."""
        return self.objective(model, inputs, self.reference)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward of one batch; Sophia-G's Hessian is refreshed first where due."""
        step = self.state.global_step
        due = self.settings.sophia is not None and step % SOPHIA_REFRESH_STEPS == 0
        if due and step != self._refreshed_at:  # once, at the first batch of a window
            self._refreshed_at = step
            self._refresh_hessian(model, self._prepare_inputs(inputs))
        return super().training_step(model, inputs, num_items_in_batch)

    def _refresh_hessian(self, model: PreTrainedModel, batch: dict[str, View]) -> None:
        """Update Sophia-G's Hessian diagonal (Gauss-Newton-Bartlett, Algorithms 2 and 3).

        The estimate is that of the token-mean cross-entropy over all views that the objective
        reads, with labels drawn from the model; no gradient is left behind. The draws have a
        generator of their own, so that they do not depend on what else is random.
        """
        model.train()
        seed = self.settings.seed + self.state.global_step
        generator = torch.Generator(model.device).manual_seed(seed)
        views = [batch[name] for name in self.objective.views]
        count = sum(int(answer_lengths(view["labels"]).sum()) for view in views)
        for view in views:
            logits = forward_logits(model, view)
            labels = sample_labels(logits.detach(), view["labels"], generator)
            losses, _ = token_losses(logits, labels)
            (losses.sum() / count).backward()
        self.optimizer.optimizer.update_hessian(count)
        model.zero_grad()

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """An optimizer that sees the selected weights only.

        As in the Trainer's own recipe, biases and norms do not decay.
        """
        model = self.model if model is None else model
        settings = self.settings
        masks = {}
        if self.mask is not None and settings.mask_enforcement == "optimizer":
            masks = {p: self.mask[name] for name, p in model.named_parameters()}
        groups = _decay_groups(model, self.get_decay_parameter_names(model), settings.weight_decay)
        if settings.sophia is not None:
            self.optimizer = SophiaG(
                groups,
                masks=masks,
                lr=settings.lr,
                betas=settings.sophia.betas,
                rho=settings.sophia.rho,
                master_weights=settings.master_weights,
            )
        else:
            self.optimizer = MaskedAdamW(
                groups, masks=masks, lr=settings.lr, master_weights=settings.master_weights
            )
        return self.optimizer


def _training_arguments(
    settings: TrainingSettings, device: torch.device, work_dir: Path
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.lr,
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        seed=settings.seed,
        use_cpu=device.type == "cpu",
        activation_checkpointing=settings.gradient_checkpointing,
        dataloader_num_workers=settings.num_workers,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
    )
    # One process drives one device; several visible GPUs would otherwise be used through
    # DataParallel, which changes the batch size.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _decay_groups(
    model: torch.nn.Module, decaying: Sequence[str], weight_decay: float
) -> list[dict]:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decaying = set(decaying)
    groups = [
        {
            "params": [p for name, p in trainable.items() if name in decaying],
            "weight_decay": weight_decay,
        },
        {
            "params": [p for name, p in trainable.items() if name not in decaying],
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]


class StopOnNonFiniteLoss(TrainerCallback):
    """Ends the run where the logged loss is no longer a number, instead of saving rubbish."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        for key in ("loss", "grad_norm"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(float(value)):
                raise WagleError(
                    f"training diverged: {key} is {value} at step {state.global_step}; lower "
                    "unlearn.lr or take another dtype"
                )


class _MaskGradients(TrainerCallback):
    """The published enforcement: after clipping, gradients are multiplied by the mask."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                mask = self.mask[name].to(parameter.grad.device).to_bool()
                parameter.grad.mul_(mask)
