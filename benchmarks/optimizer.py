"""Time and state size of the masked AdamW step, against torch's dense fused AdamW.

The weights have the shapes of SmolLM2-135M, random masks select a fraction ρ of each tensor, and
the dense and the masked steps take turns, so that a busy machine slows both alike.

    python benchmarks/optimizer.py [--rounds 9] [--dtype float32]
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wagle.optim.bitmask import BitMask
from wagle.optim.masked_adamw import MaskedAdamW

RATIOS = (0.1, 0.4, 0.8, 1.0)
HYPER_PARAMETERS = {"lr": 1e-5, "weight_decay": 0.01}


def smollm2_135m_shapes() -> list[torch.Size]:
    """Shapes of its 134.5M parameters; the tied embedding counts once."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        return [parameter.shape for parameter in LlamaForCausalLM(config).parameters()]


def make_parameters(shapes: list[torch.Size], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Random weights with random gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in shapes:
        parameter = torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator).to(dtype))
        parameter.grad = 0.01 * torch.randn(shape, generator=generator).to(dtype)
        parameters.append(parameter)
    return parameters


def random_masks(
    parameters: list[torch.nn.Parameter], ratio: float
) -> dict[torch.nn.Parameter, BitMask]:
    """Masks that select each weight with probability ``ratio``."""
    generator = torch.Generator().manual_seed(1)
    return {
        p: BitMask.from_bool(torch.rand(p.shape, generator=generator) < ratio) for p in parameters
    }


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state."""
    tensors = (v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v))
    return sum(tensor.nbytes for tensor in tensors)


def seconds(optimizer: torch.optim.Optimizer) -> float:
    """Wall time of one step."""
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="steps timed of each kind")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()

    parameters = make_parameters(smollm2_135m_shapes(), getattr(torch, arguments.dtype))
    weights = sum(p.numel() for p in parameters)
    dense = torch.optim.AdamW(parameters, fused=True, **HYPER_PARAMETERS)
    dense.step()
    dense_bytes = state_bytes(dense)
    print(
        f"{weights / 1e6:.1f}M weights in {arguments.dtype}, {torch.get_num_threads()} threads, "
        f"medians of {arguments.rounds} rounds; dense AdamW keeps {dense_bytes / 1e6:.0f} MB"
    )
    print("    ρ   dense ms  masked ms  ratio of medians (of minima)   state MB  of ρ·dense + mask")
    for ratio in RATIOS:
        masks = random_masks(parameters, ratio)
        mask_bytes = sum(mask.bits.nbytes for mask in masks.values())
        masked = MaskedAdamW(parameters, masks=masks, **HYPER_PARAMETERS)
        masked.step()
        times = [(seconds(dense), seconds(masked)) for _ in range(arguments.rounds)]
        dense_times, masked_times = zip(*times, strict=True)
        held = state_bytes(masked) + mask_bytes
        print(
            f"  {ratio:.1f} {1e3 * median(dense_times):10.1f} {1e3 * median(masked_times):10.1f} "
            f"{median(masked_times) / median(dense_times):10.2f} "
            f"({min(masked_times) / min(dense_times):.2f}) {held / 1e6:22.0f} "
            f"{held / (ratio * dense_bytes + mask_bytes):14.4f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
