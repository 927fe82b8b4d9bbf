"""Rules about several keys at once, about the files that they name, and what follows from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wagle.catalogue import ATTACKS, BENCHMARKS, DATA_SETS, METHODS, SCORES
from wagle.config.keys import DATASET_KEYS
from wagle.config.mask_names import (
    PLACEHOLDERS,
    mask_file,
    mask_ratio,
    plain_number,
    score_type_of_folder,
)
from wagle.dataset.names import is_own, own_file
from wagle.entries import label_of
from wagle.outside import is_outside


def clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rules about several keys, or about the files they name; keys with bad values are ``None``."""
    yield from _mask_clashes(values)
    yield from _text_clashes(values)
    yield from _training_clashes(values)
    yield from _evaluation_clashes(values)
    for name in ("unlearn.resume_path", "dataset.data_dir"):
        if values.get(name) is not None and not Path(values[name]).is_dir():
            yield name, "there is no such folder"
    ratio = values.get("dataset.forget_ratio")
    if ratio is not None and ratio > 1 and not ratio.is_integer():
        yield "dataset.forget_ratio", "above 1 it counts examples, and must be whole"
    if ratio == 1 and values["dataset.self_retain"]:
        yield "dataset.self_retain", "dataset.forget_ratio 1.0 leaves no row to retain; lower it"
    yield from _own_data_clashes(values)
    run = values.get("logger.name")
    if run is not None and (Path(run).is_absolute() or ".." in Path(run).parts):
        yield "logger.name", "must name a folder below logger.json.root"


def _evaluation_clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the evaluation lacks, or would not read."""
    for name in ("evaluation.retain_results", "evaluation.original_results"):
        if values.get(name) is not None and not Path(values[name]).is_file():
            yield name, "there is no such file"
    for name in values.get("evaluation.attacks") or []:
        if ATTACKS[name].reference and not values.get("evaluation.reference_model"):
            yield "evaluation.attacks", f"{name} needs evaluation.reference_model"
    if values.get("evaluation.keep_best") and not values.get("evaluation.every_steps"):
        yield "evaluation.keep_best", "needs evaluation.every_steps, which says when to measure"
    if values.get("evaluation.protocol") == "official":
        if values.get("evaluation.attacks") and not values.get("evaluation.holdout_dataset_name"):
            yield (
                "evaluation.attacks",
                "evaluation.protocol official attacks with rows of evaluation.holdout_dataset_name "
                "alone; give them, or leave this empty",
            )
        if values.get("evaluation.word_tokenizer") == "unicode":
            yield "evaluation.word_tokenizer", "evaluation.protocol official means rouge_score"


def _own_data_clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with files that are named as data sets, before they are read."""
    retain, keys = "dataset.retain_dataset_name", set(DATASET_KEYS)
    if values.get("dataset.self_retain"):
        keys.remove(retain)
    elif values.get(retain, "") is None:
        yield (
            retain,
            "say which rows are to be retained; or set dataset.self_retain, and with "
            "dataset.forget_ratio how many rows are not",
        )
    for key in sorted(keys):
        names = values.get(key) or []
        for path in map(own_file, [names] if isinstance(names, str) else names):
            if path is not None and not path.is_file():
                missing = f"there is no file {path} (from {Path.cwd()})"
                yield key, f"{path} is a folder; name a file in it" if path.is_dir() else missing


def _mask_clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    template, ratio = values.get("unlearn.mask_path"), values.get("unlearn.mask_ratio")
    if template is None:
        return
    path = mask_file(values)
    name = "unlearn.mask_path"
    unknown = sorted(set(re.findall(r"\{([^{}]*)\}", template)) - set(PLACEHOLDERS))
    if unknown:
        known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
        yield name, f"{{{unknown[0]}}} stands for nothing; what stands for a value: {known}"
    named = mask_ratio(path)
    if ratio is not None and named is not None and named != ratio:
        yield "unlearn.mask_ratio", f"unlearn.mask_path says {plain_number(named)}; drop either"
    if Path(path).suffix not in (".pt", ".safetensors"):
        yield name, "a mask file ends in .pt or .safetensors"
    elif Path(path).is_dir():
        yield name, "this is a folder, not a file"
    elif not (Path(path).exists() or ratio or "{ratio}" in template) and named is None:
        yield (
            name,
            "there is no such file, and its name carries no ratio to make one: name it "
            "NAME_RATIO.pt, with a ratio above 0 and at most 1, like tofu_0.8.pt, or give "
            "unlearn.mask_ratio",
        )
    if values["unlearn.use_lora"]:
        yield name, "LoRA trains adapters, not masked weights; choose one of them"
    if values["unlearn.gradients"] == "packed" and values["unlearn.mask_enforcement"] == "gradient":
        yield (
            "unlearn.gradients",
            "unlearn.mask_enforcement gradient keeps the gradients of all weights; leave either",
        )
    score_type = values["unlearn.score_type"] or score_type_of_folder(template)
    if not SCORES[score_type].ranks:
        rule = f"{score_type} masks have a rule of their own"
        if values["unlearn.mask_scope"] not in ("global", None):
            yield "unlearn.mask_scope", f"{rule}; leave this at global"
        if values["unlearn.mask_exclude"]:
            yield "unlearn.mask_exclude", f"{rule}; leave this empty"


def _training_clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What would train nothing, or nothing right."""
    section = "unlearn" if "unlearn.unlearn_method" in values else "finetune"
    if f"{section}.max_steps" not in values:
        return
    if values.get("unlearn.unlearn_method") == "origin" or values.get("unlearn.resume_path"):
        return
    if values["overall.dtype"] == "float16":
        yield (
            "overall.dtype",
            "small gradients vanish in float16, and losses are not scaled against that; train in "
            "bfloat16 or float32 (float16 can be evaluated)",
        )
    published = values.get("unlearn.mask_enforcement") == "gradient"
    if values.get("unlearn.unlearn_method") == "TaskArithmetic":
        if values["unlearn.use_lora"]:
            yield "unlearn.use_lora", "TaskArithmetic negates changes of weights, not adapters"
        if published and values["unlearn.mask_path"]:
            yield (
                "unlearn.mask_enforcement",
                "gradient lets weights decay that TaskArithmetic must not touch; set optimizer",
            )
    alternates = "unlearn.AltPO+FT.alternates"
    if values.get("unlearn.unlearn_method") == "AltPO+FT" and values[alternates] is None:
        yield alternates, "name the file that `wagle alternates` makes"
    if values[f"{section}.max_steps"] == 1:
        yield (
            f"{section}.max_steps",
            "the first step has learning rate 0 (warm-up), so 1 step trains nothing; allowed: -1 "
            "or int >= 2",
        )
    around = [name for name in ("sam_rho", "smoothing_std") if values.get(f"unlearn.{name}")]
    if len(around) == 2:
        yield "unlearn.sam_rho", "unlearn.smoothing_std is set too; choose one of them"
    if around and published and values["unlearn.mask_path"]:
        yield (
            f"unlearn.{around[0]}",
            "it moves selected weights alone, which unlearn.mask_enforcement gradient does not "
            "know; set that to optimizer",
        )
    if values[f"{section}.lr"] == 0:
        yield f"{section}.lr", "a learning rate of 0 trains nothing; allowed: float > 0"


def _text_clashes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Running text has no question to be refused and no answer to be exchanged."""
    names = ["dataset.forget_dataset_name"]
    if not values.get("dataset.self_retain"):
        names.append("dataset.retain_dataset_name")
    running_text = {name for entry in DATA_SETS.values() for name in entry.names(entry.texts)}
    texts = [name for name in names if values.get(name) in running_text]
    if not texts:
        return
    wrong = "{} needs questions with answers, and this is running text; change either"
    method = values["unlearn.unlearn_method"]
    asked = METHODS[method].questions if method in METHODS else ()
    needed = [f"dataset.{role}_dataset_name" for role in asked]
    if values["unlearn.resume_path"] is None:
        yield from ((name, wrong.format(method)) for name in texts if name in needed)
    score_type = values["unlearn.score_type"] or score_type_of_folder(values["unlearn.mask_path"])
    made = values["unlearn.mask_path"] and not Path(mask_file(values)).exists()
    if made and "refusal" in SCORES[score_type].gradients and names[0] in texts:
        yield names[0], wrong.format(score_type)
    task = values["unlearn.task_name"]
    if task in BENCHMARKS and BENCHMARKS[task].load().needs_questions and names[0] in texts:
        yield names[0], wrong.format(f"unlearn.task_name {task}")


def fit_to_data(values: dict[str, Any]) -> None:
    """What is not set and follows from the forget set: rows to retain, how many, the evaluation."""
    forget = values["dataset.forget_dataset_name"] or ""
    own = is_own(forget) or is_outside(forget)
    if values["dataset.self_retain"] and own:
        values["dataset.retain_dataset_name"] = forget
    elif values["dataset.retain_dataset_name"] is None and not own:
        values["dataset.retain_dataset_name"] = "TruthfulQA"
    if values["dataset.forget_ratio"] is None:
        some = forget == "SafePku" or (values["dataset.self_retain"] and not own)
        values["dataset.forget_ratio"] = 200.0 if some else 1.0
    if values["unlearn.task_name"] is None:
        fitting = (name for name, entry in BENCHMARKS.items() if entry.load().is_default(values))
        values["unlearn.task_name"] = next(fitting, "none")


def notices(values: Mapping[str, Any], given: Iterable[str]) -> Iterator[str]:
    """Remarks about settings without effect.

    Args:
        given: the keys that somebody has set.
    """
    unused = [name for name in ("unlearn.p", "unlearn.q") if name in given]
    if unused:
        yield f"accepted for old configs, without effect: {' and '.join(unused)}"
    if "unlearn.unlearn_method" not in values:
        return
    if values["unlearn.task_name"] == "none" and not values["evaluation.tasks"]:
        yield "unlearn.task_name is none: no evaluation runs"
    task = values["unlearn.task_name"]
    official = task == "tofu" and values["evaluation.protocol"] == "official"
    if values["evaluation.holdout_dataset_name"] and not (official or task == "own"):
        yield (
            "evaluation.holdout_dataset_name has no effect: only unlearn.task_name own and TOFU's "
            "evaluation.protocol official read it"
        )
    for name in ("evaluation.paraphrase_column", "evaluation.question_prefix"):
        if values[name] and task not in ("own", "tofu"):
            yield f"{name} has no effect: only unlearn.task_name own and tofu read it"
    for name in ("evaluation.original_results", "evaluation.fluency_model"):
        if values[name] and not official:
            yield f"{name} has no effect: only TOFU's evaluation.protocol official reads it"
    method = values["unlearn.unlearn_method"]
    trains = method != "origin" and values["unlearn.resume_path"] is None
    if values["unlearn.mask_path"] is not None and not trains:
        yield "unlearn.mask_path has no effect: nothing is trained"
    for name in ("gamma", "alpha"):
        weight = f"unlearn.{label_of(method)}.{name}"
        if trains and values.get(weight) == 0:
            yield f"{weight} is 0: that term of the loss is off"
