"""Bytes per weight of training with whole and packed gradients and 8-bit moments, by ratio.

    python benchmarks/bytes.py [--ratios 0.05,0.1,0.2,0.4,0.8,1]

A random bfloat16 Llama of 51 million weights takes two steps of GA+FT on 1 + 1 rows of 8 tokens,
clipped, with float32 masters. Counted are the tensors that live at the peak (weights, mask, state,
gradients, activations, the optimizer's chunks), not what an allocator keeps beside them.
"""

from __future__ import annotations

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wagle.catalogue import METHODS
from wagle.config.keys import UnlearnSection
from wagle.dataset.encoding import Encoded
from wagle.dataset.pairing import PairCollator, UnlearnDataset
from wagle.optim.bitmask import BitMask
from wagle.planning.memory import model_bytes
from wagle.planning.simulation import MemoryTracker
from wagle.training.loop import TrainingData
from wagle.training.schedule import Plan
from wagle.unlearn.training import unlearn

SHAPE = {
    **{"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4},
    **{"num_attention_heads": 16, "vocab_size": 300},
}


def measure(ratio: float, gradients: str, moments: str = "float") -> float:
    """Bytes per weight at the peak of two steps."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).bfloat16()
    rows = [Encoded([5 + row] * 8, [5 + row] * 8) for row in range(2)]
    dataset = UnlearnDataset(
        [0, 1], [0, 1], encode_forget=rows.__getitem__, encode_retain=rows.__getitem__
    )
    mask = {n: BitMask.from_bool(torch.rand(p.shape) < ratio) for n, p in model.named_parameters()}
    options = {"batch_size": 1, "accumulation": 1, "num_epochs": 1, "whole_epochs": False}
    method = METHODS["GA+FT"]
    section = UnlearnSection(
        lr=1e-5,
        weight_decay=0.0,
        master_weights=True,
        gradients=gradients,
        moments=moments,
    )
    with MemoryTracker(model) as tracker:
        unlearn(
            model,
            TrainingData(dataset, dataset.order, PairCollator(dataset, 0)),
            method.load()(**{option.name: option.default for option in method.options}),
            mask,
            None,
            Plan.make(2, max_steps=2, **options),
            section,
            seed=0,
        )
    held = model_bytes(model) + sum(bits.bits.nbytes for bits in mask.values())
    return (held + tracker.peak.total()) / sum(p.numel() for p in model.parameters())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ratios", default="0.05,0.1,0.2,0.4,0.8,1")
    args = parser.parse_args()
    print("| ρ | whole | packed | packed, 8-bit moments |\n| ---: | ---: | ---: | ---: |")
    for ratio in map(float, args.ratios.split(",")):
        sizes = measure(ratio, "dense"), measure(ratio, "packed"), measure(ratio, "packed", "8bit")
        print(f"| {ratio:g} | " + " | ".join(f"{size:.2f}" for size in sizes) + " |", flush=True)


if __name__ == "__main__":
    main()
