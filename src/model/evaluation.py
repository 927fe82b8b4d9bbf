"""Running a benchmark: checked before training, then part by part."""

from __future__ import annotations

from functools import partial

from transformers import PreTrainedModel

from wagle.config import UnlearnConfig
from wagle.errors import WagleError
from wagle.metrics.benchmark import Benchmark, Loader, Metric, Part
from wagle.metrics.benchmarks import benchmark_of, find_metric
from wagle.metrics.harness import INFINITE, find_tasks
from wagle.metrics.utility import measure_further, task_names
from wagle.model.evaluation_context import EvaluationContext, asked_rows
from wagle.model.reading import learned_positions
from wagle.terminal import say


def check_evaluation(config: UnlearnConfig, load_rows: Loader) -> None:
    """Find out what is wrong with the evaluation before the model has been trained for it.

    Args:
        load_rows: rows of a data set by name.

    Raises:
        ConfigError, WagleError: with what is wrong.
    """
    benchmark = benchmark_of(config)
    benchmark.check(config, asked_rows(config, load_rows))
    names = [*task_names(config, *benchmark.lm_eval_roles), *(config.evaluation.tasks or [])]
    if names:
        find_tasks(names)


def check_length(config: UnlearnConfig, model: PreTrainedModel) -> None:
    """Find out whether the model can read what the evaluation asks, before it has been trained.

    Raises:
        WagleError: it has learned fewer positions than that.
    """
    benchmark = benchmark_of(config)
    positions = learned_positions(model, benchmark.longest)
    if positions is not None:
        raise WagleError(
            f"unlearn.task_name {benchmark.name} has the model read and write texts of up to "
            f"{benchmark.longest} tokens, and it has learned no more than {positions} positions; "
            "take a model for longer texts, or another evaluation"
        )


def evaluate(context: EvaluationContext) -> dict[str, float | str]:
    """Run the task's evaluation and the lm-eval tasks asked for; return the flat summary.

    Raises:
        WagleError: a part has failed; the others have run, and what they found is kept.
    """
    benchmark = benchmark_of(context.config)
    parts = dict(benchmark.parts)
    if context.config.evaluation.tasks:
        parts["lm_eval"] = measure_further
    results: dict[str, float | str] = {}
    for name, part in parts.items():
        measure = partial(_measure, benchmark, part, context)
        results |= context.measured.attempt(name, measure) or {}
    for name, value in results.items():
        metric = find_metric(benchmark, name)
        if metric and isinstance(value, int | float) and (remark := metric.remark(value)):
            say(f"note: {remark}")
    context.measured.check()
    return results


def _measure(
    benchmark: Benchmark, part: Part, context: EvaluationContext
) -> dict[str, float | str]:
    """A part's numbers by their names in the results.

    Raises:
        WagleError: it returns one that the benchmark does not have, or that is no number.
    """
    numbers = part(context)
    for metric, value in numbers.items():
        if not isinstance(metric, Metric) or find_metric(benchmark, metric.key) is None:
            raise WagleError(f"{metric!r} is none of the metrics of the benchmark {benchmark.name}")
        if not isinstance(value, int | float) and value != INFINITE:
            raise WagleError(f"{metric.key} is {value!r}, which is no number")
    return {metric.key: value for metric, value in numbers.items()}
