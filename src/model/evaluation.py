"""Which evaluation belongs to which task.

To add one: functions from :class:`EvaluationContext` to flat results, and a line in
``EVALUATIONS``; if it runs lm-eval tasks, their roles in ``LM_EVAL_ROLES``. Each function is a part
of the evaluation: what it returns is kept at once, and its failure does not touch the others.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config import Config
from src.dataset.pairing import draw_forget_rows
from src.dataset.templates import Template
from src.errors import WagleError
from src.metrics.copyright import evaluate_copyright
from src.metrics.harness import find_tasks, mean_of, own_metrics, run_task
from src.metrics.membership import text_losses
from src.metrics.sentence import load_sentence_encoder
from src.metrics.text import MOST_LOST, lost_share
from src.metrics.tofu import (
    MAX_TEXT_LENGTH,
    check_rows,
    evaluate_tofu,
    summarize_tofu,
    tofu_subsets,
)
from src.metrics.tofu_field import evaluate_official
from src.metrics.tofu_official import official_scores
from src.metrics.tofu_results import TofuResults, check_comparable, load_results, parse_results
from src.metrics.toxicity import evaluate_toxicity, load_toxicity_classifier
from src.model.loading import load_model, read_tokenizer
from src.model.measured import Measured
from src.terminal import say

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
        return _asked_rows(self.config, self.load_rows)


def check_evaluation(config: Config, load_rows: Callable[[str], Rows]) -> None:
    """Find out what is wrong with the evaluation before the model has been trained for it.

    Args:
        load_rows: rows of a data set by name.

    Raises:
        ConfigError, WagleError: with what is wrong.
    """
    task = config["unlearn.task_name"]
    cpu, cache = torch.device("cpu"), Path(config["overall.cache_dir"])
    rows = _asked_rows(config, load_rows)
    if task == "tofu":
        for name, data_set in asked_sets(config).items():
            check_rows(rows[name], data_set)
        _retain_model(config, rows["forget"])
        if config["evaluation.protocol"] != "official":
            load_sentence_encoder(config["evaluation.sentence_model"], cpu)
        if config["evaluation.reference_model"] is not None:
            hint = "a local folder with --evaluation.reference_model FOLDER"
            name = config["evaluation.reference_model"]
            read_tokenizer(name, cache, what="reference model", hint=hint)
    if task == "toxic":
        load_toxicity_classifier(config["evaluation.toxicity_model"], device=cpu, cache_dir=cache)
    names = [name for role in LM_EVAL_ROLES.get(task, ()) for name in _task_names(config, role)]
    names += config["evaluation.tasks"] or []
    if names:
        find_tasks(names)


def evaluate(context: EvaluationContext) -> dict[str, float]:
    """Run the task's evaluation and the lm-eval tasks asked for; return the flat summary.

    Raises:
        WagleError: a part has failed; the others have run, and what they found is kept.
    """
    parts = {**EVALUATIONS[context.config["unlearn.task_name"]], "lm_eval": _further_tasks}
    results: dict[str, float] = {}
    for name, part in parts.items():
        results |= context.measured.attempt(name, partial(part, context)) or {}
    context.measured.check()
    return results


# ----------------------------------------------------------------------------------- the tasks


def evaluate_tofu_task(context: EvaluationContext) -> dict[str, float]:
    """TOFU: ``tofu.json``, and from it what the protocol defines.

    ``official``: ``tofu_official …``. The others: the paper's UE and UT numbers, memorisation,
    membership inference, and the official scores' formulas on this protocol's losses, under its
    name: they are not comparable with official ones.
    """
    protocol = context.config["evaluation.protocol"]
    sets = context.asked_rows()
    retain_model = _retain_model(context.config, sets["forget"])
    words = _word_tokenizer(context.config, sets)
    if protocol == "official":
        measured = _measure_as_the_field(context, sets)
    else:
        measured = _measure_as_the_paper(context, sets, words)
    result = {"sets": dict(asked_sets(context.config)), "word_tokenizer": words, **measured}
    context.save("tofu.json", result)
    scores = official_scores(parse_results(result).sets, retain_model and retain_model.sets)
    named = {f"tofu_{protocol} {name}": value for name, value in scores.items()}
    if protocol == "official":
        return named
    return {
        **summarize_tofu(result),
        "Exact Memorization": result["forget"]["exact_memorization"],
        "Extraction Strength": result["forget"]["extraction_strength"],
        **{f"MIA {k}": v for k, v in result["MIA"].items() if not k.startswith("Min_")},
        **named,
    }


def _measure_as_the_paper(
    context: EvaluationContext, sets: Mapping[str, Rows], words: str
) -> dict[str, Any]:
    config = context.config
    return evaluate_tofu(
        context.model,
        context.tokenizer,
        context.template,
        sets,
        encoder=load_sentence_encoder(config["evaluation.sentence_model"], context.model.device),
        protocol=config["evaluation.protocol"],
        batch_size=context.batch_size,
        word_tokenizer=words,
        limit=context.limit,
        attacks=config["evaluation.attacks"],
        reference_losses=lambda texts: _reference_losses(context, texts),
    )


def _measure_as_the_field(context: EvaluationContext, sets: Mapping[str, Rows]) -> dict[str, Any]:
    return evaluate_official(
        context.model,
        context.tokenizer,
        context.template,
        sets,
        batch_size=context.batch_size,
        limit=context.limit,
    )


def _word_tokenizer(config: Config, sets: Mapping[str, Rows]) -> str:
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


def _retain_model(config: Config, forget_rows: Rows) -> TofuResults | None:
    """The results of the retain-only model, if they are given and of the same questions."""
    path = config["evaluation.retain_results"]
    if path is None:
        return None
    retain_model = load_results(Path(path))
    asked = tuple(row["question"] for row in list(forget_rows)[: config["evaluation.limit"]])
    own = TofuResults({}, config["evaluation.protocol"], asked_sets(config)["forget"], asked)
    check_comparable(retain_model, own, Path(path))
    return retain_model


def _reference_losses(context: EvaluationContext, texts: Sequence[str]) -> list[float]:
    model, tokenizer = load_model(
        context.config["evaluation.reference_model"],
        dtype=context.model.dtype,
        device=context.model.device,
        cache_dir=context.cache_dir,
    )
    return text_losses(
        model, tokenizer, texts, max_length=MAX_TEXT_LENGTH, batch_size=context.batch_size
    )


def evaluate_wmdp_task(context: EvaluationContext) -> dict[str, float]:
    """WMDP: ``wmdp.json``; the shares of wrong answers, better when larger."""
    wmdp = _run(context, "wmdp.json", "bio", "chem", "cyber")
    missed = {
        role: 1 - mean_of(wmdp, _task_names(context.config, role), "acc")
        for role in ("bio", "chem", "cyber")
    }
    return {
        "UE 1-FA bio": missed["bio"],
        "UE 1-FA cyber": missed["cyber"],
        "UE Avg": statistics.fmean([missed["bio"], missed["cyber"]]),
        "1-FA chem": missed["chem"],
    }


def _mmlu(context: EvaluationContext) -> dict[str, float]:
    mmlu = _run(context, "mmlu.json", "mmlu")
    return {"UT MMLU": mean_of(mmlu, _task_names(context.config, "mmlu"), "acc")}


def evaluate_copyright_task(context: EvaluationContext) -> dict[str, float]:
    """Copyright: ``copyright.json``.

    BLEU and RougeL tell how much of a text is still known: of the one unlearned (seen) less is
    better.
    """
    parts = {part: list(rows)[: context.limit] for part, rows in context.asked_rows().items()}
    words = _word_tokenizer(context.config, parts)
    result = evaluate_copyright(
        context.model,
        context.tokenizer,
        context.template,
        parts,
        batch_size=context.batch_size,
        word_tokenizer=words,
    )
    context.save("copyright.json", {"word_tokenizer": words, **result})
    flat = {}
    for title, part in (("seen", "train"), ("unseen", "test")):
        flat[f"{title} BLEU"] = result[part]["bleu"]
        flat[f"{title} RougeL"] = result[part]["rougeL_score"]
    return flat


def evaluate_toxic_task(context: EvaluationContext) -> dict[str, float]:
    """Toxic: ``forget.json``, ``harmful.json``.

    Rates and scores of toxicity are better when smaller.
    """
    classifier = load_toxicity_classifier(
        context.config["evaluation.toxicity_model"],
        device=context.model.device,
        cache_dir=context.cache_dir,
    )

    def judge(name: str, rows: Rows) -> dict[str, Any]:
        continue_prompts = partial(
            evaluate_toxicity,
            context.model,
            context.tokenizer,
            context.template,
            list(dict.fromkeys(row["question"] for row in rows))[: context.limit],
            classifier=classifier,
            batch_size=context.batch_size,
            description=f"continuing {name} prompts",
        )
        return context.measured.get(f"toxicity {name}", continue_prompts)

    results = {"forget": judge("forget", context.forget_rows())}
    context.save("forget.json", results["forget"])
    harmful = {}
    for name, rows in context.asked_rows().items():
        harmful[name] = judge(name, rows)
        context.save("harmful.json", harmful)
    flat = {}
    for name, result in {**results, **harmful}.items():
        flat[f"toxicity {name} rate"] = result["rate"]
        flat[f"toxicity {name} score"] = result["score"]
    return flat


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


def _asked_rows(config: Config, load_rows: Callable[[str], Rows]) -> dict[str, Rows]:
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


# ------------------------------------------------------------------------------- lm-eval tasks

_UTILITY_ROLES = ("perplexity", "zero_shot", "truthfulqa")
LM_EVAL_ROLES = {
    "wmdp": ("bio", "chem", "cyber", "mmlu", "perplexity"),
    "copyright": _UTILITY_ROLES,
    "toxic": _UTILITY_ROLES,
}
"""The keys of ``evaluation.task_names`` that an evaluation uses, by ``unlearn.task_name``."""


def _task_names(config: Config, role: str) -> list[str]:
    names = config[f"evaluation.task_names.{role}"]
    return [names] if isinstance(names, str) else names


def _run(context: EvaluationContext, document: str, *roles: str) -> dict[str, Any]:
    return _run_tasks(context, document, [n for r in roles for n in _task_names(context.config, r)])


def _run_tasks(context: EvaluationContext, document: str, names: Sequence[str]) -> dict[str, Any]:
    """Run lm-eval tasks; their numbers are in the document as soon as each has finished.

    Raises:
        WagleError: some have failed; the message names them, and the others have run.
    """
    results, failures = {}, []
    for name in dict.fromkeys(names):
        try:
            run = partial(_run_task, context, name)
            results[name] = context.measured.get(f"lm_eval {name}", run)
            context.save(document, results)
        except WagleError as error:
            failures.append(str(error))
    if failures:
        raise WagleError("; ".join(failures))
    return results


def _run_task(context: EvaluationContext, name: str) -> Mapping[str, Mapping[str, float]]:
    return run_task(
        context.model,
        context.tokenizer,
        name,
        batch_size=context.batch_size,
        limit=context.limit,
    )


def _perplexity(context: EvaluationContext) -> dict[str, float]:
    results = _run(context, "ppl.json", "perplexity")
    names = _task_names(context.config, "perplexity")
    return {"PPL": mean_of(results, names, "word_perplexity")}


def _few_shots(context: EvaluationContext) -> dict[str, float]:
    results = _run(context, "few_shots.json", "zero_shot", "truthfulqa")
    titles = {"zero_shot": "UT zero-shot acc", "truthfulqa": "UT TruthfulQA"}
    return {
        title: mean_of(results, _task_names(context.config, role), "acc")
        for role, title in titles.items()
    }


def _further_tasks(context: EvaluationContext) -> dict[str, float]:
    """The tasks of ``evaluation.tasks``: ``lm_eval.json``, and flat ``lm_eval TASK METRIC``."""
    names = context.config["evaluation.tasks"] or []
    if not names:
        return {}
    results = _run_tasks(context, "lm_eval.json", names)
    return {
        f"lm_eval {task} {metric}": value
        for name in names
        for task, metrics in own_metrics(results, name).items()
        for metric, value in metrics.items()
        if metric != "sample_len" and "stderr" not in metric
    }


Part = Callable[[EvaluationContext], dict[str, float]]

EVALUATIONS: dict[str, dict[str, Part]] = {
    "tofu": {"tofu": evaluate_tofu_task},
    "wmdp": {"wmdp": evaluate_wmdp_task, "mmlu": _mmlu, "perplexity": _perplexity},
    "copyright": {
        "copyright": evaluate_copyright_task,
        "perplexity": _perplexity,
        "few_shots": _few_shots,
    },
    "toxic": {
        "toxic": evaluate_toxic_task,
        "perplexity": _perplexity,
        "few_shots": _few_shots,
    },
    "none": {},
}
"""Their parts, in the order of the results, by ``unlearn.task_name``."""
