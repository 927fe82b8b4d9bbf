"""Fine-tuning: makes the model to be unlearned, and the retain-only model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from src.dataset.encoding import Encoded, pad_batch


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
    trainer.train()
    model.eval()
    return trainer.state.log_history
