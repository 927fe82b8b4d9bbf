"""Masks of a score type at one or several ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from wagle.catalogue import SCORES
from wagle.dataset.pairing import FORGET, REFUSAL, RETAIN, UnlearnDataset
from wagle.optim.bitmask import Mask
from wagle.unlearn.mask.gradients import GradientSettings, cached_gradient_sums
from wagle.unlearn.mask.scores import ScoreInputs, ScoreStream, score_stream
from wagle.unlearn.mask.selection import select_top
from wagle.unlearn.mask.structure import (
    WANDA_EXAMPLES,
    cached_input_norms,
    feed_forward_mask,
    wanda_masks,
)


@dataclass(frozen=True)
class MaskSettings:
    """What a mask is made of.

    Attributes:
        score_type: a name in :data:`wagle.catalogue.SCORES`.
        mu: Hessian diagonal μ.
        accumulation_steps: A, the published divisor of gradient sums.
        seed: for random scores.
        gradients: how gradient sums are made.
        scope: rank globally, per layer or per tensor.
        exclude: kinds of parameters that are never selected.
    """

    score_type: str
    mu: float
    accumulation_steps: int
    seed: int
    gradients: GradientSettings
    scope: str = "global"
    exclude: tuple[str, ...] = ()


def make_masks(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    ratios: Sequence[float],
    settings: MaskSettings,
    cache_prefix: Path,
) -> dict[float, Mask]:
    """Make the masks of several ratios from one set of scores.

    Args:
        model: before unlearning.
        dataset: forget examples, each with the retain partner it has in the first epoch.
        ratios: shares of the weights to select, each in (0, 1].
        cache_prefix: sums of gradients (for Wanda, norms of activations) are kept in files whose
            names start with this path.

    Returns:
        A mask for each ratio.
    """
    score = SCORES[settings.score_type]
    if not score.ranks:
        return score.load()(model, dataset, ratios, settings, cache_prefix)
    return select_top(
        mask_scores(model, dataset, settings, cache_prefix),
        {name: p.shape for name, p in model.named_parameters()},
        ratios,
        scope=settings.scope,
        exclude=settings.exclude,
    )


def make_feed_forward_masks(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    ratios: Sequence[float],
    settings: MaskSettings,
    cache_prefix: Path,
) -> dict[float, Mask]:
    """All weights of the feed-forward modules, whatever the ratio."""
    return dict.fromkeys(ratios, feed_forward_mask(model))


def make_wanda_masks(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    ratios: Sequence[float],
    settings: MaskSettings,
    cache_prefix: Path,
) -> dict[float, Mask]:
    """Wanda's masks, from the activations on the first forget examples."""
    keys = [(0, index) for index in range(min(len(dataset), WANDA_EXAMPLES))]
    norms = cached_input_norms(
        model,
        [dataset.example(FORGET, key) for key in keys],
        cache_prefix,
        rows=settings.gradients.forward_rows,
        pad_token_id=settings.gradients.pad_token_id,
        lock_timeout=settings.gradients.lock_timeout,
    )
    return wanda_masks(model, norms, ratios)


def mask_scores(
    model: PreTrainedModel, dataset: UnlearnDataset, settings: MaskSettings, cache_prefix: Path
) -> ScoreStream:
    """The scores that :func:`make_masks` ranks; the arguments are the same.

    Args:
        settings: of a score type that ranks weights by a score each.
    """
    keys = [(0, index) for index in range(len(dataset))]
    views = {"forget": FORGET, "retain": RETAIN, "refusal": REFUSAL}
    examples_by_kind = {
        kind: [dataset.example(views[kind], key) for key in keys]
        for kind in SCORES[settings.score_type].gradients
    }
    sums = cached_gradient_sums(model, examples_by_kind, settings.gradients, cache_prefix)
    inputs = ScoreInputs(
        mu=settings.mu,
        batches=-(-len(dataset) // settings.gradients.batch_size),
        accumulation_steps=settings.accumulation_steps,
        seed=settings.seed,
    )
    return score_stream(model, settings.score_type, sums, inputs)
