"""Rows, neurons and tensors that are selected as wholes, against dense references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.gradient_sums import sums_by_hand
from tests.tiny import make_model
from tests.unlearn.mask.test_make_masks import BATCH, ROWS, inputs_of, make_dataset, masks_of
from wagle.dataset.pairing import FORGET, RETAIN
from wagle.errors import WagleError
from wagle.model.architecture import block_linears, is_transposed
from wagle.unlearn.mask.selection import select_top

RATIOS = [0.1, 0.45]


def examples_of(dataset, view):
    return [dataset.example(view, (0, index)) for index in range(ROWS)]


def gradients_of(model, dataset, view):
    return sums_by_hand(model, examples_of(dataset, view), BATCH)


def oriented(model):
    """Names of weights that are stored the other way round, and of down projections."""
    linears = block_linears(model)
    turned = {name for name, module in linears.items() if is_transposed(module)}
    ends = ("down_proj.weight", "mlp.c_proj.weight", "dense_4h_to_h.weight", "fc2.weight")
    return turned, {name for name in linears if name.endswith(ends)}


def neurons(model, gradients):
    """Each weight's score, and which group it belongs to, by hand."""
    turned, downs = oriented(model)
    scores, groups, number = {}, {}, 0
    for name, gradient in gradients.items():
        rows = gradient.reshape(len(gradient), -1) if gradient.dim() < 2 else gradient
        if (name in turned) != (name in downs):
            rows = rows.T
        score = torch.tensor([float((row**2).sum() ** 0.5) for row in rows])
        group = torch.arange(number, number + len(rows))
        number += len(rows)
        wide = [t[:, None].expand(rows.shape) for t in (score, group)]
        if (name in turned) != (name in downs):
            wide = [t.T for t in wide]
        scores[name], groups[name] = (t.reshape(gradient.shape) for t in wide)
    return scores, groups


def check_whole_groups(masks, scores, groups):
    """Every group is in or out, the best are in, and the next one would not have fit."""
    score, group = (
        np.concatenate([t.numpy().reshape(-1) for t in part.values()]) for part in (scores, groups)
    )
    sizes = np.bincount(group)
    best = np.zeros(len(sizes))
    best[group] = score
    order = np.argsort(-best, kind="stable")
    for ratio, mask in masks.items():
        chosen = np.concatenate([m.to_bool().numpy().reshape(-1) for m in mask.values()])
        taken = np.bincount(group, weights=chosen)
        assert set(np.unique(taken / sizes)) == {0, 1}
        fit = int((sizes[order].cumsum() <= int(len(score) * ratio)).sum())
        # groups whose score is nothing but rounding errors (keys' biases) may be in any order
        least, slack = best[order[fit]], 1e-9 * best.max()
        assert set(np.flatnonzero(best > least + slack)) <= set(np.flatnonzero(taken))
        assert (best[taken > 0] >= least - slack).all()


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "gpt2", "gpt_neox", "opt"])
def test_neurons_are_rows_and_columns_of_what_reads_them(tmp_path, architecture):
    model, dataset = make_model(architecture).double(), make_dataset()
    masks = masks_of(model, RATIOS, "neuron", tmp_path / "m")
    check_whole_groups(masks, *neurons(model, gradients_of(model, dataset, FORGET)))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "opt"])
def test_activation_ratios_are_shared_by_all_weights_of_a_neuron(tmp_path, architecture):
    model, dataset = make_model(architecture), make_dataset()
    turned, downs = oriented(model)
    masks = masks_of(model, [0.02, 0.99], "activation_ratio", tmp_path / "m")
    means = []
    for view in (FORGET, RETAIN):
        inputs = inputs_of(model, dataset, view)
        means.append({name: inputs[block_linears(model)[name]].abs().mean(0) for name in downs})
    ratios = {name: means[0][name] / (means[1][name] + 1e-5) for name in downs}
    everything = torch.cat(list(ratios.values()))
    for ratio, mask in masks.items():
        taken = torch.cat([neuron_bits(mask, name, turned) for name in ratios])
        assert everything[taken].min() >= everything[~taken].max() if ratio < 0.5 else taken.all()
        for name in ratios:
            parent = name.rpartition(".")[0].rpartition(".")[0]
            ups = [n for n in mask if n.startswith(f"{parent}.") and is_up(n)]
            assert ups
            for up in ups:
                bits = mask[up].to_bool()
                bits = bits.T if up in turned else bits
                neuron = neuron_bits(mask, name, turned)
                assert (bits.reshape(len(neuron), -1) == neuron[:, None]).all()
        feed_forward = {n for n in mask if n in downs or is_up(n)}
        assert not any(bits.count() for n, bits in mask.items() if n not in feed_forward)


def is_up(name):
    return any(part in name for part in ("up_proj", "gate_proj", "c_fc", "dense_h_to_4h", "fc1"))


def neuron_bits(mask, name, turned):
    """Which neurons a down projection's mask selects; each is in or out."""
    bits = mask[name].to_bool()
    bits = bits if name in turned else bits.T
    assert (bits.all(1) | ~bits.any(1)).all()
    return bits.all(1)


def test_memflex_takes_tensors_that_are_not_shared(tmp_path, model):
    dataset = make_dataset()
    forget, retain = (gradients_of(model, dataset, view) for view in (FORGET, RETAIN))
    cosines = {
        n: torch.cosine_similarity(g.flatten(), retain[n].flatten(), 0) for n, g in forget.items()
    }
    limit = float(np.mean(sorted(cosines.values())[8:10]))  # between two of them
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wagle.unlearn.mask.grouped_scores.MEMFLEX_ALIKE", limit)
        (mask,) = masks_of(model, [0.5], "memflex", tmp_path / "m").values()
    order = sorted(forget, key=lambda name: -float(forget[name].abs().mean()))
    own, room = (
        [name for name in order if cosines[name] < limit],
        sum(g.numel() for g in forget.values()) // 2,
    )
    expected = set()
    for name in own:
        if (room := room - forget[name].numel()) < 0:
            break
        expected.add(name)
    assert expected
    assert {name for name, bits in mask.items() if bits.count()} == expected
    assert all(bits.count() in (0, bits.numel) for bits in mask.values())


def test_what_takes_no_group_is_refused(tmp_path, model):
    with pytest.raises(WagleError, match=r"score_type memflex selects rows.*more than 1e-05"):
        masks_of(model, [1e-5], "memflex", tmp_path / "m")


def test_equal_scores_that_do_not_fit_are_left_out():
    """The example in the module's first lines."""
    rows = torch.tensor([3.0, 2, 2, 2, 1]).repeat_interleave(8)

    def taken(ratio):
        stream = lambda: iter([("w", 0, lambda: rows)])  # noqa: E731
        (mask,) = select_top(stream, {"w": torch.Size((5, 8))}, [ratio], whole=True).values()
        return mask["w"].to_bool().any(1).int().tolist()

    assert taken(0.4) == [1, 0, 0, 0, 0]
    assert taken(0.8) == taken(0.99) == [1, 1, 1, 1, 0]
    assert taken(1) == [1] * 5
