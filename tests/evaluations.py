"""Configurations of evaluations that need no hub, and the rows that they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import sentence_model
from wagle.config import load_config
from wagle.dataset.sources import load_rows
from wagle.metrics.benchmarks import benchmark_of
from wagle.shipped import CHECKOUT

DATA = CHECKOUT / "tests" / "fixtures" / "data"
LOCAL_TASKS = {
    "evaluation.task_names.bio": "demo_wmdp_lives",
    "evaluation.task_names.chem": "demo_wmdp_craft",
    "evaluation.task_names.cyber": "demo_wmdp_works",
    "evaluation.task_names.mmlu": "demo_mmlu",
    "evaluation.task_names.perplexity": "demo_text",
    "evaluation.task_names.zero_shot": "demo_forget,demo_retain",
    "evaluation.task_names.truthfulqa": "demo_mmlu_facts",
}


def configure(**changes):
    values = {
        "overall.model_name": "not used",
        "evaluation.limit": 2,
        "evaluation.batch_size": 3,
        "evaluation.sentence_model": sentence_model(),
        **LOCAL_TASKS,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    argv = [f"--{key}={value}" for key, value in values.items()]
    return load_config(argv, prog="", description="")


def rows(name):
    data_dir = None if name.startswith("Demo_") else DATA
    return load_rows(name, data_dir=data_dir, cache_dir=Path(".cache"))


def check_rows(documents, config, results):
    """What an evaluation has found follows from the rows that it has kept."""
    found = benchmark_of(config).recount(documents.get, config).as_they_are()
    assert found
    assert found == pytest.approx({key: results[key] for key in found})
    return found


TOFU = {
    "unlearn__task_name": "tofu",
    "dataset__forget_dataset_name": "Demo_forget10",
    "dataset__retain_dataset_name": "Demo_retain90",
}
