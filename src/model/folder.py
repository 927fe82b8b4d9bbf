"""What is wrong with a local model folder, found out before anything is loaded from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from transformers import CONFIG_MAPPING
from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from wagle.errors import WagleError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
_ADAPTER = "adapter_config.json"
_POINTER = b"version https://git-lfs"  # how Git LFS begins what stands for a large file
_LARGEST_JSON = 100_000_000  # bytes; the limit of the safetensors format for its header


def check_model_folder(folder: Path) -> None:
    """Look at configuration and weights: are they there, whole, and of a kind that can be loaded?

    Raises:
        WagleError: the message names the folder and what is wrong with it.
    """
    _refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        _refuse(folder, "it holds no config.json")
    config = _read_json(folder, "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        known = f"unknown to transformers {transformers_version}"
        _refuse(folder, f"its config.json says model_type {json.dumps(kind)}, which is {known}")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        _refuse(folder, f"a {kind} is no causal language model")
    if (folder / "generation_config.json").is_file():
        _read_json(folder, "generation_config.json")  # the library would do without a damaged one
    for path in weight_files(folder):
        _check_weights(folder, path)


def check_tokenizer_folder(folder: Path) -> None:
    """Look whether a tokenizer is there at all; the library would make an empty one of some kinds.

    Raises:
        WagleError: there is none.
    """
    _refuse_adapter(folder)
    if (folder / "config.json").is_file():
        _read_json(folder, "config.json")  # the library looks there for the kind of tokenizer
    there = [folder / name for name in _TOKENIZERS if (folder / name).is_file()]
    if not there:
        _refuse(folder, f"it holds no tokenizer ({', '.join(_TOKENIZERS[:3])}, …)")
    for path in there:
        _check_whole(folder, path)


def _refuse(folder: Path, wrong: str) -> NoReturn:
    raise WagleError(f"the folder {folder} cannot be used as a model: {wrong}")


def _refuse_adapter(folder: Path) -> None:
    """transformers would load another model, the one that the adapter was made for."""
    if (folder / _ADAPTER).is_file():
        base = _read_json(folder, _ADAPTER).get("base_model_name_or_path")
        _refuse(
            folder,
            f"it holds an adapter ({_ADAPTER}) for {base!r}; merge it into that model "
            "(peft: merge_and_unload) and save the whole",
        )


def weight_files(folder: Path) -> Iterator[Path]:
    """The files that the weights are read from, in the library's order of preference.

    Raises:
        WagleError: there are none, or one is missing.
    """
    for name in _WEIGHTS:
        index = f"{name}.index.json"
        if (folder / name).is_file():
            if (folder / index).is_file():
                _refuse(folder, f"it holds {name} and, of another model, {index}; remove either")
            yield folder / name
            return
        if (folder / index).is_file():
            shards = _read_json(folder, index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                _refuse(folder, f"its {index} names no files")
            for shard in sorted({str(shard) for shard in shards.values()}):
                if not (folder / shard).is_file():
                    _refuse(folder, f"{shard} is missing, which its {index} names")
                yield folder / shard
            return
    hint = "; give the .gguf file itself" if any(folder.glob("*.gguf")) else ""
    _refuse(folder, f"it holds no weights ({' or '.join(_WEIGHTS)}, whole or in parts){hint}")


def _check_whole(folder: Path, path: Path) -> bytes:
    """The first bytes of a file that is neither empty nor a stand-in."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        _refuse(folder, f"{path.name} cannot be read ({error})")
    if start == _POINTER:
        _refuse(folder, f"{path.name} is a Git LFS pointer, not the file: run git lfs pull")
    if not start:
        _refuse(folder, f"{path.name} is empty")
    return start


def _check_weights(folder: Path, path: Path) -> None:
    start = _check_whole(folder, path)
    if path.suffix != ".safetensors":
        return
    size = path.stat().st_size
    length = int.from_bytes(start[:8], "little")
    if length > min(size - 8, _LARGEST_JSON):
        _refuse(folder, f"{path.name} is cut short, or its header is damaged")
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length))
        offsets = [entry["data_offsets"] for name, entry in header.items() if name[:2] != "__"]
        wanted = 8 + length + max((int(end) for _, end in offsets), default=0)
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError):
        _refuse(folder, f"the header of {path.name} is damaged")
    if size != wanted:
        _refuse(folder, f"{path.name} is cut short or damaged: {size:,} of {wanted:,} bytes")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    _check_whole(folder, path)
    if path.stat().st_size > _LARGEST_JSON:
        _refuse(folder, f"{name} is too large to be what it is named")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        _refuse(folder, f"{name} is damaged ({error})")
    if not isinstance(content, dict):
        _refuse(folder, f"{name} holds no JSON object")
    return content
