"""Hashes of what sums and norms in the cache depend on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

import torch
import xxhash
from transformers import PreTrainedModel

from wagle import shards
from wagle.dataset.encoding import Encoded
from wagle.optim.threads import ordered_map

_INERT_CONFIG = {  # says where a model came from or how it is held, not what it computes
    *("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"),
}


def model_fingerprint(model: PreTrainedModel) -> str:
    """A hash of what the model computes: its configuration, and every parameter and buffer.

    All processes call it at the same time where each holds a part of the model.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in _INERT_CONFIG}
    digest = xxhash.xxh3_128(json.dumps(config, sort_keys=True, default=str).encode())
    named = (*model.named_parameters(), *model.named_buffers())
    if shards.is_sharded(model):  # one tensor at a time is whole
        parts: Iterator[bytes] = (
            _digest((name, shards.whole(tensor).clone()))  # FSDP frees memory that numpy would keep
            for name, tensor in named
        )
    else:
        parts = ordered_map(_digest, named)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _digest(named: tuple[str, torch.Tensor]) -> bytes:
    name, tensor = named
    digest = xxhash.xxh3_128(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().to("cpu").reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def examples_fingerprint(examples: Sequence[Encoded]) -> str:
    """A hash of every token and label: of the rows, their order, pairing, template, tokenizer."""
    digest = xxhash.xxh3_128()
    for example in examples:
        digest.update(json.dumps([example.input_ids, example.labels]).encode())
    return digest.hexdigest()


def unordered_fingerprint(examples: Iterable[Encoded]) -> str:
    """The same for every order of the examples."""
    digest = xxhash.xxh3_128()
    for each in sorted(examples_fingerprint([example]) for example in examples):
        digest.update(each.encode())
    return digest.hexdigest()
