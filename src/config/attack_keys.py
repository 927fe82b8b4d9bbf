"""The keys of attacks on finished runs, as ``wagle.config.keys`` has those of the runs."""

# ruff: noqa: RUF009 - key() declares, and is called once

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wagle.config.declare import key
from wagle.config.values import Choice, DataSetName, Float, Int, ListOf, Text


@dataclass(frozen=True, kw_only=True)
class AttackSection:
    """Attacks on an unlearned model."""

    relearning: list[
        Literal["open_unlearning", "smooth_wmdp", "muse_books", "muse_news", "partial", "benign"]
    ] = key(["open_unlearning"], "presets of fine-tuning that may bring the knowledge back")
    where: list[Literal["all", "mask", "complement", "random"]] | None = key(
        None,
        "weights that relearning may change; random: of the mask's density in each tensor; not "
        "set: all, and where the run has a mask these four",
        ListOf(Choice("all", "mask", "complement", "random")),
    )
    quantization: list[Literal["nf4", "fp4", "int8"]] = key(
        ["nf4", "fp4", "int8"],
        "weight-only, of the decoder blocks' linear layers",
    )
    retain_model: str | None = key(
        None,
        "the model that never saw the forget set, for R",
        Text("hub id, folder or run folder"),
    )
    original_model: str | None = key(
        None,
        "the model before unlearning; not set: the run's overall.model_name",
        Text("hub id, folder or run folder"),
    )
    benign_dataset_name: str | None = key(
        None,
        "rows of the preset benign; not set: the run's retain set",
        DataSetName(),
    )
    lr: float | None = key(
        None, "learning rate of relearning; not set: the preset's", Float(above=0)
    )
    points: int = key(6, "times that a model is asked while it learns", at_least=2, at_most=1000)
    threshold: float = key(
        0.5,
        "share of the original's knowledge that counts as learned again",
        above=0,
        at_most=1,
    )
    seed: int = key(
        0, "which rows are drawn, their order, random masks", Int(at_least=0, at_most=2**32 - 1)
    )
