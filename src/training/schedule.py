"""How long a training is: steps, warm-up, learning rates, and what is read of the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wagle.errors import ConfigError

PUBLISHED_WARMUP = 0.1  # of the steps
LOG_ENTRIES = 20  # about so many: an entry every ``steps // LOG_ENTRIES`` steps


@dataclass(frozen=True)
class Plan:
    """A training's length.

    A step updates the weights once, from a window of ``accumulation`` batches of ``batch_size``
    rows. Windows do not reach over the end of an epoch: with 10 rows, batches of 4 and an
    accumulation of 2, an epoch is one window of 4 + 4 rows and one of 2.

    Attributes:
        rows: how many there are.
        batch_size: rows per batch; the last batch of an epoch may be smaller.
        accumulation: batches per step; the last window of an epoch may have fewer.
        steps: updates of the weights.
        warmup: steps in which the learning rate rises, from 0 in the first.
        epochs: passes that were asked for; ``None`` where the number of steps was.

    Raises:
        ConfigError: there is no step, or none with a learning rate above 0.
    """

    rows: int
    batch_size: int
    accumulation: int
    steps: int
    warmup: int
    epochs: int | None = None

    def __post_init__(self) -> None:
        asked = f"{self.rows} rows" if self.epochs is None else self._asked()
        fewer = "lower the batch size or the accumulation, or raise num_epochs or max_steps"
        if self.steps < 1:
            raise ConfigError(f"{asked} make no whole step of {self._size()}; {fewer}")
        if not any(self.rate(step) for step in range(min(self.steps, self.warmup + 1))):
            raise ConfigError(
                f"{asked} in steps of {self._size()} make {self.steps} step, and the learning rate "
                f"of the first step is 0 (warm-up): nothing would be trained; {fewer}"
            )

    @classmethod
    def make(
        cls,
        rows: int,
        *,
        batch_size: int,
        accumulation: int,
        num_epochs: int,
        max_steps: int = -1,
        whole_epochs: bool,
        warmup: float = PUBLISHED_WARMUP,
    ) -> Plan:
        """The plan of ``max_steps`` steps or, where that is -1, of ``num_epochs`` passes.

        Args:
            whole_epochs: every epoch reads every row. Otherwise the published formula counts the
                steps, ``num_epochs · rows // (batch_size · accumulation)``: fewer where an epoch
                ends in a smaller window.
            warmup: share of the steps; there is at least one.

        Raises:
            ConfigError: nothing would be trained.
        """
        plan = {"rows": rows, "batch_size": batch_size, "accumulation": accumulation}
        if max_steps > 0:
            steps = max_steps
        elif whole_epochs:
            steps = num_epochs * _windows(rows, batch_size, accumulation)
        else:
            steps = num_epochs * rows // (batch_size * accumulation)
        asked = None if max_steps > 0 else num_epochs
        return cls(**plan, steps=steps, warmup=max(1, int(warmup * steps)), epochs=asked)

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch, the smaller last one included."""
        return math.ceil(self.rows / self.batch_size)

    @property
    def windows_per_epoch(self) -> int:
        """Steps in an epoch, the smaller last one included."""
        return _windows(self.rows, self.batch_size, self.accumulation)

    @property
    def rows_read(self) -> int:
        """Rows that all steps read together; a row counts each time."""
        epochs, rest = divmod(self.steps, self.windows_per_epoch)
        return epochs * self.rows + min(self.rows, rest * self.batch_size * self.accumulation)

    @property
    def log_every(self) -> int:
        """Steps between two entries of the training log."""
        return max(1, self.steps // LOG_ENTRIES)

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0, as a share of the full one.

        It rises linearly from 0 and then falls linearly, to reach 0 one step after the last.
        """
        if step < self.warmup:
            return step / self.warmup
        return (self.steps - step) / max(1, self.steps - self.warmup)

    def epoch_after(self, step: int) -> float:
        """Epochs that the steps up to this one, from 0, have read, counted in batches."""
        epochs, rest = divmod(step + 1, self.windows_per_epoch)
        return epochs + min(1.0, rest * self.accumulation / self.batches_per_epoch)

    def describe(self) -> str:
        """What will be read, in one line."""
        return (
            f"{self.rows} rows in {self.steps} steps of {self._size()}, {self.warmup} of them "
            f"warm-up: reads {self.rows_read} rows, "
            f"{self.rows_read / self.rows:.3g} epochs"
        )

    def warning(self) -> str | None:
        """What to say where fewer rows are read than the number of epochs promises."""
        if self.epochs is None or self.rows_read >= self.epochs * self.rows:
            return None
        return (
            f"reads only {self.rows_read} of the {self.epochs * self.rows} rows that "
            f"{self._asked()} have: the published formula counts {self.steps} whole steps of "
            f"{self.batch_size * self.accumulation} rows, but every epoch ends in a smaller one; "
            "unlearn.step_formula whole_epochs reads all of them"
        )

    def _asked(self) -> str:
        return f"{self.epochs} epochs of {self.rows} rows"

    def _size(self) -> str:
        size = self.batch_size * self.accumulation
        return f"{size} rows (batch size {self.batch_size} × accumulation {self.accumulation})"


def _windows(rows: int, batch_size: int, accumulation: int) -> int:
    """Steps in an epoch; the last may be smaller."""
    return math.ceil(math.ceil(rows / batch_size) / accumulation)
