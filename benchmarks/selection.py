"""Selecting the k largest of N scores: time and extra memory against sorting twice.

    python benchmarks/selection.py [--scores 134515008]

The baseline sorts all scores and then their order, which gives every score its rank, and compares
ranks with k, as the published generator does. Both run in processes of their own on the same
scores; extra memory is the peak resident memory above what it was when the scores had been made
(and a few scores been ranked, so that the code is loaded). The masks are part of it: one byte per
score and ratio in the baseline, one bit in ours.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from wagle.unlearn.mask.scores import CHUNK
from wagle.unlearn.mask.selection import select_top

TENSORS = 8
RATIOS = ([0.8], [0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0])


def make_scores(count: int, kind: str) -> dict[str, torch.Tensor]:
    """``count`` float32 scores in a few tensors: uniform, or heavy-tailed as gradients are."""
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for index in range(TENSORS):
        size = count // TENSORS + (count % TENSORS if index == 0 else 0)
        tensor = torch.empty(size)
        if kind == "uniform":
            tensor.uniform_(generator=generator)
        else:
            tensor.normal_(generator=generator).pow_(3).abs_().mul_(1e-6)
        scores[f"layers.{index}.weight"] = tensor
    return scores


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sort_twice(scores: dict[str, torch.Tensor], ratios: list[float]) -> int:
    """The baseline; returns how many scores the first ratio selects."""
    flat = torch.cat(list(scores.values()))
    ranks = torch.argsort(torch.argsort(flat, descending=True))
    masks = [ranks < int(len(flat) * ratio) for ratio in ratios]
    return int(masks[0].sum())


def select(scores: dict[str, torch.Tensor], ratios: list[float]) -> int:
    """Ours; returns how many scores the first ratio selects."""

    def stream():
        for name, tensor in scores.items():
            for start in range(0, tensor.numel(), CHUNK):
                yield name, start, partial(tensor.__getitem__, slice(start, start + CHUNK))

    shapes = {name: tensor.shape for name, tensor in scores.items()}
    masks = select_top(stream, shapes, ratios)
    return sum(bits.count() for bits in masks[ratios[0]].values())


def run(case: str, count: int, kind: str, ratios: list[float]) -> tuple[float, float, int]:
    """One measurement: seconds, extra bytes per score, how many scores the first ratio selects."""
    method = select if case == "ours" else sort_twice
    scores = make_scores(count, kind)
    method(make_scores(100_000, kind), ratios)
    before, start = peak_bytes(), time.perf_counter()
    selected = method(scores, ratios)
    seconds = time.perf_counter() - start
    return seconds, (peak_bytes() - before) / count, selected


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", type=int, default=134_515_008)
    count = parser.parse_args().scores
    context = multiprocessing.get_context("spawn")
    print(f"{count:,} scores, {torch.get_num_threads()} threads")
    print(
        f"{'scores':14}{'ratios':>7}{'case':>10}{'seconds':>9}{'speed-up':>10}{'bytes/score':>13}"
    )
    for kind in ("uniform", "heavy-tailed"):
        for ratios in RATIOS:
            outcomes = {}
            for case in ("baseline", "ours"):
                with ProcessPoolExecutor(1, mp_context=context) as process:
                    outcomes[case] = process.submit(run, case, count, kind, ratios).result()
            assert outcomes["ours"][2] == outcomes["baseline"][2] == int(count * ratios[0])
            for case, (seconds, extra, _) in outcomes.items():
                gain = outcomes["baseline"][0] / seconds
                print(
                    f"{kind:14}{len(ratios):7}{case:>10}{seconds:9.2f}{gain:10.1f}{extra:13.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
