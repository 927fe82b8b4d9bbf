"""The pictures that a run keeps in its folder."""

from __future__ import annotations

from collections.abc import Sequence

from wagle.config import UnlearnConfig
from wagle.loggers import Logger
from wagle.metrics.benchmarks import benchmark_of
from wagle.optim.bitmask import Mask
from wagle.reporting.mask_figures import draw_density
from wagle.reporting.training_figures import draw_evaluations, draw_training, measured_names
from wagle.training.loop import Entry
from wagle.unlearn.mask.statistics import density_table


def draw_run(
    logger: Logger,
    config: UnlearnConfig,
    log: Sequence[Entry],
    mask: Mask | None,
    density: float,
) -> None:
    """Draw the training and what the mask selects; of the latter the numbers are kept as well.

    Args:
        log: of the training.
        density: share of the weights that may change.
    """
    curves = [(config.unlearn.unlearn_method, "", log)]
    logger.save_figure("training", draw_training(curves))
    columns = [metric.key for metric in benchmark_of(config).columns]
    if names := measured_names(log, columns):
        logger.save_figure("evaluations", draw_evaluations(curves, names))
    if mask is not None:
        shares = density_table(mask)
        logger.save("mask.json", {"density": density, "by layer and kind": shares})
        logger.save_figure("mask_density", draw_density(shares, density))
