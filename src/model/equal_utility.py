"""An unlearned model, mixed with the original until it is as useful as asked for.

Forgetting is compared fairly where utility is equal. On the way θ_λ = λ θ₀ + (1 − λ) θ₁ from the
unlearned model θ₁ to the original θ₀ utility comes back, and what was forgotten with it. The
smallest λ is searched whose utility reaches a share of the original's (Wang et al. 2024, arXiv
2406.09179). Weights that are equal in both stay as they are, bit for bit: what a mask left out is
left out of the mixture. Of the weights 1.0, 2.0 before and 1.0, 3.0 after λ = 0.25 makes 1.0, 2.75.

Each model that is asked is a run folder of its own, evaluated as the run was: an interrupted search
goes on, and the answers at equal utility can be compared like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from wagle.config import UnlearnConfig
from wagle.errors import WagleError
from wagle.loggers import JsonLogger, Logger
from wagle.metrics.benchmark import Headline
from wagle.model.finished import config_of
from wagle.model.loading import load_model
from wagle.model.record import find_saved_model, read_record
from wagle.model.unlearn import Unlearn
from wagle.reporting.runs import Run, read_run
from wagle.terminal import say, say_phase
from wagle.unlearn.mask.fingerprints import model_fingerprint


def smallest_share(utility: Callable[[float], float], target: float, evaluations: int) -> float:
    """The smallest λ in [0, 1] whose utility reaches a target, by bisection.

    λ = 1 is taken to reach it and is not asked. Where utility does not rise all the way, it is an λ
    at which it passes the target.

    Args:
        utility: of a model by its λ; asked at 0 and then ``evaluations`` times.

    Returns:
        0, or an λ that reaches the target, no more than 2^-evaluations above one that does not.
    """
    if utility(0.0) >= target:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(evaluations):
        middle = (low + high) / 2
        low, high = (low, middle) if utility(middle) >= target else (middle, high)
    return high


def mix(model: PreTrainedModel, original: Mapping[str, torch.Tensor], share: float) -> None:
    """Move the weights of a model towards others, in place; equal weights keep their bits.

    Args:
        original: by name, of the shapes and dtype of the model's own.
        share: λ, 0 leaves the model as it is and 1 makes it the other one.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            before = original[name]
            mixed = share * before.float() + (1 - share) * parameter.float()
            parameter.copy_(torch.where(before == parameter, parameter, mixed.to(parameter.dtype)))


class Mixed(Unlearn):
    """The evaluation of a run's model, mixed with the original.

    Args:
        config: of the run, whose ``unlearn.resume_path`` is its model.
        share: λ, the original's part.
    """

    def __init__(self, config: UnlearnConfig, logger: Logger, share: float) -> None:
        super().__init__(config, logger)
        self.share = share

    def load(self) -> None:
        """Load both models, and keep the mixture.

        Raises:
            WagleError: the original is another one than the run began with.
        """
        super().load()
        original, _ = load_model(
            self.config.overall.model_name,
            dtype=self.dtype,
            device=self.device,
            cache_dir=self.cache_dir,
        )
        name, saved = self.config.overall.model_name, Path(self.model_name)
        _check_original(name, model_fingerprint(original), saved)
        mix(self.model, dict(original.named_parameters()), self.share)
        self.fingerprints["model"] = model_fingerprint(self.model)


def _check_original(name: str | Path, fingerprint: str, saved: Path) -> None:
    """Make sure that a saved model was made from a model.

    Raises:
        WagleError: it was made from another, or does not say.
    """
    record = read_record(saved)
    if record is None or record.training["fingerprints"]["model"] != fingerprint:
        raise WagleError(
            f"{name} is not the model that the one in {saved} was made from, or that does not say "
            "what it was made from: the two cannot be mixed"
        )


@dataclass(frozen=True)
class Point:
    """A mixture, evaluated.

    Attributes:
        share: λ.
        folder: its run folder.
    """

    share: float
    utility: float
    forgetting: float
    folder: Path


@dataclass(frozen=True)
class Search:
    """What a search has found.

    Attributes:
        chosen: the mixture with the smallest λ that reaches the target.
        points: all that were asked, by λ.
    """

    target: float
    chosen: Point
    points: tuple[Point, ...]

    def describe(self) -> str:
        """What was found, in words."""
        share, utility, forgetting, _ = astuple(self.chosen)
        return (
            f"with a part of {share:.4g} of the original its utility is {utility:.4f}, of "
            f"{self.target:.4f} asked for, and its forgetting {forgetting:.4f}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        point, *others = (
            {**asdict(point), "folder": str(point.folder)} for point in (self.chosen, *self.points)
        )
        return {"target": self.target, "chosen": point, "points": others}


def search_equal_utility(
    run: Run,
    headline: Headline,
    output: Path,
    *,
    share: float = 0.95,
    evaluations: int = 6,
    original: Run | None = None,
) -> Search:
    """Find the mixture of a run's model with the original that keeps a share of its utility.

    Args:
        run: finished, with its model.
        headline: the numbers that utility and forgetting are; of utility more is better.
        output: for the run folders of mixtures, one for each λ.
        share: of the original's utility.
        evaluations: of mixtures, at most, beside the original.
        original: its evaluation, where there is one; else it is evaluated.

    Raises:
        WagleError: the run kept no model, or began with another one than is there now; less is
            better of the utility.
    """
    if headline.utility.better < 1:
        raise WagleError(f"of {headline.utility.key} less is better: it is no utility to be kept")
    config = config_of(run.folder)
    model = str(find_saved_model(Path(config.unlearn.resume_path or run.folder)))
    config = config.replace({"unlearn.resume_path": model})
    points = {0.0: _point(0.0, run, headline)}

    def ask(part: float) -> Point:
        if part not in points:
            say_phase(f"the original's part {part:g}")
            folder = output / f"{part:g}"
            Mixed(config, JsonLogger(folder), part).run()
            points[part] = _point(part, read_run(folder), headline)
            say(f"{headline.utility.key} {points[part].utility:.4f}")
        return points[part]

    if original:
        fingerprint = original.manifest.get("fingerprints", {}).get("model", "")
        _check_original(original.folder, fingerprint, Path(model))
    whole = _point(1.0, original, headline) if original else ask(1.0)
    target = share * whole.utility
    chosen = smallest_share(lambda part: ask(part).utility, target, evaluations)
    return Search(target, ask(chosen), tuple(points[part] for part in sorted(points)))


def _point(share: float, run: Run, headline: Headline) -> Point:
    forgetting, utility = (float(run.results[metric.key]) for metric in headline)
    return Point(share, utility, forgetting, run.folder)
