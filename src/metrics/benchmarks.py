"""The benchmark that a configuration runs, and what the numbers of its results are."""

from __future__ import annotations

from wagle.catalogue import BENCHMARKS
from wagle.metrics.benchmark import Benchmark, Metric, Settings
from wagle.metrics.utility import FURTHER


def benchmark_of(config: Settings) -> Benchmark:
    """The benchmark of ``unlearn.task_name``, as the other settings have it."""
    benchmark = BENCHMARKS[config["unlearn.task_name"]].load()
    return benchmark.variant(config) if benchmark.variant else benchmark


def find_metric(benchmark: Benchmark, key: str) -> Metric | None:
    """The number of that name in ``results.json``; ``None`` where nobody has explained it."""
    found = (metric.called(key) for metric in (*benchmark.metrics, *FURTHER))
    return next((metric for metric in found if metric), None)
