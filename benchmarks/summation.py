"""How many mask bits are wrong when gradients are summed in bfloat16, as published.

    python benchmarks/summation.py --model files/models/demo_llama

A bfloat16 model runs over 400 forget and 400 retain rows of the embedded benchmark, one row a
batch. The same gradients are summed in float64 (the truth), in float32 (as this program does) and
in bfloat16 (as published: late batches are rounded away), and the resulting WAGLE masks compared.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from wagle.dataset.encoding import pad_batch
from wagle.dataset.pairing import FORGET, RETAIN, UnlearnDataset
from wagle.dataset.sources import load_rows, row_encoder
from wagle.dataset.templates import TEMPLATES, read_saved_template
from wagle.model.loading import load_model
from wagle.unlearn.mask.selection import select_top
from wagle.unlearn.objectives.losses import cross_entropy

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
MU, ACCUMULATION = 1e-6, 4


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a model fine-tuned on the benchmark")
    name = parser.parse_args().model
    cpu, cache = torch.device("cpu"), Path(".cache")
    model, tokenizer = load_model(name, dtype=torch.bfloat16, device=cpu, cache_dir=cache)
    template = TEMPLATES[read_saved_template(Path(name))["template"]]
    encode = row_encoder("Demo_full", tokenizer, template)
    full = load_rows("Demo_full", data_dir=None, cache_dir=cache)
    dataset = UnlearnDataset(full, full, encode_forget=encode, encode_retain=encode)
    sums = {
        (view, dtype): {
            n: torch.zeros_like(p, dtype=DTYPES[dtype]) for n, p in model.named_parameters()
        }
        for view in (FORGET, RETAIN)
        for dtype in DTYPES
    }
    for index in range(len(dataset)):
        for view in (FORGET, RETAIN):
            model.zero_grad()
            batch = pad_batch([dataset.example(view, (0, index))], tokenizer.pad_token_id)
            cross_entropy(model, batch).backward()
            for parameter_name, parameter in model.named_parameters():
                for dtype, kind in DTYPES.items():
                    sums[view, dtype][parameter_name] += parameter.grad.to(kind)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    ratios = [0.1, 0.4, 0.8, 0.95]
    masks = {}
    for dtype in DTYPES:

        def stream(dtype=dtype):
            for n, p in model.named_parameters():
                forget, retain = (
                    sums[v, dtype][n].double() / ACCUMULATION for v in (FORGET, RETAIN)
                )
                scores = ((p.detach().double() - retain / MU) * forget).abs().reshape(-1)
                yield n, 0, partial(scores.__getitem__, ...)

        masks[dtype] = select_top(stream, shapes, ratios)
    total = sum(shape.numel() for shape in shapes.values())
    print(f"{len(dataset)} + {len(dataset)} rows, {total:,} weights; mask bits unlike float64's")
    print(f"{'ratio':>6}{'float32':>22}{'bfloat16':>22}")
    for ratio in ratios:
        cells = []
        for dtype in ("float32", "bfloat16"):
            wrong = sum(
                int((masks[dtype][ratio][n].to_bool() ^ masks["float64"][ratio][n].to_bool()).sum())
                for n in shapes
            )
            cells.append(f"{wrong:,} ({wrong / total:.3%})")
        print(f"{ratio:6}{cells[0]:>22}{cells[1]:>22}")


if __name__ == "__main__":
    main()
