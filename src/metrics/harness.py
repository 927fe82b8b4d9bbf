"""lm-evaluation-harness tasks (Gao et al.), run in this process on the model in memory.

Our own task files lie in ``lm-evaluation-harness/``; those of the package come with it.
"""

from __future__ import annotations

import difflib
import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.errors import ConfigError, WagleError
from wagle.hub import connect_to_hub
from wagle.model.reading import evaluating
from wagle.shipped import shipped

OWN_TASKS = shipped("lm-evaluation-harness")
# Of metrics without a formula for their standard error. lm-eval's own 100,000 take minutes, and
# processes.
_BOOTSTRAP_SAMPLES = 1000

INFINITE = "inf"
"""Stands in documents for a number beyond float64, which JSON cannot express."""

TaskResults = Mapping[str, Mapping[str, float | str]]
"""Metrics by the name of a task or group; ``INFINITE`` for a perplexity that overflows."""


@cache
def _task_manager(packaged: bool) -> Any:
    """Knows our tasks and, if asked, those of the package: reading their index takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(OWN_TASKS), include_defaults=packaged)


def find_tasks(names: Sequence[str]) -> Any:
    """An lm-eval ``TaskManager`` that knows these tasks.

    Args:
        names: tasks, groups or tags, or paths of task files.

    Raises:
        ConfigError: there is no task of some name; the message names the nearest one.
    """
    for packaged in (False, True):
        manager = _task_manager(packaged)
        known = set(manager.all_tasks)
        unknown = [name for name in names if name not in known and not Path(name).is_file()]
        if not unknown:
            return manager
    near = [difflib.get_close_matches(name, known, 1) for name in unknown]
    hints = [f" (did you mean {names[0]}?)" if names else "" for names in near]
    raise ConfigError(
        f"lm-eval knows no task {', '.join(map(''.join, zip(unknown, hints, strict=True)))}; tasks "
        f"are those of the package lm-eval, those of {OWN_TASKS.name}/, and paths of task files"
    )


def run_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    *,
    batch_size: int,
    limit: int | None = None,
) -> TaskResults:
    """Run one lm-eval task.

    Args:
        name: of a task, group or tag, or path of a task file.
        batch_size: sequences in a forward pass.
        limit: the first documents of each task only.

    Returns:
        By the names of the tasks that it stands for and its own: the metrics, as ``acc`` or
        ``acc_stderr``; metrics of an answer filter as ``exact_match strict-match``.

    Raises:
        ConfigError: there is no such task.
        WagleError: it fails; the message names it.
    """
    manager = find_tasks([name])
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    connect_to_hub()
    try:
        with evaluating(model), _infinite_perplexities():
            output = _evaluate(model, tokenizer, manager, name, batch_size, limit)
    except Exception as error:  # whatever a task's own code raises, its name must be known
        raise WagleError(
            f"the lm-eval task {name} failed: {type(error).__name__}: {error}"
        ) from error
    return _metrics(name, output)


def _evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    manager: Any,
    name: str,
    batch_size: int,
    limit: int | None,
) -> Mapping[str, Mapping[str, Any]]:
    """What ``lm_eval.simple_evaluate`` does, without its survey of the machine (seconds a task)."""
    from lm_eval import evaluate
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    from wagle.metrics.harness_model import CountingModel

    loaded = manager.load([name])
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return evaluate(
        CountingModel(model, tokenizer, batch_size=batch_size, description=name),
        loaded,
        limit=limit,
        bootstrap_iters=_BOOTSTRAP_SAMPLES,
        log_samples=False,
    )["results"]


@contextmanager
def _infinite_perplexities() -> Iterator[None]:
    """Within, lm-eval takes a perplexity that overflows for infinite instead of failing."""
    from lm_eval.api import metrics

    def exp(exponent: float) -> float:
        try:
            return math.exp(exponent)
        except OverflowError:
            return math.inf

    metrics.math = SimpleNamespace(**{**vars(math), "exp": exp})
    try:
        yield
    finally:
        metrics.math = math


def _metrics(name: str, results: Mapping[str, Mapping[str, Any]]) -> TaskResults:
    """What lm-eval calls ``acc,none``, without the empty filter; without remarks."""
    metrics: dict[str, dict[str, float | str]] = {}
    for task, values in results.items():
        numbers: dict[str, float | str] = {
            key.removesuffix(",none").replace(",", " "): value
            for key, value in values.items()
            if isinstance(value, (int, float))
        }
        infinite = [key for key, value in numbers.items() if value == math.inf]
        for key in infinite:
            numbers[key] = INFINITE
            numbers.pop(key.replace("perplexity", "perplexity_stderr"), None)  # it has none
        wrong = [key for key, value in numbers.items() if not math.isfinite(float(value))]
        if wrong := [key for key in wrong if key not in infinite]:
            raise WagleError(
                f"the lm-eval task {name} failed: {task} has no number for {', '.join(wrong)}"
            )
        metrics[task] = numbers
    return metrics


def own_metrics(results: Mapping[str, TaskResults], name: str) -> TaskResults:
    """The numbers of what was asked for, from what :func:`run_task` returns.

    A tag has none of its own: then those of its tasks.
    """
    tasks = results[name]
    return {name: tasks[name]} if name in tasks else tasks


def mean_of(results: Mapping[str, TaskResults], names: Sequence[str], metric: str) -> float | str:
    """The mean of a metric over what was asked for; ``INFINITE`` if one of the numbers is.

    Raises:
        WagleError: one of them does not have it.
    """
    means = []
    for name in names:
        tasks = own_metrics(results, name)
        for task, metrics in tasks.items():
            if metric not in metrics:
                offered = ", ".join(metrics)
                raise WagleError(f"the lm-eval task {task} has no {metric}; it has {offered}")
        means.append(statistics.fmean(float(metrics[metric]) for metrics in tasks.values()))
    mean = statistics.fmean(means)
    return mean if math.isfinite(mean) else INFINITE
