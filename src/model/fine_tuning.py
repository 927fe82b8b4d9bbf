"""Fine-tuning: makes the model to be unlearned, and the retain-only model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from src.config import Config
from src.dataset.encoding import Encoded, pad_batch
from src.dataset.sources import load_rows, row_encoder
from src.dataset.templates import resolve_template
from src.errors import ConfigError
from src.loggers.files import temporary_folder
from src.model.loading import load_model, resolve_device, resolve_dtype, save_model
from src.model.tiny import build_tiny_llama

RECORD = "fine_tuning.json"
"""Beside the weights: the configuration that made them, and the training log."""


@dataclass(frozen=True)
class FineTuneSettings:
    """Hyper-parameters of fine-tuning; ``max_steps`` of -1 means ``num_epochs`` passes."""

    lr: float
    num_epochs: int
    batch_size: int
    gradient_accumulation_steps: int
    weight_decay: float
    warmup_ratio: float
    max_steps: int
    seed: int
    num_workers: int = 0


class EncodedRows:
    """A map-style data set: rows encoded when they are asked for.

    Args:
        parts: rows with the function that encodes them, one pair per data set.
    """

    def __init__(
        self, parts: Sequence[tuple[Sequence[Mapping], Callable[[Mapping], Encoded]]]
    ) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in self.parts)

    def __getitem__(self, index: int) -> Encoded:
        for rows, encode in self.parts:
            if index < len(rows):
                return encode(rows[index])
            index -= len(rows)
        raise IndexError(index)


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: EncodedRows,
    settings: FineTuneSettings,
    *,
    work_dir: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[dict[str, float]]:
    """Train ``model`` in place on the labelled tokens of ``dataset``.

    AdamW, linear schedule with warm-up, gradients clipped to norm 1; the loss is the token-mean
    cross-entropy.

    Returns:
        The training log: one dict per logged step.
    """
    steps_per_epoch = -(-len(dataset) // settings.batch_size)
    updates = -(-steps_per_epoch // settings.gradient_accumulation_steps) * settings.num_epochs
    total = settings.max_steps if settings.max_steps > 0 else updates
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        num_train_epochs=settings.num_epochs,
        max_steps=settings.max_steps,
        learning_rate=settings.lr,
        weight_decay=settings.weight_decay,
        warmup_steps=max(1, int(settings.warmup_ratio * total)),
        lr_scheduler_type="linear",
        logging_steps=max(1, total // 20),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        seed=settings.seed,
        use_cpu=model.device.type == "cpu",
        dataloader_num_workers=settings.num_workers,
        dataloader_pin_memory=model.device.type == "cuda",
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=lambda examples: pad_batch(examples, tokenizer.pad_token_id),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # the log is returned
    trainer.train()
    model.eval()
    return trainer.state.log_history


def fine_tune_from_config(config: Config) -> Path:
    """Load or build the model, fine-tune it as configured, and save it.

    Returns:
        The folder of the saved model; it appears only complete.

    Raises:
        ConfigError: the output folder exists and was made from another configuration.
    """
    output = Path(config["finetune.output_dir"])
    record = output / RECORD
    if output.exists():
        if _made_from(record) == config.fingerprint():
            tqdm.write(f"already made with this configuration: {output}")
            return output
        raise ConfigError(
            f"finetune.output_dir {output} exists and was not made from this configuration; remove "
            "it or choose another folder"
        )
    set_seed(config["overall.seed"])
    names = [config["finetune.dataset_name"], *(config["finetune.extra_dataset_names"] or [])]
    data_dir = config["dataset.data_dir"]
    tables = {
        name: load_rows(
            name,
            data_dir=Path(data_dir) if data_dir else None,
            cache_dir=Path(config["overall.cache_dir"]),
            role="retain",
        )
        for name in names
    }
    limit = config["finetune.subset_limit"]
    if limit is not None:
        tables = {name: rows.take(min(limit, len(rows))) for name, rows in tables.items()}
    model, tokenizer = _starting_model(config, tables.values())
    template = resolve_template(
        config["dataset.template"], config["overall.model_name"], names[0], tokenizer
    )
    parts = [(rows, row_encoder(name, tokenizer, template)) for name, rows in tables.items()]
    with temporary_folder() as work_dir:
        log = fine_tune(model, tokenizer, EncodedRows(parts), _settings(config), work_dir=work_dir)
    save_model(
        model,
        tokenizer,
        output,
        documents={
            RECORD: {"fingerprint": config.fingerprint(), "config": config.as_dict(), "log": log}
        },
    )
    return output


def _made_from(record: Path) -> str | None:
    return json.loads(record.read_text())["fingerprint"] if record.is_file() else None


def _starting_model(
    config: Config, tables: Iterable[datasets.Dataset]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    device = resolve_device(config["overall.device"])
    dtype = resolve_dtype(config["overall.dtype"], device)
    if config["finetune.from_scratch"]:
        texts = [text for rows in tables for row in rows for text in row.values()]
        model, tokenizer = build_tiny_llama(texts, seed=config["overall.seed"])
        return model.to(device, dtype), tokenizer
    return load_model(
        config["overall.model_name"],
        dtype=dtype,
        device=device,
        cache_dir=Path(config["overall.cache_dir"]),
    )


def _settings(config: Config) -> FineTuneSettings:
    return FineTuneSettings(
        lr=config["finetune.lr"],
        num_epochs=config["finetune.num_epochs"],
        batch_size=config["finetune.batch_size"],
        gradient_accumulation_steps=config["finetune.gradient_accumulation_steps"],
        weight_decay=config["finetune.weight_decay"],
        warmup_ratio=config["finetune.warmup_ratio"],
        max_steps=config["finetune.max_steps"],
        seed=config["overall.seed"],
    )
