"""What evaluations work with, and what they ask about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.config import UnlearnConfig
from wagle.dataset.templates import Template
from wagle.metrics.benchmark import Loader, Rows
from wagle.metrics.benchmarks import benchmark_of
from wagle.metrics.text import MOST_LOST, lost_share
from wagle.model.measured import Measured
from wagle.terminal import say


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluation works with.

    Attributes:
        config: every key, resolved.
        template: the one that training used.
        load_rows: rows of a data set by name.
        forget_rows: the rows of the forget set that were drawn.
        save: keeps a document of the run: (file name, content).
        measured: what has been measured so far, also by an earlier attempt.
    """

    config: UnlearnConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    load_rows: Loader
    forget_rows: Callable[[], Rows]
    save: Callable[[str, Any], None]
    measured: Measured

    @property
    def batch_size(self) -> int:
        return self.config.evaluation.batch_size

    @property
    def limit(self) -> int | None:
        return self.config.evaluation.limit

    @property
    def cache_dir(self) -> Path:
        return Path(self.config.overall.cache_dir)

    def asked_rows(self) -> dict[str, Rows]:
        """The rows of the evaluation's own data sets, by their names in its documents."""
        return asked_rows(self.config, self.load_rows)


def asked_sets(config: UnlearnConfig) -> Mapping[str, str]:
    """The data sets that the task's evaluation reads, by their names in its documents."""
    return benchmark_of(config).sets(config)


def asked_rows(config: UnlearnConfig, load_rows: Loader) -> dict[str, Rows]:
    """The rows of these data sets that are asked about.

    Raises:
        WagleError: one is missing, or there is nothing to ask.
    """
    benchmark = benchmark_of(config)
    if benchmark.rows:
        return benchmark.rows(config, load_rows)
    return {name: load_rows(data_set) for name, data_set in benchmark.sets(config).items()}


def choose_words(config: UnlearnConfig, sets: Mapping[str, Rows]) -> str:
    """``evaluation.word_tokenizer``, decided; says where the package rouge_score reads too little.

    Args:
        sets: rows with their true ``answer``.
    """
    chosen = config.evaluation.word_tokenizer
    if config.evaluation.protocol == "official":
        chosen = "rouge_score"
    lost = max(lost_share(row["answer"] for row in rows) for rows in sets.values())
    if lost <= MOST_LOST:
        return "rouge_score" if chosen == "auto" else chosen
    share = f"{lost:.0%} of the letters of a set's true answers are not a to z"
    if chosen == "rouge_score":
        say(f"warning: {share}, and ROUGE does not see them: even perfect answers score low")
    elif chosen == "auto":
        chosen = "unicode"
        say(f"{share}: ROUGE and BLEU read words of every script")
    return chosen
