"""The keys of looking into finished runs layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from wagle.config.declare import REQUIRED, key
from wagle.config.values import Int, Text


@dataclass(frozen=True, kw_only=True)
class DepthSection:
    """Where a mask, an update and knowledge sit."""

    retain_model: str = key(
        REQUIRED,
        "the model that never saw the forget set: what its states lack is the knowledge",
        Text("hub id, folder or run folder"),
    )
    original_model: str | None = key(
        None,
        "the model before unlearning; not set: the run's overall.model_name",
        Text("hub id, folder or run folder"),
    )
    tokens: int = key(
        5, "of each answer, those that the two models differ in most", Int(at_least=1, at_most=1000)
    )
    rows: int | None = key(
        None,
        "first forget rows that are looked at; not set: all",
        Int(at_least=1, at_most=1_000_000),
    )
    figure: str | None = key(
        None, "one figure of all runs as well, NAME.png and NAME.pdf", Text("NAME")
    )
