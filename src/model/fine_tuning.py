"""Fine-tuning: makes the model to be unlearned, and the retain-only model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wagle import ranks, shards
from wagle.config import FineTuneConfig
from wagle.dataset.checking import check_rows
from wagle.dataset.encoding import Encoded, pad_batch
from wagle.dataset.pairing import Encoder
from wagle.dataset.reading import ColumnNames
from wagle.dataset.sources import find_source, load_rows, row_encoder
from wagle.dataset.templates import announcement, resolve_template
from wagle.devices import seed_everything
from wagle.errors import ConfigError, WagleError
from wagle.loggers.files import check_room, read_json
from wagle.loggers.folder_lock import FolderLock
from wagle.loggers.run_folder import TRAINING
from wagle.model.environment import rows_fingerprint, versions
from wagle.model.head import token_losses
from wagle.model.loading import (
    find_saved_template,
    load_model,
    resolve_dtype,
    save_model,
)
from wagle.model.reading import check_readable, learned_positions
from wagle.model.tiny import build_tiny_llama
from wagle.optim.bitmask import BitMask, Mask
from wagle.planning.parallel import join_processes
from wagle.stopping import deferring
from wagle.terminal import say
from wagle.training.checkpoint import Checkpoints
from wagle.training.loop import Batch, Hooks, Loss, TrainingData, Window, train
from wagle.training.optimizer import make_optimizer
from wagle.training.schedule import Plan
from wagle.unlearn.mask.fingerprints import examples_fingerprint, model_fingerprint

RECORD = "fine_tuning.json"
"""Beside the weights: the configuration that made them, and the training log."""


class EncodedRows(Dataset[Encoded]):
    """A map-style data set: rows encoded when they are asked for.

    Args:
        parts: rows with the function that encodes them, one pair per data set.
    """

    def __init__(self, parts: Sequence[tuple[Sequence[Mapping[str, str]], Encoder]]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in self.parts)

    def __getitem__(self, index: int) -> Encoded:
        for rows, encode in self.parts:
            if index < len(rows):
                return encode(rows[index])
            index -= len(rows)
        raise IndexError(index)


def fine_tune(  # noqa: PLR0913 - what a recipe is made of
    model: PreTrainedModel,
    dataset: EncodedRows | Sequence[Encoded],
    plan: Plan,
    *,
    lr: float,
    weight_decay: float,
    master_weights: bool,
    eight_bit: bool = False,
    seed: int,
    pad_token_id: int,
    mask: Mask | None = None,
    before_step: Callable[[int], None] = lambda step: None,
    checkpoints: Checkpoints | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place on the labelled tokens of ``dataset``.

    AdamW, linear schedule with warm-up, gradients clipped to norm 1; the loss of a step is the mean
    cross-entropy over all labelled tokens of its window.

    Args:
        master_weights: keep float32 masters of 16-bit weights.
        eight_bit: the optimizer's moments have 8 bits each.
        mask: the weights that may change, every other stays bit for bit; ``None``: all may.
        before_step: called with the number of each step, from 0, before it.

    Returns:
        The training log (:func:`wagle.training.loop.train`).
    """

    def share(model: PreTrainedModel, batch: Batch, window: Window) -> Iterator[Loss]:
        losses, _ = token_losses(model, batch)
        tokens = sum(len(part["predicted"]) for part in window)
        yield Loss(losses.sum() / tokens)

    def order(epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed + epoch)
        return torch.randperm(len(dataset), generator=generator).tolist()

    parameters = dict(model.named_parameters())
    masks: dict[torch.Tensor, BitMask] | None = None
    if mask is not None:
        masks = {parameters[name]: bits for name, bits in mask.items()}
    log = train(
        model,
        TrainingData(dataset, order, partial(pad_batch, pad_token_id=pad_token_id)),
        share,
        make_optimizer(
            model,
            lr=lr,
            weight_decay=weight_decay,
            master_weights=master_weights,
            eight_bit=eight_bit,
            masks=masks,
        ),
        plan,
        seed=seed,
        hooks=Hooks(before_window=lambda step, window: before_step(step)),
        checkpoints=checkpoints,
    )
    model.eval()
    return log


def fine_tune_from_config(config: FineTuneConfig) -> Path:
    """Load or build the model, fine-tune it as configured, and save it.

    Returns:
        The folder of the saved model; it appears only complete.

    Raises:
        ConfigError: the output folder was made from another configuration, is being written to, or
            cannot be.
    """
    output = Path(config.finetune.output_dir)
    device, sharded = join_processes(config)
    with ranks.first_in(lambda: FolderLock(output, "finetune.output_dir")):
        if ranks.first(lambda: output.exists() and any(output.iterdir())):
            if ranks.is_first():
                shutil.rmtree(_training_folder(output), ignore_errors=True)  # of a kill at the end
            _check_made(config, output, device, sharded)
        else:
            _make(config, output, device, sharded)
    return output


def _check_made(config: FineTuneConfig, output: Path, device: torch.device, sharded: bool) -> None:
    """Make sure that a model was made from this configuration, and from what it names today."""
    record = read_json(output / RECORD) if (output / RECORD).is_file() else {}
    if not isinstance(record, dict) or record.get("fingerprint") != config.fingerprint():
        raise ConfigError(
            f"finetune.output_dir {output} exists and was not made from this configuration; remove "
            "it or choose another folder"
        )
    say(f"already made with this configuration: {output}")
    try:
        tables = _read_rows(config)
        model, _ = _starting_model(config, tables.values(), device, sharded)
    except WagleError as error:
        say(f"not checked whether it was made from the same model and rows: {error}")
        return
    if record.get("resolved") != _resolved(config, model):
        say("not checked whether it was made from the same model: it was made in another way")
        return
    today, known = _fingerprints(model, tables), record.get("fingerprints", {})
    changed = [name for name in today if name in known and known[name] != today[name]]
    if changed:
        raise ConfigError(
            f"finetune.output_dir {output} was made from other files than are there now, of the "
            f"same names ({', '.join(changed)}); remove it or choose another folder"
        )


def _fingerprints(model: PreTrainedModel, tables: Mapping[str, datasets.Dataset]) -> dict[str, str]:
    rows = {name: rows_fingerprint(table) for name, table in tables.items()}
    return {"model": model_fingerprint(model), **rows}


def _resolved(config: FineTuneConfig, model: PreTrainedModel) -> dict[str, Any]:
    """What was chosen where the configuration leaves the choice, by key."""
    return {
        "overall.device": model.device.type,
        "overall.dtype": str(model.dtype).removeprefix("torch."),
        "finetune.master_weights": _master_weights(config, model.dtype),
    }


def _read_rows(config: FineTuneConfig) -> dict[str, datasets.Dataset]:
    """The rows to learn, by data set."""
    names = [config.finetune.dataset_name, *(config.finetune.extra_dataset_names or [])]
    data_dir = config.dataset.data_dir
    tables = {
        name: load_rows(
            name,
            data_dir=Path(data_dir) if data_dir else None,
            cache_dir=Path(config.overall.cache_dir),
            role="retain",
            columns=ColumnNames.of(config.dataset),
        )
        for name in names
    }
    limit = config.finetune.subset_limit
    if limit is not None:
        tables = {name: rows.take(min(limit, len(rows))) for name, rows in tables.items()}
    return tables


def _make(config: FineTuneConfig, output: Path, device: torch.device, sharded: bool) -> None:
    seed_everything(config.overall.seed)
    tables = _read_rows(config)
    names = list(tables)
    plan = _plan(config, sum(map(len, tables.values())))
    say(f"training: {plan.describe()}")
    model, tokenizer = _starting_model(config, tables.values(), device, sharded)
    longest = max(find_source(name).max_length for name in names)
    several = config.finetune.batch_size > 1
    check_readable(model, longest, tokenizer.pad_token_id, in_batches=several)
    from_scratch = config.finetune.from_scratch
    place = (config.overall.model_name, Path(config.overall.cache_dir))
    saved = None if from_scratch else find_saved_template(*place)
    template = resolve_template(
        config.dataset,
        tokenizer,
        model_name=config.overall.model_name,
        dataset_name=names[0],
        architecture=model.config.model_type,
        saved=saved,
    )
    say(announcement(template, saved))
    resolved = _resolved(config, model)
    fingerprints = _fingerprints(model, tables)
    say(", ".join(f"{key} {value}" for key, value in resolved.items()))
    check_room(output.parent, shards.weight_bytes(model))
    parts = {name: (rows, row_encoder(name, tokenizer, template)) for name, rows in tables.items()}
    for name, (rows, encode) in parts.items():
        positions = learned_positions(model, find_source(name).max_length)
        check_rows(name, rows, encode, positions=positions)
    origin = {"config": config.fingerprint(), "resolved": resolved, "fingerprints": fingerprints}
    # What tokenizer and template make of a row.
    encoded = examples_fingerprint([encode(rows[0]) for rows, encode in parts.values()])
    checkpoints = Checkpoints(
        _training_folder(output),
        {**origin, "encoded": encoded, "versions": versions()},
        every=config.finetune.save_steps,
        keeps_last=False,
    )
    log = fine_tune(
        model,
        EncodedRows(list(parts.values())),
        plan,
        lr=config.finetune.lr,
        weight_decay=config.finetune.weight_decay,
        master_weights=_master_weights(config, model.dtype),
        eight_bit=config.finetune.moments == "8bit",
        seed=config.overall.seed,
        pad_token_id=tokenizer.pad_token_id,
        checkpoints=checkpoints,
    )
    record = {
        "fingerprint": config.fingerprint(),
        "config": config.as_dict(),
        "resolved": resolved,
        "fingerprints": fingerprints,
        "log": log,
        "resumed": checkpoints.resumed,
    }
    with deferring("the model is saved"):
        save_model(model, tokenizer, output, template=template, documents={RECORD: record})
        checkpoints.remove()


def _training_folder(output: Path) -> Path:
    """Checkpoints of a training in progress; the output folder itself appears complete."""
    return output.with_name(f".{output.name}.{TRAINING}")


def _starting_model(
    config: FineTuneConfig,
    tables: Iterable[datasets.Dataset],
    device: torch.device,
    sharded: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    dtype = resolve_dtype(config.overall.dtype, device)
    if config.finetune.from_scratch:
        texts = [text for rows in tables for row in rows for text in row.values()]
        model, tokenizer = build_tiny_llama(texts, seed=config.overall.seed)
        model.to(device, dtype)  # type: ignore[arg-type]  # its wrapper hides the self of to
        if sharded:
            shards.shard(model)
        return model, tokenizer
    return load_model(
        config.overall.model_name,
        dtype=dtype,
        device=device,
        cache_dir=Path(config.overall.cache_dir),
        sharded=sharded,
    )


def _plan(config: FineTuneConfig, rows: int) -> Plan:
    return Plan.make(
        rows,
        batch_size=config.finetune.batch_size,
        accumulation=config.finetune.gradient_accumulation_steps * ranks.size(),
        num_epochs=config.finetune.num_epochs,
        max_steps=config.finetune.max_steps,
        whole_epochs=True,
        warmup=config.finetune.warmup_ratio,
    )


def _master_weights(config: FineTuneConfig, dtype: torch.dtype) -> bool:
    masters = config.finetune.master_weights
    return dtype.itemsize == 2 if masters is None else masters
