"""Known sets of weights, and judgements of scores about which everything is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, recall_score
from unlearning import make_mask

from tests.tiny import make_model
from wagle.errors import WagleError
from wagle.optim.bitmask import BitMask
from wagle.unlearn.mask.planted import PLACES, as_scores, judge
from wagle.unlearn.mask.statistics import combined, complement, density, random_alike


def judged(scores, planted):
    """Of tensors by name."""
    stream = [(n, 0, lambda t=t: torch.as_tensor(t).float().view(-1)) for n, t in scores.items()]
    mask = {name: BitMask.from_bool(torch.as_tensor(bits).bool()) for name, bits in planted.items()}
    return judge(lambda: iter(stream), mask)


def test_numbers_by_hand():
    """Ten weights in two tensors, of which three are planted.

    By score: 9 is planted, 8 is not, 7 is, 6, 5 and 4 are not, 3 is.
    """
    scores = {"a": [9.0, 8, 2, 1, 0.5], "b": [7.0, 6, 5, 4, 3]}
    found = judged(scores, {"a": [1, 0, 0, 0, 0], "b": [1, 0, 0, 0, 1]})
    assert found.precision == pytest.approx(2 / 3)
    assert found.lift == pytest.approx(2 / 3 * 10 / 3)
    assert found.auprc == pytest.approx((1 / 1 + 2 / 3 + 3 / 7) / 3)
    # In a the one largest is right: 1 / (1/5). In b one of the two largest is: (1/2) / (2/5).
    assert found.lift_within == pytest.approx((5 + 1.25) / 2)
    assert found.curve[-1] == pytest.approx((1, 0.3, 1))


def test_equal_scores_count_in_proportion():
    found = judged({"a": [5.0, 2, 2, 2, 2, 0]}, {"a": [1, 1, 0, 0, 0, 0]})
    assert found.precision == pytest.approx((1 + 1 / 4) / 2)
    assert found.auprc == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 5)
    everything = judged({"a": [1.0] * 6}, {"a": [1, 1, 0, 0, 0, 0]})
    assert everything.lift == pytest.approx(1)
    assert everything.auprc == pytest.approx(1 / 3)


@pytest.mark.parametrize("levels", [3, 40, 10**6])  # of scores: from many ties to none
def test_against_scikit_learn(levels):
    generator = np.random.default_rng(levels)
    sizes = {"a": 700, "b": 300, "c": 40}
    truth = {name: generator.random(size) < 0.2 for name, size in sizes.items()}
    scores = {
        name: (generator.integers(levels, size=size) + levels * truth[name] / 3) // 1
        for name, size in sizes.items()
    }
    found = judged(scores, truth)
    flat, right = (np.concatenate(list(of.values())) for of in (scores, truth))
    assert found.auprc == pytest.approx(average_precision_score(right, flat))
    # At the k-th largest score: all that are larger, and of its equals as many as are missing.
    count = right.sum()
    least = np.sort(flat)[-count]
    above, equal = flat > least, flat == least
    expected = right[above].sum() + (count - above.sum()) * right[equal].mean()
    assert found.precision == pytest.approx(expected / count)
    assert found.lift == pytest.approx(found.precision / right.mean())
    assert (levels == 10**6) == (equal.sum() == 1)
    if levels == 10**6:
        assert found.precision == pytest.approx(recall_score(right, flat >= least))
        precision, recall, thresholds = precision_recall_curve(right, flat)
        for ratio, *numbers in found.curve:
            place = np.searchsorted(thresholds, np.sort(flat)[-int(ratio * len(flat))])
            assert numbers == pytest.approx([precision[place], recall[place]])


def test_within_tensors_it_does_not_matter_which_tensor_has_large_scores():
    generator = np.random.default_rng(0)
    planted = {name: generator.random(200) < share for name, share in (("a", 0.3), ("b", 0.02))}
    scores = {name: generator.random(200) + 0.2 * bits for name, bits in planted.items()}
    found = judged(scores, planted)
    louder = judged({"a": scores["a"], "b": 1024 * scores["b"]}, planted)
    assert louder.lift_within == found.lift_within > 1
    assert louder.lift < found.lift
    # Who knows the tensors alone is no better than chance in them, and tensors that are planted
    # whole or not at all, in which there is nothing to be found, do not count.
    known = {name: np.full(200, bits.mean()) for name, bits in planted.items()}
    assert judged(known, planted).lift_within == pytest.approx(1)
    assert judged(known, planted).lift > 1.5
    more = {"c": np.full(50, 1.0), "d": np.full(50, 0.5)}
    whole = {"c": np.full(50, True), "d": np.full(50, False)}
    assert judged(scores | more, planted | whole).lift_within == found.lift_within
    assert judged(more, whole).lift_within is None


def test_gradients_that_are_known_find_what_they_reach():
    """|g| of Σ over planted weights of c·w is |c| there and 0 elsewhere, whatever w is."""
    weights = torch.randn(40, generator=torch.Generator().manual_seed(0), requires_grad=True)
    planted = torch.arange(40) % 4 == 1
    (torch.linspace(0.1, 1, 40) * weights * planted).sum().backward()
    found = judged({"a": weights.grad.abs().tolist()}, {"a": planted.tolist()})
    assert (found.precision, found.auprc, found.lift) == (1, 1, 4)


def test_lines_beside_the_scores():
    """The oracle is right, its complement wrong, random weights are as good as chance."""
    planted = make_mask(make_model())
    total, count = (
        sum(of(m) for m in planted.values()) for of in (lambda m: m.numel, BitMask.count)
    )
    oracle = judge(as_scores(planted), planted)
    assert (oracle.precision, oracle.auprc) == (1, 1)
    assert oracle.lift == pytest.approx(total / count)
    wrong = judge(as_scores(complement(planted)), planted)
    assert wrong.precision == 0
    assert wrong.lift_within == pytest.approx(0)
    rate = density(planted)
    generator = np.random.default_rng(0)
    random = {name: generator.random(bits.numel) for name, bits in planted.items()}
    error = math.sqrt(rate * (1 - rate) / count)
    stream = [(n, 0, lambda v=v: torch.from_numpy(v)) for n, v in random.items()]
    assert abs(judge(lambda: iter(stream), planted).precision - rate) < 4 * error
    # Of the same density in each tensor: it has found the tensors, and no weights in them.
    alike = judge(as_scores(random_alike(planted, 0)), planted)
    expected = sum(m.count() ** 2 / m.numel for m in planted.values()) / count
    assert abs(alike.precision - expected) < 4 * error


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(WagleError, match="scores of a are infinite or not numbers"):
        judged({"a": [1.0, wrong]}, {"a": [1, 0]})


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sets_are_what_they_are_called(kind, architecture):
    model = make_model(architecture)
    masks = PLACES[kind](model, 0.1, 3)
    assert masks == PLACES[kind](model, 0.1, 3)
    planted = combined("union", masks)
    assert {n: m.shape for n, m in planted.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert judge(as_scores(planted), planted).precision == 1
    names = {name for name, bits in planted.items() if bits.count()}
    if kind in ("random", "copies"):
        assert density(planted) == pytest.approx(0.1, abs=0.02)
        assert masks != PLACES[kind](model, 0.1, 4)
        first, second, *_ = (bits for bits in masks[0].values() if bits.numel > 100)
        assert not torch.equal(first.bits[:8], second.bits[:8])
    if kind == "copies":
        first, second = masks
        assert not any((first[name].bits & second[name].bits).any() for name in first)
        assert density(first) == pytest.approx(0.05, abs=0.02)
    if kind == "layer":
        assert len({name.split(".")[2] for name in names}) == 1
    if kind in ("layer", "feed_forward"):
        assert all(planted[name].count() == planted[name].numel for name in names)
    if kind == "neurons":
        assert density(planted) == pytest.approx(0.1, abs=0.01)
        assert all("mlp" in name for name in names)


def test_a_neuron_has_two_rows_and_a_column():
    model = make_model("llama")
    (mask,) = PLACES["neurons"](model, 0.1, 0)
    for layer in (0, 1):
        bits = {
            part: mask[f"model.layers.{layer}.mlp.{part}_proj.weight"].to_bool()
            for part in ("gate", "up", "down")
        }
        rows = bits["up"].all(1)
        assert (bits["up"] == rows[:, None]).all()
        assert torch.equal(bits["gate"], bits["up"])
        assert torch.equal(bits["down"].T, bits["up"])


def test_more_neurons_than_there_are_is_refused():
    with pytest.raises(WagleError, match=r"plant.density is 0.9, and the feed-forward neurons"):
        PLACES["neurons"](make_model("llama"), 0.9, 0)
