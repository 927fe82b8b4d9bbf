"""What lm-eval tasks tell of a model: perplexity, general accuracy, and whatever else is asked for.

The numbers that several benchmarks have in common, and the parts that measure them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from wagle.errors import WagleError
from wagle.metrics.benchmark import Metric, Numbers

if TYPE_CHECKING:
    from wagle.config import UnlearnConfig
    from wagle.model.evaluation_context import EvaluationContext

PERPLEXITY = Metric(
    "PPL",
    "Perplexity per word of ordinary text: how much running text surprises it.",
    -1,
    group="UT",
    digits=2,
)
ZERO_SHOT = Metric(
    "UT zero-shot acc",
    "Mean share of correct answers in general tasks, no examples given.",
    group="UT",
    largest=1,
)
TRUTHFULQA = Metric(
    "UT TruthfulQA",
    "Share of truthful answers to questions that invite falsehoods.",
    group="UT",
    largest=1,
)
UTILITY = (PERPLEXITY, ZERO_SHOT, TRUTHFULQA)
UTILITY_ROLES = ("perplexity", "zero_shot", "truthfulqa")
"""The roles that :func:`measure_perplexity` and :func:`measure_few_shots` run."""

_SHARE = "Share of correct answers in the lm-eval task {0}."
_PERPLEXITY = "Perplexity in the lm-eval task {0}."
FURTHER = (
    *(Metric(f"lm_eval {{}} {name}", _SHARE, 0) for name in ("acc", "acc_norm")),
    *(Metric(f"lm_eval {{}} {kind}perplexity", _PERPLEXITY, 0) for kind in ("", "word_", "byte_")),
    Metric("lm_eval {} {}", "From the lm-eval task {0}.", 0),
)
"""Of the tasks of ``evaluation.tasks``; the last is for whatever has no line of its own."""


def task_names(config: UnlearnConfig, *roles: str) -> list[str]:
    """The lm-eval tasks that play these roles, keys of ``evaluation.task_names``."""
    chosen = [getattr(config.evaluation.task_names, role) for role in roles]
    return [name for names in chosen for name in ([names] if isinstance(names, str) else names)]


def measure_perplexity(context: EvaluationContext) -> Numbers:
    """Of running text: ``ppl.json``."""
    return {
        PERPLEXITY: Roles(context, "ppl.json", "perplexity").mean("perplexity", "word_perplexity")
    }


def measure_few_shots(context: EvaluationContext) -> Numbers:
    """What it knows in general: ``few_shots.json``."""
    results = Roles(context, "few_shots.json", "zero_shot", "truthfulqa")
    return {ZERO_SHOT: results.mean("zero_shot"), TRUTHFULQA: results.mean("truthfulqa")}


def measure_further(context: EvaluationContext) -> Numbers:
    """The tasks of ``evaluation.tasks``: ``lm_eval.json``."""
    from wagle.metrics.harness import own_metrics

    names = context.config.evaluation.tasks or []
    results = run_tasks(context, "lm_eval.json", names)
    return {
        _further(task, metric): value
        for name in names
        for task, metrics in own_metrics(results, name).items()
        for metric, value in metrics.items()
        if metric != "sample_len" and "stderr" not in metric
    }


def _further(task: str, metric: str) -> Metric:
    *known, other = FURTHER
    found = (family.of(task) for family in known)
    key = f"lm_eval {task} {metric}"
    return next((member for member in found if member.key == key), other.of(task, metric))


class Roles:
    """Results of the lm-eval tasks that play certain roles, run at once.

    Args:
        document: where their numbers are as soon as each has finished.
        roles: keys of ``evaluation.task_names``.

    Raises:
        WagleError: some have failed; the message names them, and the others have run.
    """

    def __init__(self, context: EvaluationContext, document: str, *roles: str) -> None:
        self._config = context.config
        self._results = run_tasks(context, document, task_names(context.config, *roles))

    def mean(self, role: str, metric: str = "acc") -> float | str:
        """Over the tasks of a role, as :func:`wagle.metrics.harness.mean_of`."""
        from wagle.metrics.harness import mean_of

        return mean_of(self._results, task_names(self._config, role), metric)


def run_tasks(context: EvaluationContext, document: str, names: Sequence[str]) -> dict[str, Any]:
    """Run lm-eval tasks; their numbers are in the document as soon as each has finished.

    Raises:
        WagleError: some have failed; the message names them, and the others have run.
    """
    results, failures = {}, []
    for name in dict.fromkeys(names):
        try:
            results[name] = context.measured.get(f"lm_eval {name}", partial(_run, context, name))
            context.save(document, results)
        except WagleError as error:
            failures.append(str(error))
    if failures:
        raise WagleError("; ".join(failures))
    return results


def _run(context: EvaluationContext, name: str) -> Mapping[str, Mapping[str, float | str]]:
    from wagle.metrics.harness import run_task

    return run_task(
        context.model,
        context.tokenizer,
        name,
        batch_size=context.batch_size,
        limit=context.limit,
    )
