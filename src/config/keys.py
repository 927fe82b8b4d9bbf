"""Every configuration key: what it takes, its default, its meaning; to add one: a line here."""

# ruff: noqa: RUF009 - key() declares, and is called once

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wagle.catalogue import ATTACKS, BENCHMARKS, METHOD_ALIASES, METHODS, SCORE_ALIASES, SCORES
from wagle.config.declare import REQUIRED, key
from wagle.config.values import (
    DataSetName,
    Date,
    Float,
    Int,
    ListOf,
    Maybe,
    Named,
    Steps,
    Text,
)

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
    *("evaluation.holdout_dataset_name", "finetune.dataset_name", "finetune.extra_dataset_names"),
)
"""The keys that name data sets."""
DURING_TRAINING = tuple(
    f"evaluation.{name}"
    for name in ("every_steps", "during", "during_rows", "keep_best", "utility_floor")
)
"""The keys of the evaluation that training depends on, or its log."""
_SAVE_STEPS = "steps between checkpoints to go on from; not set: ten minutes"
_ZERO_SHOT = (
    *("boolq", "rte", "hellaswag", "winogrande", "arc_challenge", "arc_easy"),
    *("openbookqa", "piqa"),
)


@dataclass(frozen=True, kw_only=True)
class OverallSection:
    """The model and the machine."""

    model_name: str = key(REQUIRED, "model to start from", Text("hub id or folder"))
    logger: Literal["json", "none", "wandb"] = key("none", "where results go", inert=True)
    cache_dir: str = key(".cache", "cache of hub downloads", _FOLDER, inert=True)
    seed: int = key(0, "seeds python, numpy and torch", _SEED)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = key(
        "auto",
        "of the weights; auto: bfloat16 on a GPU, float32 on the CPU",
    )
    trust_code: bool = key(
        False,
        "on the command line only: run code that is named by a file.py, file.py:NAME or "
        "package.module:NAME",
        inert=True,
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = key("auto", "where to run")
    parallel: Literal["auto", "none", "ddp", "fsdp"] = key(
        "auto",
        "what torchrun's processes hold: ddp the whole model, fsdp a part of it; auto: ddp if "
        "that fits",
        inert=True,
    )


@dataclass(frozen=True, kw_only=True)
class JsonFolder:
    """Where run folders are made."""

    root: str = key("files/logs", "where run folders are made", _FOLDER, inert=True)


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Weights & Biases."""

    project: str = key("wagle", "Weights & Biases project", Text("name"), inert=True)
    mode: Literal["online", "offline", "disabled"] = key(
        "offline",
        "offline keeps the run on this machine until it is synced",
        inert=True,
    )


@dataclass(frozen=True, kw_only=True)
class LoggerSection:
    """Where a run is kept."""

    name: str | None = key(
        None,
        "run folder below json.root; not set: follows from the configuration",
        Text("name"),
        inert=True,
    )
    json: JsonFolder = JsonFolder()
    wandb: Wandb = Wandb()


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The data."""

    data_dir: str | None = key(None, "read data sets from files here instead of the hub", _FOLDER)
    question_column: str | None = key(
        None,
        "of one's own data; not set: question or prompt",
        Text("column"),
    )
    answer_column: str | None = key(
        None,
        "of one's own data; not set: answer or response",
        Text("column"),
    )
    text_column: str | None = key(None, "of one's own data; not set: text", Text("column"))
    template: Literal[
        "auto", "llama2_published", "llama2", "llama2_open_unlearning", "question_answer", "chat"
    ] = key(
        "auto",
        "prompt template; auto: the model's own, which protocol published takes from its name",
    )
    system_prompt: str | None = key(
        None,
        "system turn of the chat template; not set: as saved with the model, or usual for it",
        Maybe("text"),
    )
    date_string: str | None = key(
        None,
        "date that the chat template writes; not set: as saved with the model, or 10 Apr 2025",
        Date(),
    )


@dataclass(frozen=True, kw_only=True)
class SophiaParams:
    """Of Sophia-G."""

    betas_low: float = key(0.9, "decay of the mean gradient", _DECAY)
    betas_high: float = key(0.95, "decay of the mean Hessian diagonal", _DECAY)
    rho: float = key(0.03, "where updates are clipped", _POSITIVE)


@dataclass(frozen=True, kw_only=True)
class UnlearnSection:
    """The mask and the training."""

    unlearn_method: str = key(
        "origin",
        "objective; GradDiff is GA+FT, PO is CL+FT, NPO, SimNPO and DPO have +FT",
        Named(METHODS, "origin", aliases=METHOD_ALIASES),
    )
    num_epochs: int = key(1, "passes over the forget set", _COUNT)
    lr: float = key(1e-4, "learning rate", _RATE)
    weight_decay: float = key(0.0, "decoupled weight decay", _RATE)
    gradient_accumulation_steps: int = key(1, "batches per optimizer step", _COUNT)
    task_name: str = key(
        None,
        "which evaluation runs; not set: the one of the forget set, where its files are there",
        Named(BENCHMARKS),
    )
    mask_path: str | None = key(
        None,
        "weights that may change; made at the ratio in its name when missing; not set: all. "
        "{score}, {ratio}, {mu}, {seed} and {task} stand for this run's",
        Text("file, like tofu_0.8.pt"),
    )
    mask_ratio: float | None = key(
        None,
        "share of the weights that a missing mask selects; not set: the number in its name",
        above=0,
        at_most=1,
    )
    mask_mismatch: Literal["error", "accept", "remake"] = key(
        "error",
        "what to do with a mask file that other settings, data or another model made",
    )
    lock_timeout: float | None = key(
        None,
        "seconds to wait for another process that makes the same files; not set: no limit",
        _RATE,
        inert=True,
    )
    score_type: str = key(
        None,
        "how a missing mask is made; not set: what the mask's folder is named after, else wagle",
        Named(SCORES, aliases=SCORE_ALIASES),
    )
    mu: float = key(1e-3, "Hessian diagonal in WAGLE's scores", _POSITIVE)
    mask_scope: Literal["global", "layer", "tensor"] = key(
        "global",
        "what weights are ranked within",
    )
    mask_exclude: list[Literal["embedding", "norm", "head"]] = key(
        [],
        "weights that are never selected",
    )
    attribution_batch_size: int = key(
        8,
        "rows run at once to make a mask; only time and memory depend on it",
        _COUNT,
    )
    attribution_offload: Literal["none", "cpu", "disk"] = key(
        "none",
        "where sums of gradients are kept; none: with the weights",
    )
    attribution_dtype: Literal["float32", "float64"] = key("float32", "of sums of gradients")
    gradient_cache: str | None = key(
        None,
        "sums of gradients are kept in files that start so; not set: beside the mask",
        Text("path"),
        inert=True,
    )
    p: float = key(0.01, "accepted for old configs, has no effect", inert=True)
    q: float = key(0.01, "accepted for old configs, has no effect", inert=True)
    sophia: bool = key(False, "Sophia-G instead of AdamW")
    sophia_params: SophiaParams = SophiaParams()
    resume_path: str | None = key(None, "evaluate this saved model; nothing is trained", _FOLDER)
    max_steps: int = key(-1, "optimizer steps; -1: num_epochs decides", Steps())
    step_formula: Literal["published", "whole_epochs"] = key(
        "published",
        "steps of num_epochs; whole_epochs: every row in every epoch, as in fine-tuning; "
        "published: num_epochs * rows // (batch_size * accumulation)",
    )
    use_lora: bool = key(False, "train LoRA adapters, merged into the weights when saved")
    lora_targets: list[str] | None = key(
        None,
        "names of the layers that get adapters; not set: usual for the model's family, query and "
        "value",
        ListOf(Text("name")),
    )
    mask_enforcement: Literal["optimizer", "gradient"] = key(
        "optimizer",
        "gradient: as published, weights outside the mask still decay",
    )
    master_weights: bool | None = key(
        None,
        "float32 copy of the selected weights; not set: where the dtype is 16-bit",
    )
    moments: Literal["float", "8bit"] = key(
        "float",
        "8bit: the optimizer's moments take 8 bits each instead of the 32 or 16 of a float",
    )
    gradients: Literal["dense", "packed"] = key(
        "dense",
        "packed: of the selected weights only, clipped by their norm; dense: by that of all",
    )
    max_grad_norm: float = key(1.0, "gradients are clipped to this norm; 0: not clipped", _RATE)
    sam_rho: float = key(
        0.0,
        "the forget term's gradient is taken so far up its slope, 0.01 in the paper; 0: no SAM",
        _RATE,
    )
    smoothing_std: float = key(
        0.0,
        "the forget term's gradient is the mean of three at weights with noise of this size, 1e-4 "
        "in the paper; 0: without noise",
        _RATE,
    )
    average_from: int | None = key(
        None,
        "the mean of the weights after this step and all later ones is what is saved",
        _COUNT,
    )
    gradient_checkpointing: bool = key(False, "saves memory, takes time")
    save_model: bool = key(True, "false: keep the run's numbers, not its model", inert=True)
    save_steps: int | None = key(None, _SAVE_STEPS, _COUNT, inert=True)


@dataclass(frozen=True, kw_only=True)
class PairedDataSection(DataSection):
    """What is forgotten and what is retained."""

    forget_dataset_name: str = key("SafePku", "forget set", _DATASET)
    retain_dataset_name: str = key(
        None,
        "retain set; not set: TruthfulQA, but a forget set of one's own needs one",
        _DATASET,
    )
    dataset_seed: int = key(0, "which forget examples are drawn", _SEED)
    forget_ratio: float = key(
        None,
        "up to 1: the fraction of the forget set to draw; above 1: how many examples; not set: "
        "200 of SafePku and with self_retain, else all",
        _POSITIVE,
    )
    self_retain: bool = key(False, "retain the forget set's rows that were not drawn")
    batch_size: int = key(16, "examples per batch", _COUNT)
    num_workers: int = key(0, "processes that load data", at_least=0, at_most=256, inert=True)


@dataclass(frozen=True, kw_only=True)
class TaskNames:
    """Names of lm-eval tasks."""

    bio: str = key("wmdp_bio", "WMDP on biology", _LM_EVAL_TASK)
    chem: str = key("wmdp_chem", "WMDP on chemistry", _LM_EVAL_TASK)
    cyber: str = key("wmdp_cyber", "WMDP on cybersecurity", _LM_EVAL_TASK)
    mmlu: str = key("mmlu", "general knowledge", _LM_EVAL_TASK)
    perplexity: str = key("wikitext", "perplexity per word", _LM_EVAL_TASK)
    zero_shot: list[str] = key(
        list(_ZERO_SHOT),
        "their mean accuracy is the zero-shot accuracy",
        ListOf(_LM_EVAL_TASK),
    )
    truthfulqa: str = key("truthfulqa_mc2", "truthfulness", _LM_EVAL_TASK)


@dataclass(frozen=True, kw_only=True)
class EvaluationSection:
    """The evaluation."""

    protocol: Literal["corrected", "published", "official"] = key(
        "corrected",
        "of TOFU; published: as the paper's numbers were made; official: as its authors' and "
        "open-unlearning's",
    )
    word_tokenizer: Literal["auto", "rouge_score", "unicode"] = key(
        "auto",
        "words of ROUGE and BLEU; rouge_score: of a-z and 0-9 alone; unicode: of every script; "
        "auto: unicode where the true answers would lose much",
    )
    rouge_stems: bool = key(
        True,
        "MUSE's ROUGE compares stems of words, as open-unlearning's; false: words, as its authors'",
    )
    batch_size: int = key(32, "sequences run at once", _COUNT)
    limit: int | None = key(None, "first rows of each set, for a quick look", _COUNT)
    holdout_dataset_name: str | None = key(
        None,
        "rows that the model was never trained on, for membership inference by the task own and "
        "by TOFU's protocol official",
        _DATASET,
    )
    paraphrase_column: str | None = key(
        None,
        "column of the forget questions in other words, which the tasks own and tofu ask too",
        Text("column"),
    )
    question_prefix: str | None = key(
        None,
        "the tasks own and tofu ask the forget questions behind this text too, such as a jailbreak",
        Text("text"),
    )
    every_steps: int | None = key(
        None,
        "steps of training between two measurements, the first before training; not set: none",
        _COUNT,
    )
    during: Literal["subset", "everything"] = key(
        "subset",
        "what is measured during training; subset: loss, probability, memorisation and ROUGE of "
        "some rows; everything: the whole evaluation",
    )
    during_rows: int = key(16, "rows to forget and rows to retain of the subset", _COUNT)
    keep_best: str | None = key(
        None,
        "number that is measured during training, such as forget probability: the model of its "
        "best step is kept; not set: of the last",
        Text("number"),
    )
    utility_floor: float = key(
        0.9, "share of the utility before training that the best step must have", _RATE
    )
    tasks: list[str] | None = key(None, "what to run as well", ListOf(_LM_EVAL_TASK))
    task_names: TaskNames = TaskNames()
    sentence_model: str = key(
        "sentence-transformers/paraphrase-MiniLM-L6-v2",
        "sentence encoder for TOFU's accuracy: from the hub, a folder or a Python package",
        Text("name, folder, package"),
    )
    retain_results: str | None = key(
        None,
        "the retain-only model's tofu.json, TOFU_EVAL.json or eval_log_aggregated.json, for the "
        "forget quality; with muse its privleak.json or MUSE_EVAL.json",
        Text("file"),
    )
    original_results: str | None = key(
        None,
        "the same of the model before unlearning, which utility (Util) is a share of",
        Text("file"),
    )
    fluency_model: str | None = key(
        None,
        "text classifier with the label clean, for the fluency of answers, such as "
        "madhurjindal/autonlp-Gibberish-Detector-492513457; not set: no fluency",
        Text("hub id or folder"),
    )
    attacks: list[str] = key([], "membership attacks beside Min-k%", ListOf(Named(ATTACKS)))
    reference_model: str | None = key(
        None,
        "model of the reference attack",
        Text("hub id or folder"),
    )
    prompt_tokens: int = key(300, "of the copyright task's prompts: 50, 100, 200 or 300", _COUNT)
    toxicity_model: str = key(
        "unitary/toxic-bert",
        "text classifier with the label toxic",
        Text("hub id or folder"),
    )


@dataclass(frozen=True, kw_only=True)
class FineTuneSection:
    """The training."""

    dataset_name: str = key(REQUIRED, "what to learn", _DATASET)
    extra_dataset_names: list[str] = key([], "what to learn as well", ListOf(_DATASET))
    subset_limit: int | None = key(None, "first rows of each data set", _COUNT)
    num_epochs: int = key(1, "passes over the data", _COUNT)
    max_steps: int = key(-1, "optimizer steps; -1: num_epochs decides", Steps())
    lr: float = key(1e-5, "learning rate", _RATE)
    weight_decay: float = key(0.01, "decoupled weight decay", _RATE)
    batch_size: int = key(8, "examples per batch", _COUNT)
    gradient_accumulation_steps: int = key(1, "batches per optimizer step", _COUNT)
    master_weights: bool | None = key(
        None,
        "float32 copy of the weights; not set: where the dtype is 16-bit",
    )
    moments: Literal["float", "8bit"] = key(
        "float",
        "8bit: the optimizer's moments take 8 bits each instead of the 32 or 16 of a float",
    )
    warmup_ratio: float = key(0.05, "share of the steps to warm up in", at_least=0, at_most=1)
    output_dir: str = key(REQUIRED, "where the model goes", _FOLDER)
    from_scratch: bool = key(False, "build the demo's tiny Llama instead of loading a model")
    save_steps: int | None = key(None, _SAVE_STEPS, _COUNT, inert=True)
