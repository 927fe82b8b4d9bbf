"""The training loop: from batches to updated weights, for unlearning and for fine-tuning alike."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from wagle import ranks, shards
from wagle.devices import seed_everything
from wagle.errors import WagleError
from wagle.optim.gradients import DenseGradients, Gradients
from wagle.optim.packed import PackedOptimizer
from wagle.stopping import deferring
from wagle.terminal import Progress
from wagle.training.checkpoint import Checkpoints, Standing
from wagle.training.schedule import Plan

MAX_GRADIENT_NORM = 1.0

Batch = Mapping[str, Any]  # tensors, or mappings of them
Window = Sequence[Batch]


class Loss(NamedTuple):
    """A scalar with gradients and, where it is a sum, what each of its terms amounts to.

    Attributes:
        last: no other part of its batch's loss comes after it.
    """

    value: torch.Tensor
    terms: Mapping[str, torch.Tensor] = {}
    last: bool = True

    def times(self, weight: int) -> Loss:
        """The loss and its terms, weighted."""
        terms = {name: term * weight for name, term in self.terms.items()}
        return Loss(self.value * weight, terms, self.last)


Share = Callable[[PreTrainedModel, Batch, Window], Iterable[Loss]]
"""The parts of a window's loss that one of its batches has. The loss of a step is the sum over the
batches of its window. A part is asked for when that before it has gone backward."""
Entry = dict[str, float]
"""Of the log."""
MEASURED = "evaluation "
"""What keys of an entry begin with where they were measured during training."""


@dataclass(frozen=True)
class TrainingData:
    """What is trained on.

    Attributes:
        dataset: gives an item for each key.
        order: the keys of all items, in the order in which an epoch reads them.
        collate: makes a batch of items.
        num_workers: processes that load items; 0: this one.
    """

    dataset: Dataset[Any] | Sequence[Any]
    order: Callable[[int], Sequence[Any]]
    collate: Callable[[list[Any]], Batch]
    num_workers: int = 0

    def batches(
        self, epoch: int, batch_size: int, device: torch.device, first: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch from a number on, on ``device``."""
        loader = DataLoader(
            cast("Dataset[Any]", self.dataset),  # a list serves as well
            batch_size=batch_size,
            sampler=self.order(epoch)[first * batch_size :],
            collate_fn=self.collate,
            num_workers=self.num_workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=_ignore_interrupts,
        )
        # An iterator draws a seed for its workers; that of the whole epoch has done so before.
        with torch.random.fork_rng(devices=[], enabled=first > 0):
            batches = iter(loader)
        return (_to(batch, device) for batch in batches)


@dataclass(frozen=True)
class Hooks:
    """What happens in a step beside its own work.

    Attributes:
        before_window: called with the number of the step, from 0, before its forward passes; it
            leaves no gradients behind.
        before_update: called with the number of the step between clipping and the optimizer's step;
            may change gradients.
        state: numbers that are neither a loss nor a weight, by name; entries of the log have them.
        after_step: called with the number of steps done and the log so far, before the first step
            and after each, before the checkpoint; what it returns goes into the log. It leaves
            everything as it was.
    """

    before_window: Callable[[int, Window], None] = lambda step, window: None
    before_update: Callable[[int], None] = lambda step: None
    state: Callable[[], Mapping[str, float]] = dict
    after_step: Callable[[int, Sequence[Entry]], Entry | None] = lambda step, log: None


def train(
    model: PreTrainedModel,
    rows: TrainingData,
    share: Share,
    optimizer: PackedOptimizer,
    plan: Plan,
    *,
    seed: int,
    gradients: Gradients | None = None,
    hooks: Hooks = Hooks(),
    on_log: Callable[[dict[str, float]], None] = lambda entry: None,
    checkpoints: Checkpoints | None = None,
) -> list[dict[str, float]]:
    """Train in place: a step reads a window of batches, clips gradients and updates weights once.

    The model is in train mode meanwhile. Randomness (dropout) begins at ``seed``. A signal that
    asks the program to end is obeyed after the step. An accelerator is waited for once a step,
    before its update, for the numbers that say whether it may be made.

    Several processes (:mod:`wagle.ranks`) deal the batches of each window out among them: all read
    the same windows, so that each knows the whole of which it computes a share.

    Args:
        optimizer: its groups' learning rates are the full ones; :meth:`Plan.rate` scales them.
        gradients: how they are kept and clipped; ``None``: whole, to norm 1.
        hooks: what else happens in a step.
        on_log: gets each entry of the log as it is made, or restored.
        checkpoints: where training goes on from, and what it leaves to go on from.

    Returns:
        The log: every ``plan.log_every`` steps the mean loss since the last entry, that of each of
        its terms (such as ``forget_loss``), the hooks' ``state``, the latest gradient norm (before
        clipping), learning rate and epoch; at the end time and mean loss.

    Raises:
        WagleError: a loss, a gradient or at last a weight is no finite number. A step with such a
            loss or gradient does not touch the weights; where they are updated as gradients come,
            such a loss does not.
        KeyboardInterrupt: a signal has asked for it; a checkpoint is written.
    """
    seed_everything(seed)
    model.train()
    gradients = gradients or DenseGradients(model, MAX_GRADIENT_NORM)
    full_rates = [group["lr"] for group in optimizer.param_groups]
    now = checkpoints.restore(optimizer, model.device) if checkpoints else Standing()
    for entry in now.log:
        on_log(entry)

    def measure() -> None:
        if entry := hooks.after_step(now.step, now.log):
            now.log.append(entry)
            on_log(entry)

    if not now.step:
        measure()
    started = time.perf_counter() - now.seconds
    windows = islice(_windows(rows, plan, model.device, now.step), plan.steps - now.step)
    with (
        deferring("this step") as request,
        Progress("training", plan.steps, "step") as progress,
        gradients,
    ):
        progress.update(now.step)
        for step, window in enumerate(windows, now.step):
            for group, full in zip(optimizer.param_groups, full_rates, strict=True):
                group["lr"] = full * plan.rate(step)
            hooks.before_window(step, window)
            if not ranks.is_first():
                now.clear()  # the first process holds the sums so far
            _backward(model, window, share, gradients, now)
            norm, recent, *terms = _numbers(gradients.clip(), now.recent, *now.terms.values())
            _check_finite(step, loss=recent, gradient_norm=norm)
            hooks.before_update(step)
            optimizer.step()
            gradients.clear()
            since = step % plan.log_every + 1
            progress.update(loss=recent / since, rate=optimizer.param_groups[0]["lr"])
            if (step + 1) % plan.log_every == 0:
                now.total += recent
                named = dict(zip(now.terms, terms, strict=True))
                state = hooks.state()
                now.log.append(_entry(plan, step, recent, named, state, norm, optimizer))
                on_log(now.log[-1])
                now.clear()
            now.step, now.seconds = step + 1, time.perf_counter() - started
            measure()
            started += time.perf_counter() - started - now.seconds  # training's time alone counts
            asked = ranks.any_of(request.kind is not None)
            if checkpoints:
                checkpoints.after_step(now, optimizer, model.device, steps=plan.steps, asked=asked)
            if asked:
                request.end()
    _check_weights(model, plan.steps)
    now.log.append(_summary(plan, now))
    on_log(now.log[-1])
    return now.log


def _numbers(first: torch.Tensor, *others: torch.Tensor | float) -> list[float]:
    """Some scalars as numbers; an accelerator is waited for once."""
    scalars = [torch.as_tensor(scalar, device=first.device) for scalar in (first, *others)]
    return torch.stack(scalars).tolist()


def _backward(
    model: PreTrainedModel, window: Window, share: Share, gradients: Gradients, now: Standing
) -> None:
    """The gradients of a window's loss, and what it amounts to in all processes."""
    for batch, weight, last in own_batches(window):
        for part in share(model, batch, window):
            loss, terms, _ = part.times(weight)
            gradients.backward(loss, list(terms.values()), last=last and part.last)
            now.recent += loss.detach()
            for name, term in terms.items():
                now.terms[name] += term.detach()
    for of_own in (now.recent, *now.terms.values()):
        if isinstance(of_own, torch.Tensor):
            ranks.add_up(of_own)


def _entry(
    plan: Plan,
    step: int,
    loss: float,
    terms: Mapping[str, float],
    state: Mapping[str, float],
    norm: float,
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    return {
        "loss": loss / plan.log_every,
        **{f"{name}_loss": part / plan.log_every for name, part in terms.items()},
        **state,
        "grad_norm": norm,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "epoch": plan.epoch_after(step),
        "step": step + 1,
    }


def _summary(plan: Plan, now: Standing) -> dict[str, float]:
    return {
        "train_runtime": round(now.seconds, 4),
        "train_samples_per_second": round(plan.rows_read / now.seconds, 3),
        "train_steps_per_second": round(plan.steps / now.seconds, 3),
        "train_loss": (now.total + float(now.recent)) / plan.steps,
        "epoch": plan.epoch_after(plan.steps - 1),
        "step": plan.steps,
    }


def _check_finite(step: int, **values: float) -> None:
    for name, value in values.items():
        if math.isfinite(value):
            continue
        found = f"the {name.replace('_', ' ')} is {value}"
        if step <= 1:  # the first step has learning rate 0
            raise WagleError(
                f"training diverged at step {step + 1}, before any weight has moved: {found}. "
                "What the model computes is no finite number; look at its weights, at "
                "overall.dtype and at the rows"
            )
        raise WagleError(
            f"training diverged at step {step + 1}: {found}; lower the learning rate or take "
            "another overall.dtype"
        )


def _check_weights(model: torch.nn.Module, steps: int) -> None:
    name = not_finite(model)
    if name is not None:
        raise WagleError(
            f"training diverged at step {steps}: {name} is no longer finite; lower the learning "
            "rate or take another overall.dtype"
        )


def not_finite(model: torch.nn.Module) -> str | None:
    """Name of the first parameter that holds NaN or an infinity, if any does in any process."""

    def is_broken(parameter: torch.Tensor) -> bool:
        part = shards.local(parameter.detach())
        # Extremes pass NaN on, and take no memory beside the weights.
        return part.numel() > 0 and not torch.stack(torch.aminmax(part)).isfinite().all()

    own = next((name for name, p in model.named_parameters() if is_broken(p)), None)
    return next((name for name in ranks.everyone(own) if name is not None), None)


def _windows(
    rows: TrainingData, plan: Plan, device: torch.device, step: int
) -> Iterator[list[Batch]]:
    """The windows of every step from a number on, epoch after epoch without end."""
    first_epoch, done = divmod(step, plan.windows_per_epoch)
    for epoch in count(first_epoch):
        batches = rows.batches(epoch, plan.batch_size, device, done * plan.accumulation)
        while window := list(islice(batches, plan.accumulation)):
            yield window
        done = 0


def own_batches(window: Window) -> Iterator[tuple[Batch, int, bool]]:
    """The batches of a window that are this process's to read, their weights, which is the last.

    Of three batches the first of two processes reads the batches 0 and 2, the second 1 and, since
    sharded weights take all processes to be put together, 2 once more, with weight 0.
    """
    most = -(-len(window) // ranks.size())
    for number in range(most):
        place = number * ranks.size() + ranks.rank()
        batch = window[min(place, len(window) - 1)]
        yield batch, int(place < len(window)), number + 1 == most


def _ignore_interrupts(worker: int) -> None:
    """In a process that loads items: Ctrl-C reaches it too, but the step needs its items."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {name: _to(part, device) for name, part in batch.items()}
    return batch.to(device, non_blocking=True)
