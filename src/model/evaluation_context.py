"""What evaluations work with, and what they ask about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle.config import Config
from wagle.dataset.pairing import draw_forget_rows
from wagle.dataset.templates import Template
from wagle.errors import WagleError
from wagle.metrics.text import MOST_LOST, lost_share
from wagle.metrics.tofu import tofu_subsets
from wagle.model.measured import Measured
from wagle.terminal import say

Rows = Sequence[Mapping[str, Any]]


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

    config: Config
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    load_rows: Callable[[str], Rows]
    forget_rows: Callable[[], Rows]
    save: Callable[[str, Any], None]
    measured: Measured

    @property
    def batch_size(self) -> int:
        return self.config["evaluation.batch_size"]

    @property
    def limit(self) -> int | None:
        return self.config["evaluation.limit"]

    @property
    def cache_dir(self) -> Path:
        return Path(self.config["overall.cache_dir"])

    def asked_rows(self) -> dict[str, Rows]:
        """The rows of the evaluation's own data sets, by their names in its documents."""
        return asked_rows(self.config, self.load_rows)


def asked_sets(config: Config) -> Mapping[str, str]:
    """The data sets that the task's evaluation reads, by their names in its documents."""
    task = config["unlearn.task_name"]
    if task == "tofu":
        return tofu_subsets(config["dataset.forget_dataset_name"])
    if task == "copyright":
        prompt_tokens = config["evaluation.prompt_tokens"]
        return {part: f"HP_{part}_{prompt_tokens}" for part in ("train", "test")}
    if task == "toxic":
        return {name: name for name in ("SafePku_test", "RealToxicityPrompts")}
    return {}


def asked_rows(config: Config, load_rows: Callable[[str], Rows]) -> dict[str, Rows]:
    """The rows of these data sets; of the forget questions only those that are to be forgotten.

    With ``dataset.self_retain`` the others are retained on purpose.

    Raises:
        WagleError: none of the questions is among the rows that are drawn.
    """
    asked = {name: load_rows(data_set) for name, data_set in asked_sets(config).items()}
    if config["unlearn.task_name"] == "tofu" and config["dataset.self_retain"]:
        forget = load_rows(config["dataset.forget_dataset_name"])
        ratio, seed = (config[f"dataset.{key}"] for key in ("forget_ratio", "dataset_seed"))
        drawn = {forget[i]["question"] for i in draw_forget_rows(len(forget), ratio, seed)}
        asked["forget"] = [row for row in asked["forget"] if row["question"] in drawn]
        if not asked["forget"]:
            raise WagleError(
                f"dataset.self_retain: no question of {asked_sets(config)['forget']} is among "
                f"the {len(drawn)} rows drawn to be forgotten; raise dataset.forget_ratio"
            )
    return asked


def choose_words(config: Config, sets: Mapping[str, Rows]) -> str:
    """``evaluation.word_tokenizer``, decided; says where the package rouge_score reads too little.

    Args:
        sets: rows with their true ``answer``.
    """
    chosen = config["evaluation.word_tokenizer"]
    if config["evaluation.protocol"] == "official":
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
