"""Masks that several processes make together: the sums and the bits of one process."""

from __future__ import annotations

import copy
import errno
import os

import pytest
import torch

from tests.gradient_sums import random_examples
from tests.several import together
from tests.tiny import VOCABULARY, make_model
from tests.unlearning import make_dataset, make_objective
from wagle import ranks, shards
from wagle.config.keys import UnlearnSection
from wagle.entries import Score
from wagle.errors import WagleError
from wagle.model import head
from wagle.optim.bitmask import BitMask
from wagle.pace import Pace
from wagle.unlearn.mask import gradients, make, scores
from wagle.unlearn.mask.gradients import cached_gradient_sums
from wagle.unlearn.mask.make import make_masks, mask_scores
from wagle.unlearn.mask.statistics import score_histogram
from wagle.unlearn.mask.sums import GradientSums
from wagle.unlearn.mask.tensor_file import TensorFile

RATIOS = [0.05, 0.6]
SUMS = {  # the model's dtype, rows that are run together, where the sums live, their dtype
    "plain": (torch.float32, 1, "none", "float32"),
    "wide": (torch.float64, 2, "cpu", "float64"),
    "narrow": (torch.bfloat16, 2, "disk", "float32"),
}
MASKS = {  # the score, the scope
    "wagle": "global",
    "gradient": "layer",
    "random": "tensor",
    "magnitude": "global",
    "wagle_fisher": "global",
    "neuron": "layer",
    "activation_ratio": "global",
    "wanda": "global",
    "ffn": "global",
    "own.py:A": "layer",
}
UNEVEN = ["wagle", "gradient", "random", "neuron"]  # three share the rows of tensors so


def _own_score(weight, gradients, inputs, where):
    return (weight + gradients["forget"]).square_().mul_(gradients["retain_squares"])


def _own_rule(model, dataset, ratios, section, cache_prefix, **further):
    """Every process finds something else."""
    one = ranks.rank() == 1
    mask = {name: BitMask.full(p.shape, one ^ p.dim() > 1) for name, p in model.named_parameters()}
    return dict.fromkeys(ratios, mask)


OWN = (
    Score("own.py:A", _own_score, code="1", gradients=("forget",), squares=("retain",)),
    Score("own.py:B", _own_rule, code="1", ranks=False),
)


def _model(kind, sharded, dtype=torch.float32):
    model = make_model(kind).to(dtype)
    if sharded:
        shards.shard(model)
    return model


def _make(kind, sharded, chosen, folder):
    """The sums, which stay in the folder, and everything that is made of them."""
    batches = {"batch_size": 2, "pad_token_id": 2}
    for name, (dtype, rows, offload, sums_dtype) in SUMS.items():
        section = UnlearnSection(
            attribution_batch_size=rows, attribution_offload=offload, attribution_dtype=sums_dtype
        )
        model, examples = _model(kind, sharded, dtype), {"forget": random_examples(5, seed=1)}
        cached_gradient_sums(model, examples, section, folder / name, **batches)

    model = make_model(kind)
    dataset = make_dataset(make_objective("GA+FT"), model)
    rough = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rough.parameters():  # many equals, and all of some tensors
            parameter.copy_(parameter.mul(4).round())
    if sharded:
        shards.shard(model)
        shards.shard(rough)

    def arguments(model, score, scope="global"):
        section = UnlearnSection(score_type=score, mask_scope=scope, attribution_batch_size=3)
        return (model, dataset, section, folder / "m"), {**batches, "seed": 0}

    def masks_of(*which):
        (model, dataset, *others), named = arguments(*which)
        return make_masks(model, dataset, RATIOS, *others, **named)

    def histogram_of(*which):
        others, named = arguments(*which)
        return score_histogram(mask_scores(*others, **named))

    masks = {name: masks_of(model, name, MASKS[name]) for name in chosen}
    if not sharded:
        masks["own rule"] = masks_of(model, "own.py:B")
    for scope in ("global", "tensor"):
        masks[f"equals, {scope}"] = masks_of(rough, "magnitude", scope)
    histogram = histogram_of(model, "wagle")
    with torch.no_grad():
        for parameter in rough.parameters():
            shards.local(parameter).fill_(float("inf"))
    failures = []
    for work in (masks_of, histogram_of):
        with pytest.raises(WagleError) as failure:
            work(rough, "magnitude")
        failures.append(str(failure.value))
    return masks, histogram, failures


def _make_in_small_pieces(kind, sharded, chosen, folder):
    """With chunks of tokens and of weights so small that there are some in a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "CHUNK_BYTES", 4 * VOCABULARY * 3)
        patch.setattr(scores, "CHUNK", 2048)
        patch.setattr(scores, "RANDOM_BLOCK", 512)
        for own in OWN:
            patch.setitem(make.SCORES, own.name, own)
        return _make(kind, sharded, chosen, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size", "sharded", "chosen"),
    [
        pytest.param("llama", 3, True, UNEVEN, id="fsdp-3"),
        pytest.param("gpt2", 2, True, list(MASKS), id="fsdp-2"),
        pytest.param("llama", 2, False, list(MASKS), id="ddp-2"),
    ],
)
def test_the_sums_and_masks_are_those_of_one_process(
    tmp_path, kind, size, sharded, chosen, threads
):
    threads(1)  # as each of the processes has
    alone, several = tmp_path / "alone", tmp_path / "several"
    expected = _make_in_small_pieces(kind, False, chosen, alone)
    outcomes = together(size, _make_in_small_pieces, kind, sharded, chosen, several)
    for masks, histogram, failures in outcomes:
        assert failures == expected[2]
        assert masks.keys() == expected[0].keys() - ({"own rule"} if sharded else set())
        for name in masks:
            for ratio, mask in expected[0][name].items():
                assert masks[name][ratio] == mask, (name, ratio)
        assert (histogram.counts == expected[1].counts).all()
        assert histogram.zeros == expected[1].zeros
    files = sorted(path.name for path in alone.iterdir())
    assert files == sorted(path.name for path in several.iterdir())
    sums = [name for name in files if name.endswith(".safetensors")]
    assert len(sums) == (5 if chosen is UNEVEN else 9)
    for name in files:
        assert (alone / name).read_bytes() == (several / name).read_bytes(), name


def _sum(folder):
    section = UnlearnSection(attribution_batch_size=1)
    kinds = {"forget": random_examples(5, seed=1)}
    cached_gradient_sums(make_model(), kinds, section, folder / "m", batch_size=2, pad_token_id=2)


def _fail(folder):
    """In the second round, with the sums of the first one kept; and for want of space."""
    token_losses, rounds = gradients.token_losses, []

    def breaking(*arguments):
        rounds.append(arguments)
        if len(rounds) == 2:
            raise WagleError("broken off")
        return token_losses(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "token_losses", breaking)
        patch.setattr(Pace, "due", lambda self: True)
        with pytest.raises(WagleError, match="broken off"):
            _sum(folder)

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        if ranks.is_first():  # which alone makes the file
            patch.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(WagleError, match="No space left") as failure:
            _sum(folder / "full")
    return str(failure.value)


def test_one_process_goes_on_from_the_sums_of_two(tmp_path, capsys, threads):
    threads(1)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    first, second = together(2, _fail, broken)
    assert first == second
    capsys.readouterr()
    for folder in (straight, broken):
        _sum(folder)
    assert "going on after 2 of 5 rows" in capsys.readouterr().out
    name = "m.forget_gradients.safetensors"
    assert (straight / name).read_bytes() == (broken / name).read_bytes()


def test_what_several_processes_cannot_do_is_refused(tmp_path, model, monkeypatch):
    file = TensorFile.create(tmp_path / "g", {}, torch.float32, {})
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "size", lambda: 2)
        patch.setenv("LOCAL_WORLD_SIZE", "1")
        with pytest.raises(WagleError, match="use cpu or none"):
            GradientSums(model, torch.float32, "disk", file)
    rule = Score("rule.py:mine", make_masks, code="1", ranks=False)
    monkeypatch.setitem(make.SCORES, "rule.py:mine", rule)
    monkeypatch.setattr(shards, "is_sharded", lambda model: True)
    section = UnlearnSection(score_type="rule.py:mine")
    with pytest.raises(WagleError, match="score_type mine makes masks of the whole model"):
        make_masks(model, None, [0.5], section, tmp_path, batch_size=1, pad_token_id=2, seed=0)
