"""The benchmarks by the names that ``unlearn.task_name`` gives them."""

from __future__ import annotations

from importlib import import_module

from wagle.metrics.benchmark import Benchmark, Metric, Settings
from wagle.metrics.utility import FURTHER

BENCHMARKS = {
    "tofu": "wagle.metrics.tofu_benchmark:TOFU",
    "wmdp": "wagle.metrics.wmdp:WMDP",
    "copyright": "wagle.metrics.copyright:COPYRIGHT",
    "toxic": "wagle.metrics.toxicity:TOXICITY",
}
"""Where each stands, as ``module:object``."""

NO_BENCHMARK = Benchmark("none", "", (), {})


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name."""
    if name == NO_BENCHMARK.name:
        return NO_BENCHMARK
    module, _, attribute = BENCHMARKS[name].partition(":")
    return getattr(import_module(module), attribute)


def benchmark_of(config: Settings) -> Benchmark:
    """The benchmark that a configuration runs, as its settings have it."""
    benchmark = find_benchmark(config["unlearn.task_name"])
    return benchmark.variant(config) if benchmark.variant else benchmark


def find_metric(benchmark: Benchmark, key: str) -> Metric | None:
    """The number of that name in ``results.json``; ``None`` where nobody has explained it."""
    found = (metric.called(key) for metric in (*benchmark.metrics, *FURTHER))
    return next((metric for metric in found if metric), None)
