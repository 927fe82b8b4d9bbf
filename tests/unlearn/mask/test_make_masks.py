"""Masks of every score type on every kind of architecture, from examples to bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, MptConfig
from transformers.pytorch_utils import Conv1D

from tests.architectures import build
from tests.gradient_sums import random_examples, squares_by_hand, sums_by_hand
from tests.tiny import CONFIGS, VOCABULARY, make_model
from wagle.config.keys import UnlearnSection
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.dataset.pairing import FORGET, REFUSAL, RETAIN, UnlearnDataset
from wagle.errors import WagleError
from wagle.model.architecture import block_linears
from wagle.unlearn.mask.make import make_masks
from wagle.unlearn.mask.selection import select_top
from wagle.unlearn.mask.structure import (
    _without_smallest,
    cached_input_norms,
    feed_forward_mask,
)

ROWS, BATCH, ACCUMULATION, MU = 5, 2, 4, 1e-2
RATIOS = [0.1, 0.4, 0.8]


def make_dataset() -> UnlearnDataset:
    """Forget and retain rows that are encoded already; a refusal replaces all but the prompt."""
    forget, retain = (
        [{"example": example} for example in random_examples(count, seed)]
        for count, seed in ((ROWS, 1), (2 * ROWS, 2))
    )

    def refuse(row, refusal):
        prompt = row["example"].input_ids[: row["example"].labels.count(IGNORED)]
        answer = [3 + len(refusal), 4, 5]
        return Encoded(prompt + answer, [IGNORED] * len(prompt) + answer)

    return UnlearnDataset(
        forget,
        retain,
        encode_forget=lambda row: row["example"],
        encode_retain=lambda row: row["example"],
        encode_refusal=refuse,
        refusals=["No", "Sorry", "I do not know"],
    )


def masks_of(model, ratios, score_type: str, prefix, **changes):
    """Masks of the small data set, from sums of gradients in float64."""
    numbers = {"mu": MU, "gradient_accumulation_steps": ACCUMULATION, **changes}
    section = UnlearnSection(
        score_type=score_type, attribution_batch_size=3, attribution_dtype="float64", **numbers
    )
    return make_masks(
        model, make_dataset(), ratios, section, prefix, batch_size=BATCH, pad_token_id=2, seed=0
    )


def flat(tensors) -> np.ndarray:
    return np.concatenate([t.detach().double().reshape(-1).numpy() for t in tensors])


def expected_scores(model, dataset) -> dict[str, np.ndarray]:
    """By the formulas, in one long float64 vector each, from gradients of one row at a time."""

    def examples(view):
        return [dataset.example(view, (0, index)) for index in range(ROWS)]

    def summed(view):
        return flat(sums_by_hand(model, examples(view), BATCH).values())

    def fisher(view):
        return flat(squares_by_hand(model, examples(view)).values()) / ROWS

    theta = flat(model.parameters())
    g_f, g_r, g_c = (summed(view) / ACCUMULATION for view in (FORGET, RETAIN, REFUSAL))
    mean_r = g_r * ACCUMULATION / 3  # five rows make three batches
    return {
        "wagle": np.abs((theta - g_r / MU) * g_f),
        "wagle_cl": np.abs((theta - g_r / MU) * g_c),
        "wagle_gn": np.abs((theta - g_r / np.maximum(mean_r**2, 1e-12)) * g_f),
        "wagle_fisher": np.abs((theta - mean_r / np.maximum(fisher(RETAIN), 1e-20)) * g_f),
        "fisher_ratio": fisher(FORGET) / (fisher(RETAIN) + 1e-20),
        "gradient": np.abs(g_f),
        "snip": np.abs(g_f * theta),
        "magnitude": np.abs(theta),
    }


@pytest.mark.parametrize(
    ("either_device", "architecture"),
    [*(("cpu", name) for name in CONFIGS), ("accelerator", "llama"), ("accelerator", "gpt2")],
    indirect=["either_device"],
)
@pytest.mark.usefixtures("either_device")
def test_masks_equal_those_of_scores_by_hand(tmp_path, architecture):
    """In float64, where only scores that hardly differ can be ranked differently."""
    model, dataset = make_model(architecture).double(), make_dataset()
    for score_type, scores in expected_scores(model, dataset).items():
        masks = masks_of(model, RATIOS, score_type, tmp_path / "m")
        for ratio, mask in masks.items():
            assert [m.shape for m in mask.values()] == [p.shape for p in model.parameters()]
            chosen = np.concatenate([m.to_bool().reshape(-1).numpy() for m in mask.values()])
            count = int(scores.size * ratio)
            assert chosen.sum() == count
            threshold = np.sort(scores)[-count]
            # Quotients by 0 are huge: beside them all others would pass for equal.
            large = np.median(scores[scores > 0]) if "fisher" in score_type else scores.max()
            clear = np.abs(scores - threshold) > 1e-5 * threshold + 1e-12 * large
            assert clear.mean() > (0.99 if threshold > 0 else 0.1)
            assert (chosen == (scores > threshold))[clear].all()


@pytest.mark.parametrize(
    "score_type", ["wagle", "wagle_cl", "wagle_gn", "wanda", "wagle_fisher", "activation_ratio"]
)
def test_another_ratio_and_another_mu_need_no_forward_pass(tmp_path, model, score_type, capsys):
    forwards = []
    model.base_model.register_forward_pre_hook(lambda *_: forwards.append(1))
    first = masks_of(model, [0.5], score_type, tmp_path / "m")
    assert forwards
    forwards.clear()
    options = {"mu": 10 * MU, "gradient_accumulation_steps": 1}
    again = masks_of(model, [0.5, 0.2], score_type, tmp_path / "m")
    other = masks_of(model, [0.5], score_type, tmp_path / "m", **options)
    assert not forwards
    assert "using" in capsys.readouterr().out
    assert again[0.5] == first[0.5]
    if score_type in ("wagle", "wagle_cl"):
        assert other[0.5] != first[0.5]


def test_score_types_share_what_is_cached(tmp_path, model):
    types = ("wagle", "wagle_cl", "snip", "wanda", "fisher_ratio", "wagle_fisher", "neuron")
    for score_type in (*types, "memflex", "activation_ratio"):
        masks_of(model, [0.5], score_type, tmp_path / "m")
    names = {path.name for path in tmp_path.iterdir() if path.suffix == ".safetensors"}
    gradients = [f"{kind}_gradients" for kind in ("forget", "retain", "refusal")]
    rest = [
        f"{kind}_{what}" for kind in ("forget", "retain") for what in ("squares", "activations")
    ]
    kinds = [*gradients, *rest, "input_norms"]
    assert names == {f"m.{kind}.safetensors" for kind in kinds}


def test_overflowing_gradients_name_the_tensor(tmp_path, model):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = float("nan")
    with pytest.raises(WagleError, match=r"scores of model\.embed_tokens\.weight are not finite"):
        masks_of(model, [0.5], "wagle", tmp_path / "m")
    with pytest.raises(WagleError, match=r"scores of model\.layers\.1\.mlp\.up_proj\.weight"):
        masks_of(model, [0.5], "wanda", tmp_path / "n")


@pytest.mark.parametrize("score_type", ["wagle", "random"])
def test_scope_and_exclusions_reach_the_ranking(tmp_path, model, score_type):
    options = {"mask_scope": "tensor", "mask_exclude": ["embedding", "norm"]}
    (mask,) = masks_of(model, [0.3], score_type, tmp_path / "m", **options).values()
    for name, bits in mask.items():
        excluded = "embed" in name or "norm" in name
        assert bits.count() == (0 if excluded else int(bits.numel * 0.3))


def inputs_of(model, dataset, view=FORGET):
    """Inputs of every linear layer at each token of unpadded rows, by module."""
    seen: dict[torch.nn.Module, list] = {}
    handles = [
        module.register_forward_hook(
            lambda m, inputs, _: seen.setdefault(m, []).append(
                inputs[0].detach().flatten(end_dim=-2)
            )
        )
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    ]
    for index in range(ROWS):
        model(input_ids=torch.tensor([dataset.example(view, (0, index)).input_ids]))
    for handle in handles:
        handle.remove()
    return {module: torch.cat(inputs) for module, inputs in seen.items()}


@pytest.mark.usefixtures("either_device")
@pytest.mark.parametrize("architecture", ["llama_tied", "gpt2", "gpt_neox", "opt", "mistral"])
def test_wanda_freezes_the_smallest_of_each_output_row(tmp_path, architecture):
    model, dataset = make_model(architecture), make_dataset()
    masks = masks_of(model, RATIOS, "wanda", tmp_path / "m")
    inputs, linears = inputs_of(model, dataset), block_linears(model)
    assert (
        len(linears)
        == 2 * {"llama_tied": 7, "gpt2": 4, "gpt_neox": 4, "opt": 6, "mistral": 7}[architecture]
    )
    for name, parameter in model.named_parameters():
        for ratio, mask in masks.items():
            chosen = mask[name].to_bool()
            if name not in linears:
                assert chosen.all()
                continue
            weight = parameter.detach()
            if isinstance(linears[name], Conv1D):
                weight, chosen = weight.T, chosen.T
            score = weight.abs().double() * inputs[linears[name]].double().norm(dim=0)
            frozen = int(score.shape[1] * (1 - ratio))
            assert ((~chosen).sum(dim=1) == frozen).all()
            for row, kept in zip(score, chosen, strict=True):
                assert row[~kept].max() <= row[kept].min() * (1 + 1e-6)


def test_wanda_refuses_experts_in_one_tensor(tmp_path):
    """All of their weights would be selected at any ratio."""
    prefix, options = tmp_path / "m", {"rows": 2, "pad_token_id": 2}
    with pytest.raises(WagleError, match=r"MixtralForCausalLM keeps experts in one tensor"):
        cached_input_norms(build("mixtral"), [], prefix, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_of_equals_the_first_are_frozen(count):
    generator = torch.Generator().manual_seed(count)
    score = torch.randint(0, 3, (50, 6), generator=generator).float()
    kept = _without_smallest(score, count).numpy()
    for row, flags in zip(score.numpy(), kept, strict=True):
        expected = np.ones(6, dtype=bool)
        expected[np.argsort(row, kind="stable")[:count]] = False
        assert (flags == expected).all()


BIAS = ["weight", "bias"]
FEED_FORWARD = {
    "llama": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "post_attention_layernorm"],
    "gemma2": [
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ],
    "gpt2": ["ln_2", "mlp.c_fc", "mlp.c_proj"],
    "gpt_neox": ["post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    "opt": ["fc1", "fc2", "final_layer_norm"],
    "bloom": ["post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
    "mpt": ["norm_2", "ffn.up_proj", "ffn.down_proj"],
}
MORE_CONFIGS = {
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2),
    "mpt": MptConfig(vocab_size=VOCABULARY, d_model=16, n_layers=2, n_heads=2),
}


@pytest.mark.parametrize("architecture", FEED_FORWARD)
def test_ffn_selects_feed_forward_modules_and_their_norms(architecture):
    if architecture in MORE_CONFIGS:
        model = AutoModelForCausalLM.from_config(MORE_CONFIGS[architecture])
    else:
        model = make_model(architecture)
    mask = feed_forward_mask(model)
    modules = {name.rpartition(".")[0] for name, bits in mask.items() if bits.count()}
    ends = tuple(f".{layer}.{end}" for layer in (0, 1) for end in FEED_FORWARD[architecture])
    assert len(modules) == len(ends)
    assert all(module.endswith(ends) for module in modules)
    assert all(bits.count() in (0, bits.numel) for bits in mask.values())


def test_excluding_what_is_not_there_is_refused():
    """A tied head is part of the embedding; leaving it in without a word would be worse."""
    shapes = {name: p.shape for name, p in make_model("llama_tied").named_parameters()}
    with pytest.raises(WagleError, match=r"kind head, which is to be excluded.*tied"):
        select_top(lambda: iter(()), shapes, [0.5], exclude=["head"])
