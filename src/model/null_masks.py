"""Does it matter which weights a mask selects? Unlearning with random masks instead.

The random masks select as many weights of each tensor as the run's own: what they reach follows
from how many weights change in which tensor, and not from which. Each is a run folder of its own,
trained and evaluated as the run was, with its seed.
"""

from __future__ import annotations

from pathlib import Path

import torch

from wagle.config import UnlearnConfig
from wagle.errors import WagleError
from wagle.loggers import JsonLogger
from wagle.loggers.run_folder import read_manifest
from wagle.model.finished import Layout, config_of, mask_of
from wagle.model.opened import OpenedRun
from wagle.model.unlearn import Unlearn
from wagle.optim.bitmask import Mask
from wagle.planning.skeleton import read_configuration, skeleton
from wagle.reporting.runs import Run
from wagle.terminal import say_phase
from wagle.unlearn.mask.file import load_mask, save_mask
from wagle.unlearn.mask.statistics import random_alike

SCORE_TYPE = "random_alike"
"""What the provenance of such a mask says."""


class NullRun(Unlearn):
    """An unlearning with a random mask. There are many of them: none draws pictures."""

    def draw(self) -> None:
        """Nothing: that would take as long as training the demo's model does."""


def run_null_masks(run: Run, count: int, output: Path, *, save_models: bool = False) -> list[Path]:
    """Unlearn with random masks, as far as that has not been done yet.

    Args:
        run: finished, with a mask file.
        count: of masks, which are drawn with the seeds 0, 1, …
        output: for masks and run folders.
        save_models: whether the folders keep the unlearned models.

    Returns:
        The run folders.

    Raises:
        WagleError: the run has no mask file, or another lies there now.
    """
    config = config_of(run.folder)
    mask = _mask_of(run, config)
    folders = []
    for seed in range(count):
        say_phase(f"null mask {seed + 1} of {count}")
        path = output / "masks" / f"alike-{seed}.safetensors"
        drawn = random_alike(mask, seed)
        if not path.is_file():
            about = {"unlearn.score_type": SCORE_TYPE, "overall.seed": str(seed)}
            save_mask(drawn, path, provenance=about)
        elif load_mask(path) != drawn:
            raise WagleError(f"{path} is not the random mask that belongs there; remove it")
        changes = {
            "unlearn.mask_path": str(path),
            "unlearn.mask_mismatch": "accept",
            "unlearn.save_model": save_models,
        }
        folder = output / str(seed)
        NullRun(config.replace(changes), JsonLogger(folder)).run()
        _check_origin(run, folder)
        folders.append(folder)
    return folders


def _mask_of(run: Run, config: UnlearnConfig) -> Mask:
    """The run's mask, from its file."""
    path, known = config.unlearn.mask_path, run.manifest.get("fingerprints", {}).get("mask")
    if path is None or known is None or not run.trained:
        raise WagleError(f"the run in {run.folder} was not trained with a mask file")
    name, cache = OpenedRun(config).model_name, Path(config.overall.cache_dir)
    with skeleton(read_configuration(name, cache), torch.float32) as model:
        layout = Layout.of(model)
    return mask_of(run.folder, run.manifest, Path(path), layout)


def _check_origin(run: Run, folder: Path) -> None:
    """Make sure that a random mask's run began where the run did."""
    ours, theirs = (m.get("fingerprints", {}) for m in (run.manifest, read_manifest(folder)))
    for what in ("model", "forget", "retain"):
        if ours.get(what) != theirs.get(what):
            raise WagleError(
                f"{folder} and {run.folder} were not made from the same {what}: what the run's "
                "configuration names is another one now, and its null masks would tell nothing"
            )
