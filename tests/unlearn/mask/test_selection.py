"""Selection without sorting against numpy's stable sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import CONFIGS, make_model
from wagle.errors import WagleError
from wagle.model.architecture import layer_index, parameter_kind
from wagle.unlearn.mask.selection import select_top


def stream_of(tensors, chunk=1 << 20):
    def stream():
        for name, tensor in tensors.items():
            flat = tensor.reshape(-1)
            for start in range(0, flat.numel(), chunk):
                yield name, start, flat[start : start + chunk].clone

    return stream


def shapes_of(tensors):
    return {name: tensor.shape for name, tensor in tensors.items()}


def by_sorting(tensors, k):
    """Bool vector of the k largest, the first of equals winning."""
    flat = np.concatenate([t.reshape(-1).double().numpy() for t in tensors.values()])
    chosen = np.zeros(flat.size, dtype=bool)
    chosen[np.argsort(-flat, kind="stable")[:k]] = True
    return chosen


def flat_mask(mask):
    return np.concatenate([m.to_bool().reshape(-1).numpy() for m in mask.values()])


DENORMAL = float(np.float32(1e-42))
few_values = st.sampled_from([0.0, -0.0, DENORMAL, 2 * DENORMAL, 1.0, 1.0000001, 3.0, 1e30])
any_value = st.floats(min_value=0, width=32, allow_infinity=False, allow_nan=False)
values = st.one_of(few_values, any_value)
tensors = st.lists(st.lists(values, min_size=1, max_size=40), min_size=1, max_size=4)
ratios = st.lists(st.floats(0, 1), min_size=1, max_size=4).map(lambda some: [*some, 0.0, 1.0])


def check_against_sorting(named, wanted, chunk=1 << 20):
    masks = select_top(stream_of(named, chunk), shapes_of(named), wanted)
    assert list(masks) == list(dict.fromkeys(wanted))
    total = sum(t.numel() for t in named.values())
    for ratio, mask in masks.items():
        assert shapes_of(named) == {name: bits.shape for name, bits in mask.items()}
        assert (flat_mask(mask) == by_sorting(named, int(total * ratio))).all()


@given(tensors, ratios, st.booleans(), st.sampled_from([8, 16, 1 << 20]))
def test_equals_a_stable_sort(lists, wanted, rounded, chunk):
    named = {f"t{i}": torch.tensor(v, dtype=torch.float32) for i, v in enumerate(lists)}
    if rounded:
        named = {n: t.bfloat16().float().nan_to_num(posinf=1.0) for n, t in named.items()}
    check_against_sorting(named, wanted, chunk)


doubles = st.floats(min_value=0, allow_infinity=False, allow_nan=False)
close = st.integers(0, 9).map(lambda steps: 1.0 + steps * 2.0**-52)  # all the same in float32


@given(st.lists(st.one_of(close, doubles), min_size=1, max_size=60), ratios)
def test_float64_is_ranked_exactly(scores, wanted):
    check_against_sorting({"t": torch.tensor(scores, dtype=torch.float64)}, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_scores(dtype):
    scores = torch.rand(4000, generator=torch.Generator().manual_seed(0)).to(dtype)
    check_against_sorting({"a": scores[:1000], "b": scores[1000:]}, [0.1, 0.5])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_ties_are_broken_by_position_whatever_the_number_of_threads(count, threads):
    """Many chunks, so that threads are ahead of one another, and few values."""
    scores = torch.randint(0, 4, (20_000,), generator=torch.Generator().manual_seed(0)).float()
    threads(count)
    check_against_sorting({"a": scores[:7000], "b": scores[7000:]}, [0.1, 0.4, 0.9], 64)


@pytest.mark.parametrize("kind", ["uniform", "heavy-tailed", "bfloat16", "constant"])
def test_equals_a_stable_sort_on_large_tensors(kind):
    generator = torch.Generator().manual_seed(0)
    named = {}
    for name, shape in {"a": (300, 700), "b": (5,), "c": (1000, 333)}.items():
        scores = torch.rand(shape, generator=generator)
        if kind == "heavy-tailed":
            scores = torch.randn(shape, generator=generator).abs() ** 7
        elif kind == "bfloat16":
            scores = scores.bfloat16().float()
        elif kind == "constant":
            scores = torch.full(shape, 0.25)
        named[name] = scores
    check_against_sorting(named, [0.1, 0.5, 0.8, 0.95], 1 << 16)


def test_the_count_is_rounded_down_as_python_does():
    named = {"t": torch.rand(100)}
    (mask,) = select_top(stream_of(named), shapes_of(named), [0.29]).values()
    assert int(100 * 0.29) == mask["t"].count() == 28


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, -float("inf")])
def test_unusable_scores_name_their_tensor_and_their_number(bad):
    named = {"good": torch.ones(50), "model.bad": torch.ones(50), "behind": torch.full((9,), bad)}
    named["model.bad"][[1, 20, 49]] = bad
    with pytest.raises(WagleError, match=r"^3 scores of model\.bad"):
        select_top(stream_of(named, chunk=8), shapes_of(named), [0.5])


def test_streams_that_do_not_fit_are_refused():
    named = {"a": torch.ones(20), "b": torch.ones(20)}
    for size in (10, 30):
        with pytest.raises(ValueError, match=r"lacks scores, or has too many.*" + str(20 - size)):
            select_top(stream_of({**named, "b": torch.ones(size)}), shapes_of(named), [0.5])
    mixed = {**named, "b": torch.ones(20, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"scores of b are torch\.float64"):
        select_top(stream_of(mixed), shapes_of(named), [0.5])


@pytest.mark.parametrize(
    ("ratio", "options"),
    [(1.5, {}), (-0.1, {}), (float("nan"), {}), (0.5, {"scope": "row"}), (0.5, {"exclude": ["x"]})],
)
def test_wrong_arguments_are_refused(ratio, options):
    named = {"a": torch.ones(20)}
    with pytest.raises(ValueError, match=r"ratio lies|scope is|kinds to exclude"):
        select_top(stream_of(named), shapes_of(named), [ratio], **options)


LAYERED = {
    "model.embed_tokens.weight": 40,
    "model.layers.0.self_attn.q_proj.weight": 30,
    "model.layers.0.input_layernorm.weight": 6,
    "model.layers.1.self_attn.q_proj.weight": 30,
    "model.norm.weight": 6,
    "lm_head.weight": 40,
}


@pytest.mark.parametrize("scope", ["layer", "tensor"])
def test_scopes_rank_within_their_groups(scope):
    generator = torch.Generator().manual_seed(0)
    named = {n: torch.rand(size, generator=generator) for n, size in LAYERED.items()}
    shares = [0.01, 0.4]
    masks = select_top(stream_of(named, 8), shapes_of(named), shares, scope=scope)
    groups = {}
    for name in named:
        groups.setdefault(layer_index(name) if scope == "layer" else name, []).append(name)
    for names in groups.values():
        part = {name: named[name] for name in names}
        for ratio, mask in masks.items():
            count = int(sum(t.numel() for t in part.values()) * ratio)
            assert (flat_mask({n: mask[n] for n in names}) == by_sorting(part, count)).all()


def test_excluded_kinds_are_neither_selected_nor_counted():
    named = {n: torch.ones(size) for n, size in LAYERED.items()}
    (mask,) = select_top(
        stream_of(named), shapes_of(named), [0.5], exclude=["embedding", "norm", "head"]
    ).values()
    assert sum(m.count() for m in mask.values()) == 30
    assert {n for n, m in mask.items() if m.count()} == {"model.layers.0.self_attn.q_proj.weight"}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_parameter_of_known_architectures_has_a_kind(architecture):
    names = [name for name, _ in make_model(architecture).named_parameters()]
    assert [name for name in names if parameter_kind(name) == "other"] == []
    assert {layer_index(name) for name in names} == {None, 0, 1}
