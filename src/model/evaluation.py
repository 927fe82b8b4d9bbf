"""Which evaluation belongs to which task.

To add one: functions from :class:`EvaluationContext` to flat results, and a line in
``EVALUATIONS``; if it runs lm-eval tasks, their roles in ``LM_EVAL_ROLES``. Each function is a part
of the evaluation: what it returns is kept at once, and its failure does not touch the others.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wagle.config import Config
from wagle.errors import WagleError
from wagle.metrics.copyright import evaluate_copyright
from wagle.metrics.harness import find_tasks, mean_of, own_metrics, run_task
from wagle.metrics.toxicity import evaluate_toxicity, load_toxicity_classifier
from wagle.model.evaluation_context import EvaluationContext, Rows, asked_rows, choose_words
from wagle.model.tofu_evaluation import check_tofu, evaluate_tofu_task


def check_evaluation(config: Config, load_rows: Callable[[str], Rows]) -> None:
    """Find out what is wrong with the evaluation before the model has been trained for it.

    Args:
        load_rows: rows of a data set by name.

    Raises:
        ConfigError, WagleError: with what is wrong.
    """
    task = config["unlearn.task_name"]
    cpu, cache = torch.device("cpu"), Path(config["overall.cache_dir"])
    rows = asked_rows(config, load_rows)
    if task == "tofu":
        check_tofu(config, rows)
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
    parts = dict(EVALUATIONS[context.config["unlearn.task_name"]])
    if context.config["evaluation.tasks"]:
        parts["lm_eval"] = _further_tasks
    results: dict[str, float] = {}
    for name, part in parts.items():
        results |= context.measured.attempt(name, partial(part, context)) or {}
    context.measured.check()
    return results


# ----------------------------------------------------------------------------------- the tasks


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
    words = choose_words(context.config, parts)
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
    names = context.config["evaluation.tasks"]
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
