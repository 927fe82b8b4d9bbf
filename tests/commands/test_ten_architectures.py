"""The main command, whole, on ten architectures made tiny: mask, training, evaluation."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.architectures import ARCHITECTURES
from wagle.commands import unlearn as unlearn_model
from wagle.unlearn.mask.file import load_mask

TEN = (
    *("llama, tied", "qwen2", "gemma2, window", "phi", "mistral, window"),
    *("gpt2", "gpt_neox", "opt", "olmo2", "qwen2_moe"),
)
ADAPTED = {"llama, tied": "q_proj", "phi3, window": "qkv_proj", "gpt2": "c_attn"}


@pytest.fixture
def run(tmp_path, options, model_folder):
    """A function that unlearns with a tiny model and gives its weights before and after."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    for part, words in {"forget": ("Ada", "Bo", "Cy", "Di"), "retain": ("Ed", "Flo")}.items():
        rows = [{"question": f"Who is {word}?", "answer": f"{word} it is."} for word in words]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(name, **changes):
        kind, given = ARCHITECTURES[name]
        # Rows to spare: transformers reads any tokenizer of a Qwen2 as its own, with a token more.
        sizes = {"vocab_size": len(tokenizer) + 4}
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**given, **sizes})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        given = {
            "overall.model_name": tmp_path / "model",
            "unlearn.task_name": "own",
            "dataset.forget_ratio": 1.0,
            "dataset.batch_size": 2,
            "evaluation.limit": 1,
            "evaluation.batch_size": 4,
            "dataset.forget_dataset_name": "forget.jsonl",
            "dataset.retain_dataset_name": "retain.jsonl",
            "dataset.template": "question_answer",
        }
        assert unlearn_model.main(options({**given, **changes})) == 0
        folder = tmp_path / "runs" / "a"
        after = AutoModelForCausalLM.from_pretrained(folder / "checkpoints")
        manifest = json.loads((folder / "manifest.json").read_text())
        results = json.loads((folder / "results.json").read_text())
        assert 0 < results["UT Prob"] < 1
        return dict(model.named_parameters()), dict(after.named_parameters()), manifest

    return run


@pytest.mark.parametrize("name", TEN)
def test_unlearning_with_a_mask(name, run, tmp_path):
    before, after, manifest = run(name)
    assert manifest["certificate"]["holds"]
    shapes = {name: parameter.shape for name, parameter in before.items()}
    mask = load_mask(tmp_path / "mask" / "tiny_0.4.pt", shapes)
    weights = sum(parameter.numel() for parameter in before.values())
    assert sum(part.count() for part in mask.values()) == int(0.4 * weights)
    changed = 0
    for part, selected in mask.items():
        moved = before[part] != after[part]
        assert not (moved & ~selected.to_bool()).any(), part
        changed += int(moved.sum())
    assert changed > 0.5 * int(0.4 * weights)


@pytest.mark.parametrize("name", ADAPTED)
def test_unlearning_with_adapters(name, run):
    before, after, manifest = run(name, **{"unlearn.use_lora": "true", "unlearn.mask_path": None})
    assert ADAPTED[name] in manifest["resolved"]["unlearn.lora_targets"]
    for part in before:
        adapted = any(
            f".{target}.weight" in part for target in manifest["resolved"]["unlearn.lora_targets"]
        )
        assert torch.equal(before[part], after[part]) != adapted, part
