"""Loading and saving models and tokenizers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from wagle import devices, ranks, shards
from wagle.dataset.templates import TEMPLATE_FILE, Template, read_saved_template
from wagle.errors import ConfigError, WagleError
from wagle.hub import connect_to_hub, hub_options, loading
from wagle.loggers.files import replacing_folder, write_json
from wagle.model.folder import check_model_folder, check_tokenizer_folder
from wagle.model.sharded_files import load_sharded, save_sharded
from wagle.model.weights import load_whole
from wagle.terminal import say
from wagle.training.loop import not_finite

MODEL_HINT = (
    "a local model folder (--overall.model_name FOLDER; local data with --dataset.data_dir FOLDER)"
)


def resolve_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``mps``; auto takes the fastest there is.

    Raises:
        ConfigError: the device is not available on this machine.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    elif not available[name]:
        there = ", ".join(device for device, there in available.items() if there)
        raise ConfigError(f"overall.device is {name}, but this machine offers: {there}")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the weights; ``auto`` is bfloat16 on a GPU and float32 on the CPU."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, name)


def find_gguf(name: str) -> Path | None:
    """The GGUF file that ``name`` means: a path, or an installed package that carries just one."""
    if name.endswith(".gguf"):
        return Path(name) if Path(name).is_file() else None
    if not name.isidentifier() or Path(name).exists():
        return None
    package = importlib.util.find_spec(name)
    if package is None or not package.submodule_search_locations:
        return None
    files = sorted(Path(package.submodule_search_locations[0]).glob("**/*.gguf"))
    return files[0] if len(files) == 1 else None


def load_model(
    name: str, *, dtype: torch.dtype, device: torch.device, cache_dir: Path, sharded: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model with its tokenizer.

    Args:
        name: a local folder, a GGUF file, an installed Python package that carries one, or a hub
            id.
        dtype: of the weights.
        device: where the weights go.
        cache_dir: the hub's cache.
        sharded: cut the model among the processes (:mod:`wagle.shards`).

    Returns:
        The model in eval mode, and a tokenizer that has a padding token.

    Raises:
        WagleError: the model cannot be found or read.
    """
    if devices.on_cpu(device):
        devices.settle_attention()
    gguf = find_gguf(name)
    tokenizer = check_model(name, cache_dir)
    with loading("model", name, MODEL_HINT):
        model = _load_parts(name, dtype, device, cache_dir) if sharded and gguf is None else None
        if model is None:
            if gguf is not None:
                model = _load_gguf(gguf, dtype)
            else:
                model = load_whole(
                    AutoModelForCausalLM, name, dtype=dtype, **hub_options(name, cache_dir)
                )
            if sharded:
                shards.shard(model, device)
    model.to(device).eval()  # type: ignore[arg-type]  # its wrapper hides the self of to
    _check_fit(name, model, tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _load_parts(
    name: str, dtype: torch.dtype, device: torch.device, cache_dir: Path
) -> PreTrainedModel | None:
    """As :func:`load_sharded`, of a folder or a hub's model, which the first process fetches."""
    if Path(name).is_dir():
        return load_sharded(Path(name), dtype, device)
    connect_to_hub()
    patterns = ["*.json", "*.safetensors"]
    folder = ranks.first(
        lambda: snapshot_download(name, cache_dir=cache_dir, allow_patterns=patterns)
    )
    return load_sharded(Path(folder), dtype, device)


def check_model(
    name: str, cache_dir: Path, *, what: str = "model", hint: str = MODEL_HINT
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, after a look whether the model's files are there and whole.

    Args:
        what, hint: for the message, as in :func:`wagle.hub.loading`.

    Raises:
        WagleError: something is missing, damaged or of the wrong kind.
    """
    if Path(name).is_dir():
        check_model_folder(Path(name))
    return read_tokenizer(name, cache_dir, what=what, hint=hint)


def _check_fit(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether model and tokenizer can be right together; what is odd is said.

    Raises:
        WagleError: tokens without a row in the embedding; no EOS token; weights that are NaN or
            infinite.
    """
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    if beyond:
        token = max(beyond, key=beyond.__getitem__)
        pad = " (its PAD token)" if token == tokenizer.pad_token else ""
        raise WagleError(
            f"the tokenizer of {name} has tokens that the model has no embedding for: {token!r}"
            f"{pad} has the id {beyond[token]}, and there are {rows} rows"
        )
    if tokenizer.eos_token_id is None:
        raise WagleError(
            f"the tokenizer of {name} has no EOS token, which ends every answer; name one as "
            '"eos_token" in its tokenizer_config.json'
        )
    if len(tokenizer) < 0.9 * rows:
        say(
            f"warning: the tokenizer of {name} knows {len(tokenizer)} tokens, and the model has "
            f"{rows}; is it this model's?"
        )
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is not None and tokenizer.eos_token_id not in (
        ends if isinstance(ends, list) else [ends]
    ):
        say(
            f"warning: the tokenizer of {name} ends texts with token {tokenizer.eos_token_id}, and "
            f"the model's configuration with {ends}; answers end at any of them"
        )
    if (broken := not_finite(model)) is not None:
        raise WagleError(f"weights of the model {name} are NaN or infinite: {broken}")


def find_saved_template(name: str, cache_dir: Path) -> dict[str, str] | None:
    """What was saved with a model about its prompt template, in its folder or on the hub.

    Raises:
        WagleError: the file is damaged.
    """
    if Path(name).is_dir():
        return read_saved_template(Path(name))
    if find_gguf(name) is not None:
        return None
    exceptions = ("gated_repo", "missing_entries", "connection_errors")
    silent = {f"_raise_exceptions_for_{kind}": False for kind in exceptions}
    path = cached_file(name, TEMPLATE_FILE, **hub_options(name, cache_dir), **silent)
    return None if path is None else read_saved_template(Path(path).parent)


def read_tokenizer(
    name: str, cache_dir: Path, *, what: str = "model", hint: str = MODEL_HINT
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that is named as for :func:`load_model`.

    Args:
        what, hint: for the message, as in :func:`wagle.hub.loading`.

    Raises:
        WagleError: it cannot be found or read.
    """
    gguf = find_gguf(name)
    if Path(name).is_dir():
        check_tokenizer_folder(Path(name))
    with loading(what, name, hint):
        if gguf is not None:
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, **hub_options(name, cache_dir))
    tokenizer.truncation_side = "right"  # whatever was saved: what is too long loses its end
    return tokenizer


def _load_gguf(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Read a GGUF file into an ordinary model.

    transformers marks a model read from GGUF as quantised and then refuses to save it, although
    its weights are plain tensors; they are moved into a fresh model of the same configuration.
    """
    folder, file = str(path.parent), path.name
    read = load_whole(AutoModelForCausalLM, folder, gguf_file=file, dtype=dtype)
    config = type(read.config).from_dict(
        {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(read.state_dict())
    return model


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    template: Template | None = None,
    documents: Mapping[str, Any] | None = None,
) -> None:
    """Save a model and its tokenizer for ``from_pretrained``; ``folder`` appears only complete.

    Args:
        template: the one that the model was trained with; ``dataset.template auto`` finds it.
        documents: JSON documents to put beside the weights, by file name.
    """
    documents = {**(documents or {}), **({TEMPLATE_FILE: template.record()} if template else {})}
    if not ranks.is_first():
        if shards.is_sharded(model):
            save_sharded(model, None)
        ranks.meet()
        return
    with replacing_folder(folder) as part:
        if shards.is_sharded(model):
            save_sharded(model, part)
        else:
            model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        for name, content in documents.items():
            write_json(part / name, content)
    ranks.meet()  # now the others may read it
