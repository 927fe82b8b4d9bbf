"""Plans against tensors that really live, and against bytes counted by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.tiny import CONFIGS, make_model
from tests.training.test_gradients import train
from wagle.dataset.encoding import IGNORED, Encoded, pad_batch
from wagle.errors import ConfigError
from wagle.model.head import Head, token_losses
from wagle.optim.bitmask import BitMask
from wagle.planning.flag import split_plan
from wagle.planning.memory import (
    MASK,
    MASTERS,
    MOMENTS,
    PACKED,
    REFERENCE,
    SUMS,
    TRAINING,
    WEIGHTS,
    WHOLE,
    Phase,
    Training,
    attribution_phase,
    model_bytes,
    share_of,
    training_phase,
)
from wagle.planning.simulation import BatchShape, MemoryTracker, Parts, simulate_reading
from wagle.planning.skeleton import skeleton

CPU = torch.device("cpu")


def wide_config(**changes):
    """A Llama whose weights outweigh what a few short texts need."""
    config = copy.deepcopy(CONFIGS["llama"])
    config.update({"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, **changes})
    return config


def training(terms, **changes):
    settings = {
        **{"shares": {}, "masked": False, "packed": False, "clipped": True},
        **{"accumulation": 1, "masters": False, **changes},
    }
    return Training(terms=terms, **settings)


def test_a_linear_layer_keeps_its_input_and_makes_a_gradient():
    """4 inputs, 3 outputs, 5 tokens, float32: 80 bytes in, 60 out, 48 of a gradient."""
    layer, states = torch.nn.Linear(4, 3, bias=False), torch.ones(5, 4)
    with MemoryTracker(layer) as tracker:
        copied = states.clone()
        assert tracker.live.total() == 80
        out = layer(copied)
        assert tracker.live.total() == 80 + 60
        del copied
        assert tracker.live.total() == 80 + 60  # the graph holds it
        out.sum().backward()
        del out
        assert tracker.live.total() == 48
        assert tracker.peak.total() >= 80 + 60 + 48
    layer.zero_grad()
    assert tracker.live.total() == 0


def test_a_skeleton_has_the_shapes_of_the_model_and_no_memory():
    model = make_model("llama_tied")
    with skeleton(model.config, torch.bfloat16) as empty:
        shapes = {name: (p.shape, p.dtype) for name, p in empty.named_parameters()}
        assert (
            model_bytes(empty) == 2 * model.num_parameters() + 4 * 8
        )  # two sets of rotary frequencies
    assert shapes == {name: (p.shape, torch.bfloat16) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("accumulation", "changes"),
    [
        (1, {"gradients": "dense"}),
        (2, {"gradients": "dense"}),
        (1, {"gradients": "packed"}),
        (2, {"gradients": "packed"}),
        (1, {"gradients": "packed", "max_grad_norm": 0.0, "method": "FT"}),
        (2, {"gradients": "packed", "gradient_checkpointing": True}),
        (1, {"gradients": "dense", "master_weights": True, "dtype": torch.bfloat16}),
        (2, {"gradients": "packed", "master_weights": True, "dtype": torch.bfloat16}),
        (1, {"gradients": "dense", "moments": "8bit"}),
    ],
    ids=str,
)
def test_the_plan_of_training_is_what_its_tensors_take(accumulation, changes, threads):
    """Within 10 %, chunks of the optimizer included; texts are of 5 to 8 tokens."""
    threads(1)  # the tracker sees no other
    options = {"max_grad_norm": 1.0, "method": "GA+FT", **changes}
    dtype, ratio = options.pop("dtype", torch.float32), 0.2
    model = LlamaForCausalLM(wide_config()).to(dtype)
    generator = torch.Generator().manual_seed(0)
    mask = {
        name: BitMask.from_bool(torch.rand(p.shape, generator=generator) < ratio)
        for name, p in model.named_parameters()
    }
    with MemoryTracker(model) as tracker:
        train(model, steps=3, mask=mask, accumulation=accumulation, **options)
    batch = BatchShape(2, 8, 12)
    asked = training(
        [[batch]] if options["method"] == "FT" else [[batch], [batch]],
        shares=dict.fromkeys(mask, ratio),
        masked=True,
        packed=options["gradients"] == "packed",
        clipped=options["max_grad_norm"] > 0,
        accumulation=accumulation,
        masters=options.get("master_weights", False),
        eight_bit=options.get("moments") == "8bit",
    )
    with skeleton(wide_config(), dtype) as empty:
        if options.get("gradient_checkpointing"):
            empty.activation_checkpointing_enable()
        parts = training_phase(empty, asked, CPU).parts
    planned = parts.total() - parts[WEIGHTS] - parts[MASK]
    assert planned == pytest.approx(tracker.peak.total(), rel=0.1)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_plan_of_reading_is_what_its_tensors_take(architecture):
    """Gemma 2 caps its logits, and so makes those of all tokens, not of labelled ones."""
    view = pad_batch([Encoded([5] * 12, [IGNORED] * 8 + [5] * 4)] * 3, 2)
    model = make_model(architecture)
    Head.of(model)
    with torch.no_grad(), MemoryTracker(model) as tracker:
        token_losses(model, view)
    with skeleton(CONFIGS[architecture], torch.float32) as empty:
        planned = simulate_reading(empty, BatchShape(3, 12, 12))
    assert planned.total() == pytest.approx(tracker.peak.total(), rel=0.1)


def test_what_is_kept_beside_the_weights():
    """bfloat16, 4 tensors of 10 selected of 40 weights: 4 bytes for masters, 8 for moments."""
    with skeleton(CONFIGS["llama"], torch.bfloat16) as model:
        weights = sum(p.numel() for p in model.parameters())
        shares = {name: 0.25 for name, _ in model.named_parameters()}
        selected = sum(round(0.25 * p.numel()) for p in model.parameters())
        batch = BatchShape(1, 4, 4)
        changes = {"masked": True, "packed": True, "masters": True, "reference": 0.5}
        asked = training([[batch]], shares=shares, accumulation=2, **changes)
        parts = training_phase(model, asked, CPU).parts
    assert parts[MASK] == weights // 8
    assert parts[MASTERS] == 4 * selected
    assert parts[MOMENTS] == 8 * selected
    assert parts[PACKED] == 4 * selected
    assert parts[REFERENCE] == 2 * round(0.5 * weights)


def test_moments_of_8_bits():
    """Two codes a selected weight, two scales of 256 of them; floats of fewer than 4,096."""
    with skeleton(wide_config(), torch.float32) as model:
        shares = {name: 0.25 for name, _ in model.named_parameters()}
        asked = training([[BatchShape(1, 4, 4)]], shares=shares, masked=True, eight_bit=True)
        sizes = [round(0.25 * p.numel()) for p in model.parameters()]
        found = training_phase(model, asked, CPU).parts[MOMENTS]
    assert {size >= 4096 for size in sizes} == {True, False}
    assert found == sum(
        2 * size + 8 * math.ceil(size / 256) if size >= 4096 else 8 * size for size in sizes
    )


def test_sums_of_gradients_are_where_they_are_kept():
    with skeleton(CONFIGS["llama"], torch.float32) as model:
        weights, largest = sum(p.numel() for p in model.parameters()), model.lm_head.weight.numel()

        def sums(offload, device=CPU):
            options = {"offload": offload, "sum_bytes": 4, "device": device}
            return attribution_phase(model, BatchShape(1, 4, 4), **options).parts[SUMS]

        assert sums("none") == sums("cpu") == 4 * weights
        assert sums("disk") <= 4 * largest
        cuda = torch.device("cuda")
        assert [sums(place, cuda) for place in ("none", "cpu", "disk")] == [4 * weights, 0, 0]


@pytest.mark.parametrize(
    ("argv", "wanted", "rest"),
    [
        (["--plan"], (None, None), []),
        (["--plan", "24GB", "-C", "x"], (24 * 10**9, None), ["-C", "x"]),
        (["-C", "x", "--plan=1.5 gib"], (3 * 2**29, None), ["-C", "x"]),
        (["--plan", "--overall.seed", "1"], (None, None), ["--overall.seed", "1"]),
        (["--plan", "8x80GB"], (80 * 10**9, 8), []),
    ],
)
def test_the_flag_takes_a_size_and_a_number_of_devices(argv, wanted, rest):
    assert split_plan(argv) == (wanted, rest)


def test_weights_and_what_goes_with_them_are_cut_among_devices():
    """1000 bytes on 4 devices: 250; tied embeddings stay whole; so do three blocks."""
    found = {}
    for name in ("llama", "llama_tied"):
        with skeleton(CONFIGS[name], torch.float32) as model:
            weights = sum(p.numel() for p in model.parameters())
            table = model.get_input_embeddings().weight.numel()
            block = sum(p.nbytes for p in model.model.layers[0].parameters())
            phase = Phase(TRAINING, Parts({WEIGHTS: 4 * weights, "activations": 500}))
            found[name] = share_of(phase, model, 4).parts
        assert found[name]["activations"] == 500
    assert found["llama"][WEIGHTS] == weights + table  # an untied head is as large as a table
    assert found["llama"][WHOLE] == 3 * 4 * table  # of this one, larger than a block
    assert found["llama_tied"][WEIGHTS] == 4 * table + (weights - table)
    assert found["llama_tied"][WHOLE] == 3 * block


def test_a_command_line_without_the_flag_is_left_alone():
    assert split_plan(["--overall.seed", "1"]) == (None, ["--overall.seed", "1"])
    with pytest.raises(ConfigError, match="a size like 24GB"):
        split_plan(["--plan", "lots"])
