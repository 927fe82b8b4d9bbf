"""Patching against running the blocks by hand, and what it says where that is known."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import CONFIGS, make_model
from wagle.dataset.encoding import IGNORED, Encoded, pad_batch
from wagle.errors import WagleError
from wagle.model.patching import (
    check_alike,
    check_patching,
    depth_score,
    patch_rows,
    patching_losses,
    read_blocks,
)


def batch():
    """Two rows of 7 and 10 tokens, whose last 4 and 5 are the answers."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length, answer in ((7, 4), (10, 5)):
        ids = torch.randint(3, 300, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORED] * (length - answer) + ids[-answer:]))
    return pad_batch(rows, 2)


@torch.no_grad()
def by_hand(model, source, block, ids, first):
    """Log-probabilities of a text's tokens from ``first`` on, a Llama's blocks run one by one."""
    positions = torch.arange(len(ids))[None]
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]

    def states(model, upto):
        hidden = model.model.embed_tokens(torch.tensor([ids]))
        for layer in model.model.layers[:upto]:
            hidden = go_through(model, layer, hidden)
        return hidden

    def go_through(model, layer, hidden):
        rotary = model.model.rotary_emb(hidden, positions)
        output = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        return output[0] if isinstance(output, tuple) else output

    hidden = states(model, block + 1)
    hidden[:, first - 1 :] = states(source, block + 1)[:, first - 1 :]
    for layer in model.model.layers[block + 1 :]:
        hidden = go_through(model, layer, hidden)
    logits = model.lm_head(model.model.norm(hidden))[0].log_softmax(-1)
    return [float(logits[t - 1, ids[t]]) for t in range(first, len(ids))]


def test_against_blocks_run_by_hand():
    full, source, view = make_model(), make_model(seed=1), batch()
    own = read_blocks(full, view)
    losses = patching_losses(full, view, own, read_blocks(source, view).outputs)
    assert losses.shape == (2, 9)
    for row, (length, first) in enumerate(((7, 3), (10, 5))):
        ids = view["input_ids"][row, :length].tolist()
        clean = torch.tensor(by_hand(full, full, 0, ids, first))
        for block in (0, 1):
            patched = torch.tensor(by_hand(full, source, block, ids, first))
            found = losses[block][own.rows == row].float()
            torch.testing.assert_close(found, clean - patched, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_patched_into_itself_loses_nothing(name):
    model, view = make_model(name), batch()
    own = read_blocks(model, view)
    check_patching(model, view, own)
    losses = patching_losses(model, view, own, own.outputs)
    torch.testing.assert_close(losses, torch.zeros_like(losses), atol=1e-5, rtol=0)
    assert len(own.outputs) == 2
    # Nothing of the patching is left behind.
    assert torch.equal(read_blocks(model, view).log_probs, own.log_probs)


def test_behind_the_last_block_the_full_models_head_reads_the_source():
    full, view = make_model(), batch()
    source = make_model(seed=1)
    source.model.norm, source.lm_head = full.model.norm, full.lm_head
    own, other = read_blocks(full, view), read_blocks(source, view)
    losses = patching_losses(full, view, own, other.outputs)
    expected = (own.log_probs - other.log_probs).double()
    torch.testing.assert_close(losses[-1], expected, atol=1e-5, rtol=1e-5)


def test_tokens_are_those_that_only_the_full_model_finds_likely():
    full, retain, view = make_model(), make_model(seed=1), batch()
    own, other = read_blocks(full, view), read_blocks(retain, view)
    losses = patching_losses(full, view, own, other.outputs)
    for row, lost in enumerate(patch_rows(full, retain, full, view, tokens=2)):
        gaps = (own.log_probs - other.log_probs)[own.rows == row].tolist()
        largest = sorted(range(len(gaps)), key=gaps.__getitem__)[-2:]
        assert lost.tokens == sorted(place for place in largest if gaps[place] > 0)
        means = losses[:, own.rows == row][:, lost.tokens].mean(dim=1).tolist()
        assert lost.by_source["retain-only"] == pytest.approx(means, rel=1e-6)
        assert lost.by_source["unlearned"] == pytest.approx([0, 0], abs=1e-5)
    # Where the model that never knew finds everything likelier, nothing is known.
    for lost in patch_rows(full, full, retain, view, tokens=2):
        assert (lost.tokens, lost.by_source) == ([], {})


def test_depth_scores_by_hand():
    assert depth_score([0.01, 2, 6], [0, 0.5, 6]) == pytest.approx(6.5 / 8)
    assert depth_score([0.2, 6], [0.3, 7]) == 1  # as deep as can be, and not deeper
    assert depth_score([0.2, 6], [-1, 0]) == 0
    assert depth_score([0.05, -3], [1, 1]) is None
    assert depth_score([0.051, 1], [0.051, 0]) == pytest.approx(0.051 / 1.051)
    losses = [0.06, 0.4, 3.0]
    assert depth_score(losses, losses) == 1


def test_models_of_other_shapes_are_refused():
    config = CONFIGS["gpt2"].__class__(vocab_size=300, n_embd=16, n_layer=12, n_head=2)
    other = type(make_model("gpt2"))(config)
    with pytest.raises(WagleError, match="model has 12 blocks of width 16 and 300 tokens, the or"):
        check_alike(make_model(), other, "retain-only")


def test_blocks_that_hand_on_more_than_their_states_are_found():
    """As where a later block reads what an earlier one has left for it beside the stream."""
    model, view = make_model(), batch()
    first, second = model.model.layers

    def leave(module, inputs, output):
        module.left = inputs[0] * 2

    first.mlp.register_forward_hook(leave)
    second.register_forward_hook(
        lambda module, inputs, output: output + first.mlp.__dict__.pop("left")
    )
    own = read_blocks(model, view)
    with pytest.raises(WagleError, match="its blocks hand on more than these"):
        check_patching(model, view, own)
