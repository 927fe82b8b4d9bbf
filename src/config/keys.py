"""Every configuration key: what it takes, its default, its meaning; to add one: a row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastargs.validation import Checker

from wagle.catalogue import (
    ATTACKS,
    BENCHMARKS,
    METHOD_ALIASES,
    METHODS,
    SCORE_ALIASES,
    SCORES,
    Method,
    Option,
)
from wagle.config.values import (
    Choice,
    DataSetName,
    Date,
    Flag,
    Float,
    Int,
    ListOf,
    Maybe,
    Named,
    Steps,
    Text,
    checker_of,
)

REQUIRED = ...  # Ellipsis stays itself when a configuration is sent to another process


@dataclass(frozen=True)
class Key:
    """One configuration key.

    Attributes:
        name: ``section.key``.
        checker: what it takes.
        default: ``None`` where it is not set by default, ``REQUIRED`` where it must be given.
        meaning: one line for ``--help``.
        inert: changes where things go or how fast they are done, not what comes out.
    """

    name: str
    checker: Checker
    default: Any
    meaning: str
    inert: bool = False


_Row = tuple[Any, ...]  # a Key, without its section


def _section(section: str, *rows: _Row) -> tuple[Key, ...]:
    return tuple(Key(f"{section}.{name}", *rest) for name, *rest in rows)


_COUNT = Int(at_least=1, at_most=1_000_000)
_RATE = Float(at_least=0)
_POSITIVE = Float(above=0)
_DECAY = Float(at_least=0, below=1)
_SEED = Int(at_least=0, at_most=2**32 - 1)  # numpy takes no larger one
_FOLDER = Text("folder")
_LM_EVAL_TASK = Text("lm-eval task")
_DATASET = DataSetName()
DATASET_KEYS = (
    *("dataset.forget_dataset_name", "dataset.retain_dataset_name"),
    *("finetune.dataset_name", "finetune.extra_dataset_names"),
)
"""The keys that name data sets."""


def method_keys(method: Method) -> tuple[Key, ...]:
    """The keys of a method's hyper-parameters, ``unlearn.METHOD.option``."""
    return tuple(_option_key(f"unlearn.{method.label}.{o.name}", o) for o in method.options)


def _option_key(name: str, option: Option) -> Key:
    bounds = {"above": option.above, "at_least": option.at_least}
    checker = checker_of(option.kind, **{k: v for k, v in bounds.items() if v is not None})
    return Key(name, checker, option.default, option.meaning)


# fmt: off
OVERALL_KEYS = _section(
    "overall",
    ("model_name", Text("hub id or folder"), REQUIRED, "model to start from"),
    ("logger", Choice("json", "none", "wandb"), "none", "where results go", True),
    ("cache_dir", _FOLDER, ".cache", "cache of hub downloads", True),
    ("seed", _SEED, 0, "seeds python, numpy and torch"),
    ("dtype", Choice("auto", "bfloat16", "float16", "float32"), "auto",
     "of the weights; auto: bfloat16 on a GPU, float32 on the CPU"),
    ("trust_code", Flag(), False, "on the command line only: run code that is named by a file.py, "
     "file.py:NAME or package.module:NAME", True),
    ("device", Choice("auto", "cpu", "cuda", "mps"), "auto", "where to run"),
)
LOGGER_KEYS = _section(
    "logger",
    ("name", Text("name"), None,
     "run folder below json.root; not set: follows from the configuration", True),
    ("json.root", _FOLDER, "files/logs", "where run folders are made", True),
    ("wandb.project", Text("name"), "wagle", "Weights & Biases project", True),
    ("wandb.mode", Choice("online", "offline", "disabled"), "offline",
     "offline keeps the run on this machine until it is synced", True),
)
SOURCE_KEYS = _section(
    "dataset",
    ("data_dir", _FOLDER, None, "read data sets from files here instead of the hub"),
    ("question_column", Text("column"), None,
     "of one's own data; not set: question or prompt"),
    ("answer_column", Text("column"), None, "of one's own data; not set: answer or response"),
    ("text_column", Text("column"), None, "of one's own data; not set: text"),
    ("template", Choice("auto", "llama2_published", "llama2", "question_answer", "chat"), "auto",
     "prompt template; auto: the model's own, which protocol published takes from its name"),
    ("system_prompt", Maybe("text"), None,
     "system turn of the chat template; not set: as saved with the model, or usual for it"),
    ("date_string", Date(), None,
     "date that the chat template writes; not set: as saved with the model, or 10 Apr 2025"),
)
UNLEARN_KEYS = (
    *OVERALL_KEYS,
    *_section(
        "unlearn",
        ("unlearn_method", Named(METHODS, "origin", aliases=METHOD_ALIASES), "origin",
         "objective; GradDiff is GA+FT, PO is CL+FT, NPO, SimNPO and DPO have +FT"),
        ("num_epochs", _COUNT, 1, "passes over the forget set"),
        ("lr", _RATE, 1e-4, "learning rate"),
        ("weight_decay", _RATE, 0.0, "decoupled weight decay"),
        ("gradient_accumulation_steps", _COUNT, 1, "batches per optimizer step"),
        ("task_name", Named(BENCHMARKS), None,
         "which evaluation runs; not set: the one of the forget set, where its files are there"),
        ("mask_path", Text("file, like tofu_0.8.pt"), None,
         "weights that may change; made at the ratio in its name when missing; not set: all. "
         "{score}, {ratio}, {mu}, {seed} and {task} stand for this run's"),
        ("mask_ratio", Float(above=0, at_most=1), None,
         "share of the weights that a missing mask selects; not set: the number in its name"),
        ("mask_mismatch", Choice("error", "accept", "remake"), "error",
         "what to do with a mask file that other settings, data or another model made"),
        ("lock_timeout", _RATE, None,
         "seconds to wait for another process that makes the same files; not set: no limit", True),
        ("score_type", Named(SCORES, aliases=SCORE_ALIASES), None,
         "how a missing mask is made; not set: what the mask's folder is named after, else wagle"),
        ("mu", _POSITIVE, 1e-3, "Hessian diagonal in WAGLE's scores"),
        ("mask_scope", Choice("global", "layer", "tensor"), "global",
         "what weights are ranked within"),
        ("mask_exclude", ListOf(Choice("embedding", "norm", "head")), [],
         "weights that are never selected"),
        ("attribution_batch_size", _COUNT, 8,
         "rows run at once to make a mask; only time and memory depend on it"),
        ("attribution_offload", Choice("none", "cpu", "disk"), "none",
         "where sums of gradients are kept; none: with the weights"),
        ("attribution_dtype", Choice("float32", "float64"), "float32", "of sums of gradients"),
        ("gradient_cache", Text("path"), None,
         "sums of gradients are kept in files that start so; not set: beside the mask", True),
        ("p", Float(), 0.01, "accepted for old configs, has no effect", True),
        ("q", Float(), 0.01, "accepted for old configs, has no effect", True),
        ("sophia", Flag(), False, "Sophia-G instead of AdamW"),
        ("sophia_params.betas_low", _DECAY, 0.9, "decay of the mean gradient"),
        ("sophia_params.betas_high", _DECAY, 0.95, "decay of the mean Hessian diagonal"),
        ("sophia_params.rho", _POSITIVE, 0.03, "where updates are clipped"),
        ("resume_path", _FOLDER, None, "evaluate this saved model; nothing is trained"),
        ("max_steps", Steps(), -1, "optimizer steps; -1: num_epochs decides"),
        ("step_formula", Choice("published", "whole_epochs"), "published",
         "steps of num_epochs; whole_epochs: every row in every epoch, as in fine-tuning; "
         "published: num_epochs * rows // (batch_size * accumulation)"),
        ("use_lora", Flag(), False, "train LoRA adapters, merged into the weights when saved"),
        ("mask_enforcement", Choice("optimizer", "gradient"), "optimizer",
         "gradient: as published, weights outside the mask still decay"),
        ("master_weights", Flag(), None,
         "float32 copy of the selected weights; not set: where the dtype is 16-bit"),
        ("gradients", Choice("dense", "packed"), "dense",
         "packed: of the selected weights only, clipped by their norm; dense: by that of all"),
        ("max_grad_norm", _RATE, 1.0, "gradients are clipped to this norm; 0: not clipped"),
        ("gradient_checkpointing", Flag(), False, "saves memory, takes time"),
        ("save_model", Flag(), True, "false: keep the run's numbers, not its model", True),
    ),
    *(key for method in METHODS.values() for key in method_keys(method)),
    *_section(
        "dataset",
        ("forget_dataset_name", _DATASET, "SafePku", "forget set"),
        ("retain_dataset_name", _DATASET, None,
         "retain set; not set: TruthfulQA, but a forget set of one's own needs one"),
        ("dataset_seed", _SEED, 0, "which forget examples are drawn"),
        ("forget_ratio", _POSITIVE, None,
         "up to 1: the fraction of the forget set to draw; above 1: how many examples; not set: "
         "200 of SafePku and with self_retain, else all"),
        ("self_retain", Flag(), False, "retain the forget set's rows that were not drawn"),
        ("batch_size", _COUNT, 16, "examples per batch"),
        ("num_workers", Int(at_least=0, at_most=256), 0, "processes that load data", True),
    ),
    *SOURCE_KEYS,
    *_section(
        "evaluation",
        ("protocol", Choice("corrected", "published", "official"), "corrected",
         "of TOFU; published: as the paper's numbers were made; official: as its authors' and "
         "open-unlearning's"),
        ("word_tokenizer", Choice("auto", "rouge_score", "unicode"), "auto",
         "words of ROUGE and BLEU; rouge_score: of a-z and 0-9 alone; unicode: of every script; "
         "auto: unicode where the true answers would lose much"),
        ("batch_size", _COUNT, 32, "sequences run at once"),
        ("limit", _COUNT, None, "first rows of each set, for a quick look"),
        ("tasks", ListOf(_LM_EVAL_TASK), None, "what to run as well"),
        ("task_names.bio", _LM_EVAL_TASK, "wmdp_bio", "WMDP on biology"),
        ("task_names.chem", _LM_EVAL_TASK, "wmdp_chem", "WMDP on chemistry"),
        ("task_names.cyber", _LM_EVAL_TASK, "wmdp_cyber", "WMDP on cybersecurity"),
        ("task_names.mmlu", _LM_EVAL_TASK, "mmlu", "general knowledge"),
        ("task_names.perplexity", _LM_EVAL_TASK, "wikitext", "perplexity per word"),
        ("task_names.zero_shot", ListOf(_LM_EVAL_TASK),
         [*("boolq", "rte", "hellaswag", "winogrande", "arc_challenge", "arc_easy"),
          *("openbookqa", "piqa")], "their mean accuracy is the zero-shot accuracy"),
        ("task_names.truthfulqa", _LM_EVAL_TASK, "truthfulqa_mc2", "truthfulness"),
        ("sentence_model", Text("name, folder, package"),
         "sentence-transformers/paraphrase-MiniLM-L6-v2",
         "sentence encoder for TOFU's accuracy: from the hub, a folder or a Python package"),
        ("retain_results", Text("file"), None,
         "the retain-only model's tofu.json, TOFU_EVAL.json or eval_log_aggregated.json, for the "
         "forget quality"),
        ("attacks", ListOf(Named(ATTACKS)), [],
         "TOFU's membership attacks beside Min-k%"),
        ("reference_model", Text("hub id or folder"), None, "model of the reference attack"),
        ("prompt_tokens", _COUNT, 300, "of the copyright task's prompts: 50, 100, 200 or 300"),
        ("toxicity_model", Text("hub id or folder"), "unitary/toxic-bert",
         "text classifier with the label toxic"),
    ),
    *LOGGER_KEYS,
)
FINE_TUNE_KEYS = (
    *OVERALL_KEYS,
    *_section(
        "finetune",
        ("dataset_name", _DATASET, REQUIRED, "what to learn"),
        ("extra_dataset_names", ListOf(_DATASET), [], "what to learn as well"),
        ("subset_limit", _COUNT, None, "first rows of each data set"),
        ("num_epochs", _COUNT, 1, "passes over the data"),
        ("max_steps", Steps(), -1, "optimizer steps; -1: num_epochs decides"),
        ("lr", _RATE, 1e-5, "learning rate"),
        ("weight_decay", _RATE, 0.01, "decoupled weight decay"),
        ("batch_size", _COUNT, 8, "examples per batch"),
        ("gradient_accumulation_steps", _COUNT, 1, "batches per optimizer step"),
        ("master_weights", Flag(), None,
         "float32 copy of the weights; not set: where the dtype is 16-bit"),
        ("warmup_ratio", Float(at_least=0, at_most=1), 0.05, "share of the steps to warm up in"),
        ("output_dir", _FOLDER, REQUIRED, "where the model goes"),
        ("from_scratch", Flag(), False, "build the demo's tiny Llama instead of loading a model"),
    ),
    *SOURCE_KEYS,
    *LOGGER_KEYS,
)
# fmt: on
