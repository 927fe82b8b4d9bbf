"""Reading and writing a model that is cut among processes: none of them ever holds all of it.

The files are those of any other model. A process reads the rows that are its own; when a model is
written, one tensor after another is put together, and the first process writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from wagle import shards
from wagle.loggers.files import write_json
from wagle.model.weights import BUFFERS

FILE_BYTES = 4 << 30
"""Of a file of weights, at most, but for a tensor that is larger: the first process holds one."""


def load_sharded(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel | None:
    """A model of which each process reads its own part; ``None`` where that cannot be done.

    It can where the folder has safetensors files whose tensors are just the model's.
    """
    files = _files(folder)
    config = AutoConfig.from_pretrained(folder)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    known = model.state_dict()
    wanted = {name for name, _ in model.named_parameters()}
    extra = [name for name in files if name not in known and not re.search(BUFFERS, name)]
    if extra or not wanted <= files.keys():
        return None
    buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
    shards.shard(model, device)
    model.to_empty(device=device)
    model.tie_weights()
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    for name, parameter in model.named_parameters():
        own = shards.rows(parameter)
        with safe_open(files[name], "pt") as file:
            stored = file.get_slice(name)
            if tuple(stored.get_shape()) != tuple(parameter.shape):
                return None
            shards.local(parameter.detach()).copy_(stored[own.start : own.stop])
    return model


def _files(folder: Path) -> dict[str, Path]:
    """By the name of each tensor the file that has it."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        entries = json.loads(index.read_text())["weight_map"]
        return {name: folder / file for name, file in entries.items()}
    single = folder / SAFE_WEIGHTS_NAME
    if not single.is_file():
        return {}
    with safe_open(single, "pt") as file:
        return dict.fromkeys(file.keys(), single)


def save_sharded(model: PreTrainedModel, folder: Path | None) -> None:
    """Write configuration and weights as ``save_pretrained`` does; all processes call this.

    Args:
        folder: an empty one, of the first process; ``None`` in the others.
    """
    files = list(_cut(model))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, start=1):
        held: dict[str, torch.Tensor] = {}
        for name, tensor in names:
            whole = shards.whole(tensor.detach())
            if folder is not None:
                held[name] = whole.to("cpu").contiguous()
        file = SAFE_WEIGHTS_NAME
        if len(files) > 1:
            file = f"model-{number:05}-of-{len(files):05}.safetensors"
        weight_map |= dict.fromkeys(held, file)
        if folder is not None:
            save_file(held, folder / file, metadata={"format": "pt"})
    if folder is None:
        return
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if len(files) > 1:
        size = shards.weight_bytes(model)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / SAFE_WEIGHTS_INDEX_NAME, index)


def _cut(model: PreTrainedModel) -> Iterator[list[tuple[str, Any]]]:
    """The model's parameters and stored buffers, in groups of a file each; shared ones once."""
    parameters = dict(model.named_parameters())
    stored = model.state_dict().keys()
    buffers = {name: b for name, b in model.named_buffers() if name in stored}
    group: list[tuple[str, Any]] = []
    size = 0
    for name, tensor in {**parameters, **buffers}.items():
        added = tensor.numel() * tensor.element_size()
        if group and size + added > FILE_BYTES:
            yield group
            group, size = [], 0
        group.append((name, tensor))
        size += added
    yield group
