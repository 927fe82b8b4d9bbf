"""Running a benchmark: checked before training, then part by part."""

from __future__ import annotations

from functools import partial

from wagle.config import Config
from wagle.metrics.benchmark import Loader, Part
from wagle.metrics.benchmarks import benchmark_of
from wagle.metrics.harness import find_tasks
from wagle.metrics.utility import measure_further, task_names
from wagle.model.evaluation_context import EvaluationContext, asked_rows


def check_evaluation(config: Config, load_rows: Loader) -> None:
    """Find out what is wrong with the evaluation before the model has been trained for it.

    Args:
        load_rows: rows of a data set by name.

    Raises:
        ConfigError, WagleError: with what is wrong.
    """
    benchmark = benchmark_of(config)
    benchmark.check(config, asked_rows(config, load_rows))
    names = [*task_names(config, *benchmark.lm_eval_roles), *(config["evaluation.tasks"] or [])]
    if names:
        find_tasks(names)


def evaluate(context: EvaluationContext) -> dict[str, float | str]:
    """Run the task's evaluation and the lm-eval tasks asked for; return the flat summary.

    Raises:
        WagleError: a part has failed; the others have run, and what they found is kept.
    """
    parts = dict(benchmark_of(context.config).parts)
    if context.config["evaluation.tasks"]:
        parts["lm_eval"] = measure_further
    results: dict[str, float | str] = {}
    for name, part in parts.items():
        results |= context.measured.attempt(name, partial(_measure, part, context)) or {}
    context.measured.check()
    return results


def _measure(part: Part, context: EvaluationContext) -> dict[str, float | str]:
    """Its numbers by their names in the results."""
    return {metric.key: value for metric, value in part(context).items()}
