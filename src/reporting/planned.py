"""The lines of tables, and the runs that they are about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wagle.config import UnlearnConfig
from wagle.reporting.table_masks import plain

ORIGINAL = "Original"
"""The model before unlearning, in tables."""
RETAIN_ONLY = "Retain-only"
"""The model that never saw the forget set, as far as runs were given its results."""

Settings = tuple[tuple[str, str], ...]
"""Keys, by the names that they have in a grid, and their values as they are written."""


@dataclass(frozen=True)
class TableRow:
    """A line of a table: everything about a run but its seed.

    Attributes:
        method: as in the table; ``ORIGINAL`` stands for the model before unlearning.
        mask: a name in ``MASKS``, empty for the original.
        ratio: share of the weights that are selected, where the mask has one to choose.
        mu: WAGLE's μ, in tables that vary it.
        settings: other keys, in tables that vary them.
    """

    method: str
    mask: str = ""
    ratio: float | None = None
    mu: float | None = None
    settings: Settings = ()

    def value(self, name: str) -> str | float | None:
        """Of an attribute or a setting; ``None`` where the row has no such setting."""
        return getattr(self, name) if hasattr(self, name) else dict(self.settings).get(name)

    @property
    def name(self) -> str:
        """Readable, and fit for a folder: ``GradDiff+WAGLE_0.8_lr=0.0003``."""
        mask = f"+{self.mask}" if self.mask else ""
        ratio = "" if self.ratio is None else f"_{plain(self.ratio)}"
        mu = "" if self.mu is None else f"_mu{self.mu!r}"
        settings = "".join(f"_{name}={value}" for name, value in self.settings)
        settings = re.sub(r"[^\w+=.-]+", "-", settings, flags=re.ASCII)
        return f"{self.method}{mask}{ratio}{mu}{settings}"


@dataclass(frozen=True)
class PlannedRun:
    """One run of ``unlearn_model.py``.

    Attributes:
        row: where it belongs in the table.
        seed: ``overall.seed``; ``None`` for the original, which is evaluated once.
        arguments: of ``unlearn_model.py``.
        folder: the run folder.
        config: what the arguments amount to.
        after: the run from whose model this one starts; ``None``: from a model that is there.
        clears: a folder that nothing needs once this run has finished.
    """

    row: TableRow
    seed: int | None
    arguments: tuple[str, ...]
    folder: Path
    config: UnlearnConfig
    after: PlannedRun | None = None
    clears: Path | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of the configuration; finished runs are found by it."""
        return self.config.fingerprint()

    @property
    def title(self) -> str:
        """For messages."""
        return self.row.name if self.seed is None else f"{self.row.name}, seed {self.seed}"
