"""Attribution scores against per-example autograd, summed by hand."""

from __future__ import annotations

import pytest
import torch

from tests.gradient_sums import random_examples, squares_by_hand, sums_by_hand
from tests.tiny import make_model
from wagle.config.keys import UnlearnSection
from wagle.unlearn.mask.gradients import (
    cached_gradient_sums,
    sum_gradients,
    sums_dtype,
)
from wagle.unlearn.mask.scores import HESSIAN_FLOOR, ScoreInputs, score_stream
from wagle.unlearn.mask.sums import consume_gradients
from wagle.unlearn.mask.tensor_file import TensorFile

ACCUMULATION = 4
MU = 1e-2
BATCHES = {"batch_size": 2, "pad_token_id": 2}


def section(rows=3, offload="none", dtype="float32") -> UnlearnSection:
    return UnlearnSection(
        attribution_batch_size=rows, attribution_offload=offload, attribution_dtype=dtype
    )


def sums_file(model, examples, path, batch_size=2, squares=False, **changes) -> TensorFile:
    chosen = section(**changes)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    file = TensorFile.create(path, shapes, sums_dtype(chosen), {})
    batches = {**BATCHES, "batch_size": batch_size}
    sum_gradients(model, examples, chosen, file, **batches, description="", squares=squares)
    return file


@pytest.mark.parametrize(
    "architecture", ["llama", "llama_tied", "gpt2", "gpt_neox", "opt", "mistral"]
)
@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
def test_gradient_sums_equal_per_example_autograd(tmp_path, architecture, offload):
    model = make_model(architecture)
    examples = random_examples(5, seed=1)
    file = sums_file(model, examples, tmp_path / "g", offload=offload)
    expected = sums_by_hand(model, examples, batch_size=2)
    for name, sum_ in expected.items():
        torch.testing.assert_close(file.read(name).double(), sum_, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("offload", ["none", "cpu", "disk"])
def test_sums_of_squares_are_of_one_example_each(tmp_path, model, offload):
    examples = random_examples(5, seed=1)
    options = {"offload": offload, "dtype": "float64", "squares": True}
    file = sums_file(model, examples, tmp_path / "g", **options)
    other = sums_file(model, examples, tmp_path / "h", rows=1, batch_size=4, **options)
    for name, sum_ in squares_by_hand(model, examples).items():
        torch.testing.assert_close(file.read(name), sum_, rtol=1e-3, atol=1e-9)
        assert torch.equal(file.read(name), other.read(name))


def test_sums_do_not_depend_on_how_rows_are_run(tmp_path, model):
    examples = random_examples(7, seed=2)
    files = [
        sums_file(model, examples, tmp_path / str(rows), rows=rows, dtype="float64")
        for rows in (1, 4, 7)
    ]
    for name, _ in model.named_parameters():
        for other in files[1:]:
            torch.testing.assert_close(files[0].read(name), other.read(name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("offload", ["none", "disk"])
def test_gradients_of_a_bfloat16_model_are_summed_in_float32(tmp_path, offload):
    """In bfloat16 the later ones would be rounded away."""
    model = make_model().bfloat16()
    examples = random_examples(4, seed=3)
    options = {"offload": offload, "batch_size": 1, "rows": 1}
    file = sums_file(model, examples, tmp_path / "all", **options)
    alone = [
        sums_file(model, [example], tmp_path / str(index), **options)
        for index, example in enumerate(examples)
    ]
    for name in file.shapes:
        gradients = torch.stack([each.read(name).double() for each in alone])
        assert torch.equal(gradients, gradients.bfloat16().double())
        torch.testing.assert_close(
            file.read(name).double(), gradients.sum(dim=0), rtol=1e-5, atol=1e-7
        )


def test_the_model_is_left_as_it_was(tmp_path, model):
    """Frozen parameters are attributed too, and stay frozen; gradients from before do not count."""
    frozen = {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    model.train()
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    examples = random_examples(3, seed=1)
    file = sums_file(model, examples, tmp_path / "g")
    assert model.training
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen
    assert all(p.grad is None for p in model.parameters())
    for name, sum_ in sums_by_hand(make_model(), examples, batch_size=2).items():
        torch.testing.assert_close(file.read(name).double(), sum_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offload", ["none", "disk"])
def test_parameters_that_the_loss_does_not_reach_have_zero_sums(tmp_path, model, offload):
    model.spare = torch.nn.Parameter(torch.ones(3, 2))
    file = sums_file(model, random_examples(2, seed=0), tmp_path / "g", offload=offload)
    assert torch.equal(file.read("spare"), torch.zeros(3, 2))


@pytest.fixture
def sums(tmp_path, model):
    kinds = {kind: random_examples(5, seed) for seed, kind in enumerate(("forget", "retain"))}
    files = cached_gradient_sums(model, kinds, section(), tmp_path / "demo", **BATCHES)
    by_hand = {kind: sums_by_hand(model, rows, 2) for kind, rows in kinds.items()}
    return files, by_hand


def expected_scores(score_type, theta, sum_f, sum_r):
    g_f, g_r = sum_f / ACCUMULATION, sum_r / ACCUMULATION
    mean_r = sum_r / 3  # five examples in batches of two
    return {
        "wagle": ((theta - g_r / MU) * g_f).abs(),
        "gradient": g_f.abs(),
        "snip": (g_f * theta).abs(),
        "magnitude": theta.abs(),
        "wagle_gn": ((theta - g_r / mean_r.square().clamp(min=HESSIAN_FLOOR)) * g_f).abs(),
    }[score_type]


@pytest.mark.parametrize("score_type", ["wagle", "gradient", "snip", "magnitude", "wagle_gn"])
def test_scores_equal_their_formulas(model, sums, score_type):
    files, by_hand = sums
    if score_type == "wagle_gn":  # 1/g² magnifies the last bit of g: take the very same sums
        by_hand = {k: {n: f.read(n).double() for n in f.shapes} for k, f in files.items()}
    inputs = ScoreInputs(mu=MU, batches=3, examples=5, accumulation_steps=ACCUMULATION, seed=0)
    stream = score_stream(model, score_type, files, inputs)
    names = []
    for name, start, form in stream():
        assert start == 0
        score = form().view(dict(model.named_parameters())[name].shape)
        theta = dict(model.named_parameters())[name].detach().double()
        expected = expected_scores(
            score_type, theta, by_hand["forget"][name], by_hand["retain"][name]
        )
        largest = expected.max()
        torch.testing.assert_close(
            score.double() / largest, expected / largest, rtol=2e-3, atol=1e-5
        )
        names.append(name)
    assert names == [name for name, _ in model.named_parameters()]


def test_random_scores_repeat_and_depend_on_the_seed(model):
    def scores(seed):
        inputs = ScoreInputs(mu=MU, batches=1, examples=1, accumulation_steps=1, seed=seed)
        return {name: form() for name, _, form in score_stream(model, "random", {}, inputs)()}

    first, again, other = scores(0), scores(0), scores(1)
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_cache_is_reused_only_for_the_same_model_and_data(tmp_path, model, capsys):
    kinds = {"forget": random_examples(3, seed=0)}

    def outcome(kinds=kinds, batch_size=2, **changes):
        batches = {**BATCHES, "batch_size": batch_size}
        cached_gradient_sums(model, kinds, section(**changes), tmp_path / "demo", **batches)
        return capsys.readouterr().out

    assert outcome() == ""
    assert "using" in outcome()
    assert "using" in outcome(rows=1, offload="disk")
    assert "making it anew" in outcome(batch_size=3)
    assert "making it anew" in outcome(kinds={"forget": random_examples(3, seed=9)})
    assert "making it anew" in outcome(dtype="float64")
    assert "making it anew" in outcome()
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    assert "making it anew" in outcome()
    model.config.rms_norm_eps *= 2
    assert "making it anew" in outcome()
    model.config.name_or_path = "elsewhere"
    assert "using" in outcome()


def test_an_interrupted_pass_leaves_no_file_and_the_model_as_it_was(tmp_path, model, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    frozen = next(model.parameters()).requires_grad_(False)
    monkeypatch.setattr("wagle.unlearn.mask.gradients.token_losses", interrupt)
    kinds = {"forget": random_examples(4, seed=0)}
    with pytest.raises(KeyboardInterrupt):
        cached_gradient_sums(model, kinds, section(), tmp_path / "demo", **BATCHES)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    assert not frozen.requires_grad
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_gradients_are_consumed_one_by_one(model):
    alive = []

    class Sums:
        def add(self, name, gradient):
            alive.append(sum(p.grad is not None for p in model.parameters()))

    with consume_gradients(model, Sums()):
        model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    assert max(alive) == 1
    assert len(alive) == len(list(model.parameters()))
