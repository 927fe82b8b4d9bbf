"""Which models fit on which devices, worked out from their shapes: the tables of docs/scaling.md.

    python benchmarks/fits.py [--model NAME ...] [--moments 8bit]

Nothing is measured, and no GPU is needed. bfloat16 weights; GA+FT with batches of 1 + 1 texts of
160 tokens, 80 of them labelled, 4 a step (on eight devices one for each, and some rest), clipped,
float32 masters, packed gradients, activation checkpointing; attribution with 8 texts at once.
Passes are simulated with two and with four layers, and go on by a straight line.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from transformers import LlamaConfig

from wagle.planning.memory import (
    SUMS,
    Parts,
    Phase,
    Training,
    attribution_phase,
    share_of,
    training_phase,
)
from wagle.planning.resources import CUDA_CONTEXT
from wagle.planning.simulation import BatchShape
from wagle.planning.skeleton import skeleton

CUDA = torch.device("cuda")
TOKENS, ACCUMULATION, DEVICES = 160, 4, 8
RATIOS = (0.05, 0.1, 0.4, 0.8)
ROOMS = ((24, 1), (48, 1), (80, 1), (80, DEVICES))  # gigabytes and devices
LAYERS = (2, 4)  # that are simulated


def _llama(width: int, inner: int, layers: int, vocabulary: int, **options: Any) -> dict[str, Any]:
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 128}
    return {**shape, **heads, "vocab_size": vocabulary, **options}


MODELS = {
    "1B": _llama(2048, 8192, 16, 128_256, num_attention_heads=32, tie_word_embeddings=True),
    "3B": _llama(3072, 8192, 28, 128_256, tie_word_embeddings=True),
    "7B": _llama(4096, 11_008, 32, 32_000),
    "8B": _llama(4096, 14_336, 32, 128_256),
    "13B": _llama(5120, 13_824, 40, 32_000),
    "70B": _llama(8192, 28_672, 80, 32_000),
}
_KEY_HEADS = {"1B": 8, "3B": 8, "8B": 8, "70B": 8}


def phases(name: str, layers: int, moments: str) -> Iterator[tuple[str, int, int]]:
    """Names of phases of a model with so many layers, devices, and bytes of each device."""
    shape = {**MODELS[name], "num_hidden_layers": layers}
    config = LlamaConfig(**shape, num_key_value_heads=_KEY_HEADS.get(name))
    with skeleton(config, torch.bfloat16) as model:
        batch = BatchShape(8, TOKENS, 8 * TOKENS // 2)
        options = {"offload": "none", "sum_bytes": 4, "device": CUDA}
        whole = attribution_phase(model, batch, **options)
        lean = Phase(whole.name, Parts({k: v for k, v in whole.parts.items() if k != SUMS}))
        for title, phase in (("mask", whole), ("mask, offloaded", lean)):
            yield title, 1, phase.total
            yield title, DEVICES, share_of(phase, model, DEVICES).total
        model.activation_checkpointing_enable()
        for ratio in RATIOS:
            for devices in (1, DEVICES):
                training = Training(
                    terms=[[BatchShape(1, TOKENS, TOKENS // 2)]] * 2,
                    shares={name: ratio for name, _ in model.named_parameters()},
                    masked=True,
                    packed=True,
                    clipped=True,
                    accumulation=-(-ACCUMULATION // devices),
                    masters=True,
                    eight_bit=moments == "8bit",
                    alone=devices == 1,
                )
                phase = training_phase(model, training, CUDA)
                if devices > 1:
                    phase = share_of(phase, model, devices)
                yield f"ρ {ratio}", devices, phase.total


def totals(name: str, moments: str) -> dict[tuple[str, int], float]:
    """Gigabytes of each phase on so many devices."""
    few, more = ({(p, d): size for p, d, size in phases(name, n, moments)} for n in LAYERS)
    beyond = (MODELS[name]["num_hidden_layers"] - LAYERS[0]) / (LAYERS[1] - LAYERS[0])
    return {key: (few[key] + beyond * (more[key] - few[key]) + CUDA_CONTEXT) / 1e9 for key in few}


def fitting(sizes: dict[tuple[str, int], float], room: int, devices: int) -> str:
    """What fits: the mask, and training up to which ratio."""
    if sizes["mask", devices] <= room:
        mask = "as it is"
    else:
        mask = "offloaded" if sizes["mask, offloaded", devices] <= room else "no"
    ratios = [ratio for ratio in RATIOS if sizes[f"ρ {ratio}", devices] <= room]
    return f"{mask} / {f'up to {ratios[-1]}' if ratios else 'no'}"


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--moments", choices=("float", "8bit"), default="float")
    args = parser.parse_args()
    found = {name: totals(name, args.moments) for name in args.model}
    for devices in (1, DEVICES):
        columns = [phase for phase, count in next(iter(found.values())) if count == devices]
        print(f"\nGB of each of {devices}:\n\n| model | " + " | ".join(columns) + " |")
        print("| --- |" + " ---: |" * len(columns))
        for name, sizes in found.items():
            shown = (f"{sizes[column, devices]:.3g}" for column in columns)
            print(f"| {name} | " + " | ".join(shown) + " |")
    titles = [f"{room} GB" if devices == 1 else f"{devices} × {room} GB" for room, devices in ROOMS]
    print("\nThe mask / training:\n\n| model | " + " | ".join(titles) + " |")
    print("| --- |" + " --- |" * len(ROOMS))
    for name, sizes in found.items():
        print(f"| {name} | " + " | ".join(fitting(sizes, *room) for room in ROOMS) + " |")


if __name__ == "__main__":
    main()
