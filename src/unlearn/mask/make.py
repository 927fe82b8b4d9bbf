"""Masks of a score type at one or several ratios."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from wagle import ranks, shards
from wagle.catalogue import SCORES
from wagle.config.keys import UnlearnSection
from wagle.dataset.encoding import Encoded
from wagle.dataset.pairing import FORGET, REFUSAL, RETAIN, UnlearnDataset
from wagle.entries import SQUARES, Score
from wagle.errors import WagleError
from wagle.optim.bitmask import Mask
from wagle.unlearn.mask.gradients import OnResume, cached_gradient_sums
from wagle.unlearn.mask.grouped_scores import cached_activations, grouped_stream
from wagle.unlearn.mask.parts import part
from wagle.unlearn.mask.scores import ScoreInputs, ScoreStream, score_stream
from wagle.unlearn.mask.selection import select_top
from wagle.unlearn.mask.structure import (
    WANDA_EXAMPLES,
    cached_input_norms,
    feed_forward_mask,
    wanda_masks,
)
from wagle.unlearn.mask.tensor_file import TensorFile


def make_masks(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    ratios: Sequence[float],
    section: UnlearnSection,
    cache_prefix: Path,
    *,
    batch_size: int,
    pad_token_id: int,
    seed: int,
    on_resume: OnResume = lambda entry: None,
) -> dict[float, Mask]:
    """Make the masks of several ratios from one set of scores.

    Several processes make the same masks as one: each works on its part of the model.

    Args:
        model: before unlearning.
        dataset: forget examples, each with the retain partner it has in the first epoch.
        ratios: shares of the weights to select, each in (0, 1].
        section: which score, with its numbers, and what weights are ranked within.
        cache_prefix: sums of gradients (for Wanda, norms of activations) are kept in files whose
            names start with this path.
        batch_size: rows of a published batch (:func:`wagle.unlearn.mask.gradients.sum_gradients`).
        seed: for random scores.
        on_resume: as of :func:`wagle.unlearn.mask.gradients.cached_gradient_sums`.

    Returns:
        A mask for each ratio, whole in every process.

    Raises:
        WagleError: scores are no finite numbers, or the cache cannot be written; a ratio takes
            none of a grouped score's groups; or masks of somebody's own rule are asked for while
            each process holds a part of the model.
    """
    score = SCORES[section.score_type]
    further: dict[str, Any] = {
        **{"batch_size": batch_size, "pad_token_id": pad_token_id, "seed": seed},
        "on_resume": on_resume,
    }
    if not score.ranks:
        if score.code and shards.is_sharded(model):
            raise WagleError(
                f"unlearn.score_type {score.label} makes masks of the whole model, of which each "
                "process holds a part; set parallel to ddp, or make the mask in one process first "
                "(wagle mask)"
            )
        made: dict[float, Mask] = score.load()(
            model, dataset, ratios, section, cache_prefix, **further
        )
        for mask in made.values() if score.code else ():  # nobody knows that they are all alike
            for bits in mask.values():
                ranks.spread(bits.bits)
        return made
    masks = select_top(
        mask_scores(model, dataset, section, cache_prefix, **further),
        {name: p.shape for name, p in model.named_parameters()},
        ratios,
        scope=section.mask_scope,
        exclude=section.mask_exclude,
        parts={name: part(p) for name, p in model.named_parameters()},
        whole=score.grouped,
    )
    for ratio, mask in masks.items() if score.grouped else ():
        if not any(bits.count() for bits in mask.values()):
            raise WagleError(
                f"unlearn.score_type {score.label} selects rows, neurons or tensors as wholes, and "
                f"the first of them has more than {ratio:g} of the weights; give a larger ratio"
            )
    return masks


def make_feed_forward_masks(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    ratios: Sequence[float],
    section: UnlearnSection,
    cache_prefix: Path,
    *,
    batch_size: int,
    pad_token_id: int,
    seed: int,
    on_resume: OnResume = lambda entry: None,
) -> dict[float, Mask]:
    """All weights of the feed-forward modules, whatever the ratio."""
    return dict.fromkeys(ratios, feed_forward_mask(model))


def make_wanda_masks(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    ratios: Sequence[float],
    section: UnlearnSection,
    cache_prefix: Path,
    *,
    batch_size: int,
    pad_token_id: int,
    seed: int,
    on_resume: OnResume = lambda entry: None,
) -> dict[float, Mask]:
    """Wanda's masks, from the activations on the first forget examples."""
    keys = [(0, index) for index in range(min(len(dataset), WANDA_EXAMPLES))]
    norms = cached_input_norms(
        model,
        [dataset.example(FORGET, key) for key in keys],
        cache_prefix,
        rows=section.attribution_batch_size,
        pad_token_id=pad_token_id,
        lock_timeout=section.lock_timeout,
    )
    return wanda_masks(model, norms, ratios)


def mask_scores(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    section: UnlearnSection,
    cache_prefix: Path,
    *,
    batch_size: int,
    pad_token_id: int,
    seed: int,
    on_resume: OnResume = lambda entry: None,
) -> ScoreStream:
    """The scores that :func:`make_masks` ranks, where it ranks; the arguments are the same."""
    score = SCORES[section.score_type]
    files = score_files(
        *(model, dataset, [score], section, cache_prefix),
        batch_size=batch_size,
        pad_token_id=pad_token_id,
        on_resume=on_resume,
    )
    return scores_of(model, dataset, section, files, batch_size=batch_size, seed=seed)


def score_files(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    scores: Sequence[Score],
    section: UnlearnSection,
    cache_prefix: Path,
    *,
    batch_size: int,
    pad_token_id: int,
    on_resume: OnResume = lambda entry: None,
) -> dict[str, TensorFile]:
    """Everything that some scores read, by kind; the arguments are those of :func:`make_masks`."""
    keys = [(0, index) for index in range(len(dataset))]
    views = {"forget": FORGET, "retain": RETAIN, "refusal": REFUSAL}

    def examples(kinds: Iterable[str]) -> dict[str, list[Encoded]]:
        return {
            kind: [dataset.example(views[kind.removesuffix(SQUARES)], key) for key in keys]
            for kind in kinds
        }

    sums = dict.fromkeys(kind for score in scores for kind in score.sums)
    activations = dict.fromkeys(kind for score in scores for kind in score.activations)
    files = cached_gradient_sums(
        *(model, examples(sums), section, cache_prefix),
        batch_size=batch_size,
        pad_token_id=pad_token_id,
        on_resume=on_resume,
    )
    if activations:
        files |= cached_activations(
            *(model, examples(activations), cache_prefix),
            rows=section.attribution_batch_size,
            pad_token_id=pad_token_id,
            lock_timeout=section.lock_timeout,
        )
    return files


def scores_of(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    section: UnlearnSection,
    files: Mapping[str, TensorFile],
    *,
    batch_size: int,
    seed: int,
) -> ScoreStream:
    """The scores of the section's type, from what :func:`score_files` gave."""
    score = SCORES[section.score_type]
    if score.grouped:
        return grouped_stream(model, score.load(), files)
    inputs = ScoreInputs(
        mu=section.mu,
        batches=-(-len(dataset) // batch_size),
        examples=len(dataset),
        accumulation_steps=section.gradient_accumulation_steps,
        seed=seed,
    )
    return score_stream(model, section.score_type, files, inputs)
