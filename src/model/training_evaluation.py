"""Evaluation while a model is unlearned: what it still knows before the first step and after some.

Training is the same with and without it, bit for bit: the generators and the model's mode are put
back. What is measured becomes entries of the training log, so that a training that goes on from a
checkpoint has them too::

    {"step": 10, "evaluation forget probability": 0.41, "evaluation retain probability": 0.93, …}
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle import ranks, shards
from wagle.config import UnlearnConfig
from wagle.dataset.encoding import Encoded
from wagle.dataset.sources import row_encoder
from wagle.dataset.templates import Template
from wagle.errors import ConfigError, WagleError
from wagle.loggers.files import replacing
from wagle.metrics.benchmark import Metric, Rows
from wagle.metrics.benchmarks import benchmark_of, find_metric
from wagle.metrics.generation import answer_questions
from wagle.metrics.likelihood import score_tokens
from wagle.metrics.memorization import exact_memorization, extraction_strength
from wagle.metrics.own import OWN, drawn_rows
from wagle.metrics.text import rouge_l_recall
from wagle.model.evaluation import evaluate
from wagle.model.evaluation_context import EvaluationContext
from wagle.model.measured import Measured
from wagle.model.reading import most_positions
from wagle.terminal import say
from wagle.training.checkpoint import kept_generators
from wagle.training.loop import MEASURED, Entry

TOTAL_LENGTH = 200  # tokens of a question with its greedy answer


def _measures(role: str, what: str, better: int) -> dict[str, Metric]:
    """``better``: whether more knowledge is."""
    meanings = {
        "loss": (f"Mean loss per token of {what}.", -better),
        "probability": (f"How probable it finds {what}, per token.", better),
        "EM": (f"Share of the tokens of {what} that it predicts.", better),
        "ES": (f"Share of {what} that it completes word for word.", better),
        "RougeL": (f"How much of the wording of {what} its answers contain.", better),
    }
    return {key: Metric(f"{role} {key}", *meaning) for key, meaning in meanings.items()}


SUBSET = {
    "forget": _measures("forget", "what it is to forget", -1),
    "retain": _measures("retain", "what it is to retain", 1),
}
"""What the cheap part measures, by set and measure."""
KEPT = SUBSET["retain"]["probability"]
"""Its utility."""


def measure_subset(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    sets: Mapping[str, Rows],
    encoders: Mapping[str, Callable[[Mapping[str, str]], Encoded]],
    *,
    batch_size: int,
) -> dict[str, float]:
    """Loss, probability, memorisation and, of questions, ROUGE-L of some rows.

    Args:
        sets: rows to forget and to retain, by ``forget`` and ``retain``.
        encoders: make ids and labels of a row of a set.

    Returns:
        Means by the keys of :data:`SUBSET`.
    """
    rows = [(role, row) for role in sets for row in sets[role]]
    encoded = [encoders[role](row) for role, row in rows]
    scored = score_tokens(
        model,
        encoded,
        batch_size=batch_size,
        pad_token_id=tokenizer.pad_token_id,
        description="scoring rows",
    )
    found: dict[Metric, list[float]] = {}
    for (role, _), tokens in zip(rows, scored, strict=True):
        values = {
            "loss": tokens.loss,
            "probability": float(np.exp(-tokens.loss)),
            "EM": exact_memorization(tokens.is_greedy),
            "ES": extraction_strength(tokens.is_greedy),
        }
        for key, value in values.items():
            found.setdefault(SUBSET[role][key], []).append(value)
    asked = [(role, row) for role, row in rows if "question" in row]
    texts = answer_questions(
        model,
        tokenizer,
        template,
        [row["question"] for _, row in asked],
        max_total_length=min(
            max([TOTAL_LENGTH, *(len(row.input_ids) for row in encoded)]), most_positions(model)
        ),
        batch_size=batch_size,
        description="answering questions",
    )
    for (role, row), text in zip(asked, texts, strict=True):
        rouge = rouge_l_recall(row["answer"], text, "unicode")
        found.setdefault(SUBSET[role]["RougeL"], []).append(rouge)
    return {metric.key: statistics.fmean(values) for metric, values in found.items()}


def choice_of(config: UnlearnConfig) -> Choice | None:
    """What ``evaluation.keep_best`` and ``evaluation.utility_floor`` ask for.

    Raises:
        ConfigError: there is no such number, or nothing says which way it is better.
    """
    name, floor = config.evaluation.keep_best, config.evaluation.utility_floor
    if name is None:
        return None
    utility: Metric | None
    if config.evaluation.during == "subset":
        known = {m.key: m for measures in SUBSET.values() for m in measures.values()}
        metric, utility, names = known.get(name), KEPT, ", ".join(known)
    else:
        benchmark = benchmark_of(config)
        metric = find_metric(benchmark, name)
        utility = benchmark.summary[-1] if benchmark.summary else None
        names = ", ".join(m.key for m in benchmark.metrics if m.better)
    if metric is None or not metric.better or utility is None:
        raise ConfigError(
            f"evaluation.keep_best {name} is no number by which a step can be the best; with "
            f"evaluation.during {config.evaluation.during} there are: {names or 'none'}"
        )
    return Choice(metric, utility, floor)


def training_evaluation(
    context: EvaluationContext, folder: Path | None
) -> TrainingEvaluation | None:
    """As the configuration wants it; ``None`` where it wants none.

    Args:
        context: with the model to be trained; what it keeps is not used.
        folder: where the best weights may be kept.

    Raises:
        ConfigError: as :func:`choice_of`; or there is no such folder.
    """
    config = context.config
    every, choice = config.evaluation.every_steps, choice_of(config)
    if every is None:
        return None
    if choice and folder is None:
        raise ConfigError("evaluation.keep_best needs a place for the weights: overall.cache_dir")

    def everything() -> dict[str, float]:
        quiet = replace(context, save=lambda *_: None, measured=Measured(None, {}))
        return {k: v for k, v in evaluate(quiet).items() if isinstance(v, int | float)}

    measure: Callable[[], dict[str, float]] = everything
    if config.evaluation.during == "subset":
        rows, names = drawn_rows(config, context.load_rows), OWN.sets(config)
        measure = partial(
            measure_subset,
            *(context.model, context.tokenizer, context.template),
            {role: spread_evenly(rows[role], config.evaluation.during_rows) for role in SUBSET},
            {
                role: row_encoder(names[role], context.tokenizer, context.template, eos=False)
                for role in SUBSET
            },
            batch_size=context.batch_size,
        )
    path = folder / "best.safetensors" if folder else None
    return TrainingEvaluation(every, context.model, measure, choice=choice, path=path)


def spread_evenly(rows: Rows, count: int) -> list[Mapping[str, str]]:
    """``count`` of the rows, or all: of ten rows, three are the first, fourth and seventh."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


@dataclass(frozen=True)
class Choice:
    """Which step's weights are the best.

    Attributes:
        metric: what is to be best.
        utility: what must be kept of it.
        floor: the share of the utility before training that must be kept.
    """

    metric: Metric
    utility: Metric
    floor: float

    def best(self, log: Sequence[Entry]) -> int | None:
        """The step, the first of equals; ``None`` where no step keeps the utility."""
        name, utility = MEASURED + self.metric.key, MEASURED + self.utility.key
        entries = [entry for entry in log if name in entry and utility in entry]
        before = next((entry[utility] for entry in entries if entry["step"] == 0), None)
        fit = [
            entry
            for entry in entries
            if entry["step"] > 0 and before is not None and self._keeps(entry[utility], before)
        ]
        return int(max(fit, key=lambda e: self.metric.better * e[name])["step"]) if fit else None

    def _keeps(self, value: float, before: float) -> bool:
        if self.utility.better < 0:  # such as a perplexity, of which less is more
            return value * self.floor <= before
        return value >= self.floor * before


class TrainingEvaluation:
    """Measures before training and every so many steps, and keeps the best weights so far.

    Args:
        every: steps between two measurements.
        model: as it is trained; of adapters, the model that they were added to.
        measure: gives the numbers of the model as it is, by name.
        choice: which weights are kept; ``None``: none.
        path: of the file that they are kept in, if they are.
    """

    def __init__(
        self,
        every: int,
        model: PreTrainedModel,
        measure: Callable[[], Mapping[str, float]],
        *,
        choice: Choice | None = None,
        path: Path | None = None,
    ) -> None:
        self.every = every
        self._model = model
        self._measure = measure
        self.choice = choice
        self._path = path

    def after_step(self, step: int, log: Sequence[Entry]) -> dict[str, float] | None:
        """An entry for the log after so many steps, where it is time for one."""
        if step % self.every:
            return None
        with kept_generators(self._model.device):
            measured = self._measure()
        entry = {**{MEASURED + name: value for name, value in measured.items()}, "step": step}
        if self.choice and self._path and self.choice.best([*log, entry]) == step:
            _write(_trained(self._model), self._path, step)
        return entry

    def restore_best(self, log: Sequence[Entry]) -> None:
        """Put the best weights back, where they are not the last ones.

        Raises:
            WagleError: the file with them is not there.
        """
        if self.choice is None:
            return
        best = self.choice.best(log)
        wanted = f"{self.choice.metric.key} with at least {self.choice.floor:g} of "
        wanted += f"{self.choice.utility.key} before training"
        if best is None:
            say(f"warning: no measured step has {wanted}: the model is that of the last step")
            return
        last = int(log[-1]["step"])
        say(f"best of the measured steps by {wanted}: step {best} of {last}")
        if best == last:
            return
        path = self._path
        if path is None or not ranks.first(path.is_file):
            raise WagleError(f"the weights of step {best} are not there: {path} is missing")
        with torch.no_grad(), safe_open(path, "pt") as file:
            for name, parameter in _trained(self._model).items():
                if shards.is_cut(parameter):
                    own = shards.rows(parameter)
                    shards.local(parameter).copy_(file.get_slice(name)[own.start : own.stop])
                else:
                    parameter.copy_(file.get_tensor(name))


def _write(weights: Mapping[str, torch.Tensor], path: Path, step: int) -> None:
    """Whole weights into one file; of sharded ones the first process puts the parts together."""
    tensors = {}
    for name, weight in weights.items():
        lengths = [len(shards.span(weight, rank)) for rank in range(ranks.size())]
        part = shards.local(weight.detach()).reshape(-1)
        whole = shards.join(weight, part, lengths)
        if ranks.is_first():
            tensors[name] = whole.view(weight.shape)

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(tensors, part, {"step": str(step)})

    ranks.first(write)


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
