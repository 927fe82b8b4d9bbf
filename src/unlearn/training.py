"""Masked unlearning: an objective, a mask and pairs of examples in the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from wagle import ranks, shards
from wagle.config.keys import UnlearnSection
from wagle.errors import ConfigError, WagleError
from wagle.model.head import Head, negative_log_likelihood
from wagle.optim.bitmask import Mask
from wagle.optim.chunks import multiply_by_mask
from wagle.optim.gradients import DenseGradients, Gradients, PackedGradients
from wagle.optim.packed import PackedOptimizer, flat_gradient
from wagle.optim.sophia import SophiaG, sample_tokens
from wagle.training.checkpoint import Checkpoints
from wagle.training.loop import Batch, Entry, Hooks, TrainingData, Window, train
from wagle.training.optimizer import make_optimizer
from wagle.training.schedule import Plan
from wagle.unlearn.objectives import Objective, ReferenceModel, no_reference
from wagle.unlearn.window_loss import WeightAverage, WindowLoss

SOPHIA_REFRESH_STEPS = 10  # k of Liu et al. 2023 (arXiv 2305.14342), Algorithm 3


def unlearn(
    model: PreTrainedModel,
    rows: TrainingData,
    objective: Objective,
    mask: Mask | None,
    reference: ReferenceModel | None,
    plan: Plan,
    section: UnlearnSection,
    *,
    seed: int,
    after_step: Callable[[int, Sequence[Entry]], Entry | None] = Hooks.after_step,
    on_log: Callable[[dict[str, float]], None] = lambda entry: None,
    checkpoints: Checkpoints | None = None,
) -> list[dict[str, float]]:
    """Unlearn in place; returns the training log (:func:`wagle.training.loop.train`).

    Args:
        model: its device decides where training runs.
        rows: pairs of forget and retain examples.
        mask: the weights that may change; ``None``: all of them.
        reference: opens the model before unlearning, for objectives that run it.
        section: its ``master_weights`` are resolved; with ``mask_enforcement`` ``optimizer`` only
            selected weights are seen by the optimizer, with ``gradient`` gradients are multiplied
            by the mask before a dense step, as published (and frozen weights decay).
        after_step, on_log, checkpoints: as for :func:`wagle.training.loop.train`.

    Raises:
        WagleError: the mask selects nothing; training diverged.
        ConfigError: the architecture has no gradient checkpointing; the objective has no forget
            term that SAM or smoothing is about; averaging would begin after the last step.
    """
    masks_gradients = mask is not None and section.mask_enforcement == "gradient"
    own_parts: Mask = {}
    if mask is not None:
        _check_selects(mask)
        if masks_gradients:
            own_parts = _own_parts(model, mask)
        else:
            _freeze_unselected(model, mask)
    if section.gradient_checkpointing:
        _checkpoint_activations(model)
    parameters = dict(model.named_parameters())
    optimizer = make_optimizer(
        model,
        lr=section.lr,
        weight_decay=section.weight_decay,
        master_weights=bool(section.master_weights),
        eight_bit=section.moments == "8bit",
        masks=None if mask is None or masks_gradients else {parameters[n]: mask[n] for n in mask},
        sophia=section.sophia_params if section.sophia else None,
    )
    gradients: Gradients
    if section.gradients == "packed":
        gradients = PackedGradients(optimizer, section.max_grad_norm)
    else:
        gradients = DenseGradients(model, section.max_grad_norm)

    loss = WindowLoss(
        objective,
        reference or no_reference,
        optimizer,
        sam_rho=section.sam_rho,
        smoothing_std=section.smoothing_std,
        seed=seed,
    )
    average = WeightAverage(optimizer, section.average_from, plan.steps)
    extrapolates = objective.extrapolation != 1
    start = [weights.clone() for weights in optimizer.packed_weights()] if extrapolates else []

    def before_window(step: int, window: Window) -> None:
        average.add(step)
        loss.prepare(model, step, window)
        if isinstance(optimizer, SophiaG) and step % SOPHIA_REFRESH_STEPS == 0:
            generator = torch.Generator(model.device).manual_seed(seed + step)
            _refresh_hessian(model, optimizer, objective, window[0], generator)

    def before_update(step: int) -> None:
        objective.after_step(step // plan.windows_per_epoch)
        for name, own in own_parts.items():
            if parameters[name].grad is not None:
                multiply_by_mask(flat_gradient(parameters[name]), own)

    if checkpoints:
        checkpoints.beside = {**objective.state, **average.vectors}
    log = train(
        model,
        rows,
        loss.share,
        optimizer,
        plan,
        seed=seed,
        gradients=gradients,
        hooks=Hooks(before_window, before_update, objective.logged, after_step),
        on_log=on_log,
        checkpoints=checkpoints,
    )
    average.add(plan.steps)
    average.install()
    _extrapolate(optimizer, start, objective.extrapolation)
    return log


def _between(old: torch.Tensor, new: torch.Tensor, by: float) -> torch.Tensor:
    wide = torch.promote_types(old.dtype, torch.float32)
    return torch.lerp(old.to(wide), new.to(wide), by).to(old.dtype)


@torch.no_grad()
def _extrapolate(optimizer: PackedOptimizer, start: Sequence[torch.Tensor], by: float) -> None:
    """Multiply what has changed since ``start``; nothing where that is empty."""
    if start:
        pairs = zip(start, optimizer.packed_weights(), strict=True)
        moved = [_between(old, new, by) for old, new in pairs]
        optimizer.load_packed_weights(moved)


def _check_selects(mask: Mask) -> None:
    if not any(bits.count() for bits in mask.values()):
        raise WagleError("the mask selects no weight at all: there is nothing to train")


def _own_parts(model: PreTrainedModel, mask: Mask) -> Mask:
    """The masks of this process's parts of the parameters, on the model's device."""
    spans = {name: shards.span(parameter) for name, parameter in model.named_parameters()}
    return {
        name: mask[name].part(own.start, own.stop).to(model.device) for name, own in spans.items()
    }


def _freeze_unselected(model: PreTrainedModel, mask: Mask) -> None:
    """No gradients for tensors without any selected weight."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(mask[name].count() > 0)


def _checkpoint_activations(model: PreTrainedModel) -> None:
    try:
        model.activation_checkpointing_enable()
    except ValueError as error:
        raise ConfigError(f"unlearn.gradient_checkpointing: {error}") from error


def _refresh_hessian(
    model: PreTrainedModel,
    optimizer: SophiaG,
    objective: Objective,
    batch: Batch,
    generator: torch.Generator,
) -> None:
    """Update Sophia-G's Hessian diagonal (Gauss-Newton-Bartlett, Algorithms 2 and 3).

    The estimate is that of the token-mean cross-entropy over all views that the objective reads,
    with labels drawn from the model; no gradient is left behind. The draws have a generator of
    their own, so that they do not depend on what else is random.
    """
    views = [batch[name] for name in objective.views]
    count = sum(len(view["predicted"]) for view in views)
    for view in views:
        head = Head.of(model)
        states = head.predictions(view).states
        with torch.no_grad():
            drawn = head.measure(partial(sample_tokens, generator=generator), states)
        losses = head.measure(negative_log_likelihood, states, drawn)
        # All processes read this batch, and their gradients are added up.
        (losses.sum() / count / ranks.size()).backward()
    shards.add_up(optimizer.gradients())
    optimizer.update_hessian(count)
    optimizer.zero_grad()
