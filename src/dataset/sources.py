"""The data sets by name, from the hub or from local files.

To add one: write a loader that returns rows with the columns ``question`` and ``answer`` (or
``text``) and register it in ``SOURCES``, with its pattern in ``src/config.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets

from src.dataset.encoding import Encoded, encode_answer, encode_text
from src.dataset.templates import Template
from src.errors import WagleError
from src.hub import connect_to_hub

DATA = Path(__file__).resolve().parents[2] / "files" / "data"

Role = Literal["forget", "retain"]


@dataclass(frozen=True)
class Request:
    """What a loader is asked for.

    Attributes:
        subset: what follows the underscore of the data set's name, "" where there is none.
        role: some data sets hold different rows for forgetting and for retaining.
        data_dir: read local files below this folder instead of the hub.
        cache_dir: the hub's cache.
    """

    subset: str
    role: Role
    data_dir: Path | None
    cache_dir: Path

    def rows(
        self, hub: str, config: str | None, local: str, split: str = "train", **hub_options: str
    ) -> datasets.Dataset:
        """Rows of a hub data set, or of the JSON-lines file ``data_dir / local``."""
        if self.data_dir is not None:
            return read_json_lines(self.data_dir / local)
        connect_to_hub()
        try:
            return datasets.load_dataset(
                hub, config, split=split, cache_dir=str(self.cache_dir), **hub_options
            )
        except (ConnectionError, OSError) as error:
            raise WagleError(
                f"the data set {hub} ({config or 'default'}) is not in the cache and the hub "
                f"cannot be reached ({type(error).__name__}); give local files with "
                f"--dataset.data_dir FOLDER (it would read FOLDER/{local}), or connect to the "
                "network"
            ) from error


@dataclass(frozen=True)
class Source:
    """A data set: how to load it and how long its examples may become (tokens)."""

    load: Callable[[Request], datasets.Dataset]
    max_length: int


def read_json_lines(path: Path) -> datasets.Dataset:
    """Rows of a JSON-lines file.

    Raises:
        WagleError: the file is missing or is not JSON lines.
    """
    if not path.is_file():
        raise WagleError(f"there is no data file {path}; it should hold one JSON object per line")
    try:
        return datasets.Dataset.from_json(str(path), cache_dir=str(_arrow_cache()))
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        raise WagleError(f"{path} cannot be read as JSON lines: {error}") from error


def _arrow_cache() -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "wagle"


def _tofu(request: Request) -> datasets.Dataset:
    return request.rows("locuslab/TOFU", request.subset, f"TOFU/{request.subset}.json")


def _demo(request: Request) -> datasets.Dataset:
    folder = DATA / "demo" if request.data_dir is None else request.data_dir / "demo"
    return read_json_lines(folder / f"{request.subset}.json")


SOURCES: dict[str, Source] = {
    "Tofu": Source(_tofu, max_length=512),
    "Demo": Source(_demo, max_length=512),
}
"""By the part of the name before the underscore."""


def find_source(name: str) -> Source:
    """The source of the data set called ``name``."""
    return SOURCES[name.partition("_")[0]]


def load_rows(
    name: str, *, data_dir: Path | None, cache_dir: Path, role: Role = "forget"
) -> datasets.Dataset:
    """Rows of a data set, with the columns ``question`` and ``answer``, or ``text``.

    Args:
        name: as in ``dataset.forget_dataset_name``, for example ``Tofu_forget10``.
        data_dir: read local files below this folder instead of the hub.
        cache_dir: the hub's cache.
        role: whether the rows are to be forgotten or retained.

    Raises:
        WagleError: the hub cannot be reached, or a local file is missing or malformed.
    """
    subset = name.partition("_")[2]
    return find_source(name).load(Request(subset, role, data_dir, cache_dir))


def row_encoder(
    name: str, tokenizer, template: Template, *, eos: bool = True
) -> Callable[[Mapping[str, str]], Encoded]:
    """A function from a row of the data set to ids and labels.

    Rows with a question are encoded in the template and labelled on the answer part; running text
    is labelled throughout.
    """
    max_length = find_source(name).max_length

    def encode(row: Mapping[str, str]) -> Encoded:
        if "text" in row:
            return encode_text(tokenizer, row["text"], max_length=max_length)
        return encode_answer(
            tokenizer, template, row["question"], row["answer"], max_length=max_length, eos=eos
        )

    return encode
