"""Random examples, and sums of their gradients taken one example at a time."""

from __future__ import annotations

import torch

from tests.tiny import VOCABULARY
from wagle.dataset.encoding import IGNORED, Encoded


def random_examples(count: int, seed: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(count):
        length = int(torch.randint(4, 12, (), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        prompt = int(torch.randint(1, length - 1, (), generator=generator))
        examples.append(Encoded(ids, [IGNORED] * prompt + ids[prompt:]))
    return examples


def sums_by_hand(model, examples, batch_size):
    """One unpadded row at a time: Σ over batches of ∇(summed NLL / labelled tokens)."""
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        tokens = sum(label != IGNORED for e in batch for label in e.labels)
        for example in batch:
            log_probs = model(input_ids=torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
            scored = [(t - 1, label) for t, label in enumerate(example.labels) if label != IGNORED]
            loss = -sum(log_probs[place] for place in scored)
            gradients = torch.autograd.grad(loss / tokens, list(model.parameters()))
            for name, gradient in zip(sums, gradients, strict=True):
                sums[name] += gradient.double()
    return sums


def squares_by_hand(model, examples):
    """Σ over examples of the squared gradient of each one's token-mean NLL."""
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for example in examples:
        for name, gradient in sums_by_hand(model, [example], 1).items():
            sums[name] += gradient**2
    return sums
