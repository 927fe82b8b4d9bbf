"""Weights of which each process holds a part."""

import pytest
import torch
from unlearning import encode

from tests.several import together
from tests.tiny import make_model
from wagle import ranks, shards
from wagle.dataset.encoding import pad_batch
from wagle.model.head import token_losses
from wagle.model.reading import read_alone


def _batches():
    return [pad_batch([encode(2 * i), encode(2 * i + 1)], 2) for i in range(6)]


def _gradients(kind):
    """Of all batches, dealt to the processes; the parts and the wholes of the weights."""
    model = make_model(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shards.shard(model)
    for batch in _batches()[ranks.rank() :: ranks.size()]:
        token_losses(model, batch)[0].sum().backward()
    shards.add_up([(p, p.grad) for p in model.parameters()])
    parts = {n: (shards.span(p), shards.local(p).flatten()) for n, p in model.named_parameters()}
    for name, (span, part) in parts.items():
        assert torch.equal(part, before[name].flatten()[span.start : span.stop])
    logits = read_alone(model, range(4)).detach()
    shards.open_up(model)
    if ranks.is_first():  # alone, now
        assert torch.equal(read_alone(model, range(4)), logits)
    shards.close_up(model)
    return (
        {name: shards.whole(p.grad) for name, p in model.named_parameters()},
        sum(part.numel() for _, part in parts.values()),
        logits,
    )


@pytest.mark.parametrize(("kind", "size"), [("llama", 3), ("gpt2", 2)])
def test_sharded_gradients_are_those_of_one_process(kind, size):
    model = make_model(kind)
    for batch in _batches():
        token_losses(model, batch)[0].sum().backward()
    outcomes = together(size, _gradients, kind)
    for found, _, logits in outcomes:
        torch.testing.assert_close(logits, read_alone(model, range(4)).detach())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, msg=name)
    held = [count for _, count, _ in outcomes]
    whole = model.num_parameters()
    tied = model.get_input_embeddings().weight.numel() if kind == "gpt2" else 0
    assert sum(held) == whole + (size - 1) * tied
