"""Which data sets there are, and how their rows are loaded; docs/data.md lists them.

To add one: a loader in a file beside this one, which returns rows with the columns ``question`` and
``answer`` (or ``text``), a line in ``SOURCES``, its name in ``DATASETS`` of ``src/config/keys.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets

from wagle.dataset.chunks import PROMPT_LENGTHS
from wagle.dataset.names import OWN_FORMS, is_own
from wagle.dataset.reading import USUAL_NAMES, ColumnNames, Request, Role
from wagle.dataset.sources.copyright import load_copyright
from wagle.dataset.sources.own import load_own
from wagle.dataset.sources.text import load_c4, load_wikitext
from wagle.dataset.sources.tofu import load_demo, load_tofu
from wagle.dataset.sources.toxicity import load_real_toxicity_prompts, load_safe_pku
from wagle.dataset.sources.truthful_qa import load_truthful_qa
from wagle.dataset.sources.wmdp import load_wmdp
from wagle.errors import WagleError


@dataclass(frozen=True)
class Source:
    """A data set, or a family of them.

    Attributes:
        load: how to load its rows.
        max_length: how long its examples may become (tokens).
        subsets: what may follow the underscore of its name; ``None``: the loader finds out.
        refusals: which sentences refuse its questions; "": those for anything.
    """

    load: Callable[[Request], datasets.Dataset]
    max_length: int
    subsets: tuple[str, ...] | None = ("",)
    refusals: str = ""


SOURCES: dict[str, Source] = {
    "Tofu": Source(load_tofu, max_length=512, subsets=None, refusals="tofu"),
    "Demo": Source(load_demo, max_length=512, subsets=None, refusals="tofu"),
    "WMDPCyber": Source(partial(load_wmdp, ("cyber",)), max_length=1024),
    "WMDPBio": Source(partial(load_wmdp, ("bio",)), max_length=1024),
    "WMDPALL": Source(partial(load_wmdp, ("cyber", "bio")), max_length=1024),
    "HP": Source(
        load_copyright,
        max_length=1024,
        subsets=("", *(f"{part}_{n}" for part in ("train", "test") for n in PROMPT_LENGTHS)),
        refusals="copyright",
    ),
    "SafePku": Source(load_safe_pku, max_length=512, subsets=("", "test")),
    "C4": Source(load_c4, max_length=512, subsets=("", "validation")),
    "wikitext": Source(load_wikitext, max_length=512),
    "TruthfulQA": Source(load_truthful_qa, max_length=512),
    "RealToxicityPrompts": Source(load_real_toxicity_prompts, max_length=512),
}
"""By the part of the name before the underscore."""

OWN_MAX_LENGTH = 1024


def find_source(name: str) -> Source:
    """The source of the data set called ``name``: a known one, a file, or one of the hub.

    Raises:
        WagleError: there is none.
    """
    if is_own(name):
        return Source(partial(load_own, name), max_length=OWN_MAX_LENGTH)
    family, _, subset = name.partition("_")
    source = SOURCES.get(family)
    if source is None or (source.subsets is not None and subset not in source.subsets):
        raise WagleError(
            f"there is no data set {name}; there are {', '.join(_names())}; or give {OWN_FORMS}"
        )
    return source


def _names() -> list[str]:
    names = []
    for family, source in SOURCES.items():
        subsets = ("SUBSET",) if source.subsets is None else source.subsets
        names += [f"{family}_{subset}".removesuffix("_") for subset in subsets]
    return names


def load_rows(
    name: str,
    *,
    data_dir: Path | None,
    cache_dir: Path,
    role: Role = "forget",
    columns: ColumnNames = USUAL_NAMES,
) -> datasets.Dataset:
    """Rows of a data set, with the columns ``question`` and ``answer``, or ``text``.

    Args:
        name: as in ``dataset.forget_dataset_name``, for example ``Tofu_forget10``, ``rows.csv`` or
            ``org/name``. Some are for evaluation alone: ``HP_train_300``, ``HP_test_300`` (and 50,
            100, 200), ``C4_validation``, and, without an answer, ``SafePku_test``,
            ``RealToxicityPrompts``.
        data_dir: read the files of known data sets below this folder instead of the hub.
        cache_dir: the hub's cache.
        role: whether the rows are to be forgotten or retained.
        columns: where the questions, answers and texts of one's own data are.

    Raises:
        WagleError: the hub cannot be reached, or a file is missing or malformed.
    """
    subset = name.partition("_")[2]
    rows = find_source(name).load(Request(subset, role, data_dir, cache_dir, columns))
    if len(rows) == 0:
        raise WagleError(
            f"no row of {name} can be used: its texts are blank, or its responses are all safe"
        )
    return rows
