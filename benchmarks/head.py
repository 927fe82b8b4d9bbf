"""Memory and time of a training step with a wide vocabulary: all logits at once, and as it is.

    python benchmarks/head.py [--steps 2]

A random float32 Llama with 128,256 tokens in its vocabulary (tied; two layers, 256 wide) is trained
on batches of four pairs of rows of 512 tokens, two fifths of them labelled. "All at once" is the
same program with the logits of all tokens in one piece. Each case runs in a process of its own; the
peak is that of resident memory above what was resident with the model loaded, so gradients, moments
and, for KL, the original weights count. Seconds are those of all CPUs together, which other work on
the machine hardly touches. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VOCABULARY, WIDTH, LAYERS = 128_256, 256, 2
BATCH, LENGTH, LABELLED = 4, 512, 205
METHOD_NAMES = ("GA+FT", "NPO+FT", "KL")


def resident(field: str) -> int:
    """Resident memory of this process, ``VmRSS``, or its peak, ``VmHWM``, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def build_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def build_dataset(batches: int) -> Any:
    """Pairs of rows of random tokens."""
    import torch

    from wagle.dataset.encoding import IGNORED, Encoded
    from wagle.dataset.pairing import FORGET, RETAIN, UnlearnDataset

    generator = torch.Generator().manual_seed(1)

    def row() -> dict[str, Encoded]:
        ids = torch.randint(3, VOCABULARY, (LENGTH,), generator=generator).tolist()
        prompt = LENGTH - LABELLED
        return {"example": Encoded(ids, [IGNORED] * prompt + ids[prompt:])}

    forget, retain = ([row() for _ in range(BATCH * batches)] for _ in range(2))
    return UnlearnDataset(
        forget,
        retain,
        encode_forget=lambda row: row["example"],
        encode_retain=lambda row: row["example"],
        views=(FORGET, RETAIN),
    )


def run(method: str, steps: int, *, at_once: bool) -> dict[str, float]:
    """One case in this process."""
    import torch

    from wagle.catalogue import METHODS
    from wagle.config.keys import UnlearnSection
    from wagle.dataset.pairing import PairCollator
    from wagle.model import head
    from wagle.training.loop import TrainingData
    from wagle.training.schedule import Plan
    from wagle.unlearn.reference import SwappedWeights
    from wagle.unlearn.training import unlearn

    if at_once:
        head.Head.of = classmethod(lambda cls, model: cls(model, separate=False))
        head.CHUNK_BYTES = 1 << 60
    model = build_model()
    dataset = build_dataset(steps)
    options = {option.name: option.default for option in METHODS[method].options}
    objective = METHODS[method].load()(**{**options, "gamma": 1.0})
    for view in objective.reference_losses:  # any will do
        dataset.reference_losses[view] = torch.full((len(dataset),), math.log(VOCABULARY))
    reference = SwappedWeights(model, None) if objective.needs_reference_model else None
    plan = Plan.make(
        len(dataset), num_epochs=1, batch_size=BATCH, accumulation=1, whole_epochs=True
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    loaded = resident("VmRSS")
    start = time.process_time()
    rows = TrainingData(dataset, dataset.order, PairCollator(dataset, 0))
    section = UnlearnSection(lr=1e-5)
    log = unlearn(model, rows, objective, None, reference, plan, section, seed=0)
    return {
        "bytes": resident("VmHWM") - loaded,
        "seconds": (time.process_time() - start) / steps,
        "loss": log[-1]["train_loss"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2, help="steps of each case")
    parser.add_argument("--case", nargs=2, metavar=("METHOD", "WAY"), help="one, in this process")
    arguments = parser.parse_args()
    import torch

    if arguments.case is not None:
        method, way = arguments.case
        print(json.dumps(run(method, arguments.steps, at_once=way == "at-once")))
        return 0
    print(
        f"vocabulary {VOCABULARY}; a step reads {BATCH} + {BATCH} rows of {LENGTH} tokens, "
        f"{LABELLED} of them labelled; {torch.get_num_threads()} threads"
    )
    print("method   GiB at once     now  share  CPU s at once     now  share   loss")
    for method in METHOD_NAMES:
        found = []
        for way in ("at-once", "now"):
            command = [sys.executable, __file__, "--steps", str(arguments.steps)]
            done = subprocess.run(
                [*command, "--case", method, way], capture_output=True, text=True, check=True
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
        before, now = found
        print(
            f"{method:8} {before['bytes'] / 2**30:11.2f} {now['bytes'] / 2**30:7.2f} "
            f"{now['bytes'] / before['bytes']:6.2f} {before['seconds']:14.1f} "
            f"{now['seconds']:7.1f} {now['seconds'] / before['seconds']:6.2f}   "
            f"{before['loss']:.6f} {now['loss']:.6f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
