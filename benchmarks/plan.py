"""Predicted against measured peak resident memory, for four random models and every phase.

    python benchmarks/plan.py [--model NAME] [--phase NAME]

Each measurement and each prediction runs in a process of its own, which this one, when it has
imported the program, splits off; the measurement on rows of random tokens, the prediction from the
model's configuration. Of two devices it is a process of two, over gloo, with a part of the model
each. What glibc keeps of memory that is free is given back, unless --kept; it is in no plan.
Linux only; at most 6 GB are used.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import socket
import tempfile
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wagle import ranks, shards
from wagle.catalogue import METHODS
from wagle.config import load_config
from wagle.config.keys import UnlearnSection
from wagle.dataset.encoding import IGNORED, Encoded
from wagle.dataset.pairing import PairCollator, UnlearnDataset
from wagle.metrics.likelihood import token_log_probs
from wagle.optim.bitmask import BitMask
from wagle.planning.memory import (
    Phase,
    Training,
    attribution_phase,
    reading_phase,
    share_of,
    training_phase,
)
from wagle.planning.resources import resident
from wagle.planning.simulation import BatchShape
from wagle.planning.skeleton import skeleton
from wagle.training.loop import TrainingData
from wagle.training.schedule import Plan
from wagle.unlearn.mask.gradients import cached_gradient_sums
from wagle.unlearn.training import unlearn

CPU = torch.device("cpu")
MODELS: dict[str, dict[str, Any]] = {
    "0.22B, float32": {
        **{"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12},
        **{"vocab_size": 32_000, "dtype": "float32", "rows": 1, "tokens": 8},
    },
    "0.18B, bfloat16, tied, vocabulary of 128k": {
        **{"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12},
        **{"vocab_size": 128_256, "dtype": "bfloat16", "rows": 1, "tokens": 8},
        "tie_word_embeddings": True,
    },
    "0.40B, bfloat16, shared keys": {
        **{"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 6},
        **{"vocab_size": 32_000, "dtype": "bfloat16", "rows": 1, "tokens": 8},
        "num_key_value_heads": 4,
    },
    "0.04B, float32, long rows": {
        **{"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
        **{"vocab_size": 16_000, "dtype": "float32", "rows": 1, "tokens": 256},
    },
}
PHASES: dict[str, dict[str, Any]] = {
    "attribution": {},
    "attribution, disk": {"offload": "disk"},
    "training, dense": {"gradients": "dense"},
    "training, ρ 0.4": {"ratio": 0.4, "gradients": "dense"},
    "training, ρ 0.1, packed": {"ratio": 0.1},
    "training, ρ 0.1, packed, one term": {"ratio": 0.1, "method": "FT", "max_grad_norm": 0.0},
    "training, ρ 0.1, packed, checkpointing": {"ratio": 0.1, "checkpointing": True},
    "training, ρ 0.1, packed, two devices": {"ratio": 0.1, "devices": 2},
    "evaluation": {},
}
GIVEN_BACK = 1 << 16  # bytes of a tensor that is given back when it is freed
EXAMPLES, STEPS = 3, 2
_M_MMAP_THRESHOLD = -3  # of mallopt


def configuration(name: str) -> LlamaConfig:
    """Of a model that is measured."""
    shape = {key: value for key, value in MODELS[name].items() if key not in ("rows", "tokens")}
    heads = {"num_attention_heads": shape["hidden_size"] // 64, "num_key_value_heads": None}
    return LlamaConfig(**{**heads, **shape})


def predict(name: str, phase: str) -> Phase:
    """What the planner says."""
    config, options = configuration(name), PHASES[phase]
    devices = options.get("devices", 1)
    rows, tokens = MODELS[name]["rows"], MODELS[name]["tokens"]
    batch = BatchShape(rows, tokens, rows * (tokens // 2))
    with skeleton(config, getattr(torch, MODELS[name]["dtype"])) as model:
        if phase.startswith("attribution"):
            offload = options.get("offload", "none")
            return attribution_phase(model, batch, offload=offload, sum_bytes=4, device=CPU)
        if phase == "evaluation":
            return reading_phase(model, phase, batch, masked=False)
        if options.get("checkpointing"):
            model.activation_checkpointing_enable()
        ratio = options.get("ratio")
        training = Training(
            terms=[[batch]] if options.get("method") == "FT" else [[batch], [batch]],
            shares={} if ratio is None else {name: ratio for name, _ in model.named_parameters()},
            masked=ratio is not None,
            packed=options.get("gradients", "packed") == "packed",
            clipped=options.get("max_grad_norm", 1.0) > 0,
            accumulation=1,
            masters=True,
        )
        planned = training_phase(model, replace(training, alone=devices == 1), CPU)
        return planned if devices == 1 else share_of(planned, model, devices)


def measure(name: str, phase: str, kept: bool, port: int, rank: int) -> int:
    """Peak resident bytes of the phase, in this process."""
    if not kept:
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, GIVEN_BACK)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, MODELS[name]["dtype"]))
    model = LlamaForCausalLM(configuration(name)).eval()
    torch.set_default_dtype(torch.float32)
    if (devices := PHASES[phase].get("devices", 1)) > 1:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "LOCAL_RANK": str(rank),
        }
        os.environ |= {"WORLD_SIZE": str(devices), "RANK": str(rank)}
        ranks.join(CPU)
        shards.shard(model)
    rows, tokens = MODELS[name]["rows"], MODELS[name]["tokens"]
    generator = torch.Generator().manual_seed(1)

    def encode(row: int) -> Encoded:
        ids = torch.randint(5, 10_000, (tokens,), generator=generator).tolist()
        return Encoded(ids, [IGNORED] * (tokens - tokens // 2) + ids[-(tokens // 2) :])

    examples = [encode(row) for row in range(EXAMPLES)]
    _start_counting()
    with tempfile.TemporaryDirectory() as folder:
        if phase.startswith("attribution"):
            section = UnlearnSection(
                attribution_batch_size=rows,
                attribution_offload=PHASES[phase].get("offload", "none"),
            )
            cached_gradient_sums(
                *(model, {"forget": examples}, section, Path(folder) / "sums"),
                batch_size=rows,
                pad_token_id=0,
            )
        elif phase == "evaluation":
            token_log_probs(model, examples, batch_size=rows, pad_token_id=0, description="reading")
        else:
            _train(model, encode, rows, PHASES[phase])
    return resident("VmHWM")


def _start_counting() -> None:
    """The peak counts from here, without what random numbers have left in the allocator."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _train(model: PreTrainedModel, encode, rows: int, options: dict[str, Any]) -> None:
    method, ratio = options.get("method", "GA+FT"), options.get("ratio")
    config = load_config(
        ["--overall.model_name", "random", "--unlearn.unlearn_method", method],
        prog="plan.py",
        description="",
    )
    objective = METHODS[method].load()(**config.method_params)
    numbers = range(EXAMPLES)
    dataset = UnlearnDataset(
        numbers, numbers, encode_forget=encode, encode_retain=encode, views=objective.views
    )
    mask = ratio and {
        name: BitMask.from_bool(torch.rand(p.shape, dtype=torch.float32) < ratio)
        for name, p in model.named_parameters()
    }
    _start_counting()
    section = UnlearnSection(
        lr=1e-5,
        master_weights=True,
        gradients=options.get("gradients", "packed"),
        max_grad_norm=options.get("max_grad_norm", 1.0),
        gradient_checkpointing=options.get("checkpointing", False),
    )
    plan = Plan.make(
        len(dataset),
        batch_size=rows,
        accumulation=ranks.size(),
        num_epochs=1,
        max_steps=STEPS,
        whole_epochs=False,
    )
    pairs = TrainingData(dataset, dataset.order, PairCollator(dataset, 0))
    unlearn(model, pairs, objective, mask, None, plan, section, seed=0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--phase", choices=PHASES)
    parser.add_argument("--kept", action="store_true", help="leave the allocator as it is")
    args = parser.parse_args()
    with get_context("fork").Pool(1) as pool:  # less than here, where files have been read
        program = pool.apply(resident, ("VmRSS",))
    print("| model | phase | predicted, MB | measured, MB | ratio | … without the program |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for phase in [args.phase] if args.phase else PHASES:
        for name in [args.model] if args.model else MODELS:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                task = (name, phase, args.kept, probe.getsockname()[1])
            devices = PHASES[phase].get("devices", 1)
            with get_context("fork").Pool(devices, maxtasksperchild=1) as pool:
                of_each = pool.starmap(measure, [(*task, rank) for rank in range(devices)], 1)
                measured = max(of_each)
                planned = pool.apply(predict, (name, phase)).total
            whole = program + planned
            print(
                f"| {name} | {phase} | {whole / 1e6:.0f} | {measured / 1e6:.0f} "
                f"| {whole / measured:.2f} | {planned / (measured - program):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
