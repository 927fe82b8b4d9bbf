"""The mask of a run: the file that ``unlearn.mask_path`` names, or a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
from transformers import PreTrainedModel

from wagle import ranks
from wagle.catalogue import SCORES
from wagle.config import UnlearnConfig, plain_number
from wagle.dataset.pairing import FORGET, RETAIN, UnlearnDataset
from wagle.errors import WagleError
from wagle.loggers.files import locked, remove_dead_parts
from wagle.model.architecture import linear_names
from wagle.model.environment import rows_fingerprint
from wagle.optim.bitmask import Mask
from wagle.terminal import say
from wagle.unlearn.mask.file import load_mask, read_provenance, save_mask
from wagle.unlearn.mask.fingerprints import examples_fingerprint, unordered_fingerprint
from wagle.unlearn.mask.gradients import cached_gradient_sums
from wagle.unlearn.mask.make import make_masks, mask_scores
from wagle.unlearn.mask.provenance import (
    Comparison,
    MaskOrigin,
    Origin,
    compare_provenance,
    provenance_entries,
)
from wagle.unlearn.mask.scores import ScoreStream
from wagle.unlearn.mask.statistics import ScoreHistogram, density, score_histogram
from wagle.unlearn.mask.tensor_file import TensorFile


class MaskFiles:
    """Makes, loads and compares mask files as a configuration says.

    Args:
        config: every key, resolved.
        model: before unlearning.
        dataset: forget examples and their retain partners.
        model_fingerprint: of the model.
        template: name of the resolved prompt template.
        pad_token_id: for padding batches.
        on_resume: told when an attribution went on after an interruption, as manifests list it.
    """

    def __init__(
        self,
        config: UnlearnConfig,
        model: PreTrainedModel,
        dataset: UnlearnDataset,
        *,
        model_fingerprint: str,
        template: str,
        pad_token_id: int,
        on_resume: Callable[[dict[str, str]], None],
    ) -> None:
        self.config = config
        self.model = model
        self.dataset = dataset
        self.model_fingerprint = model_fingerprint
        self.template = template
        self.pad_token_id = pad_token_id
        self.on_resume = on_resume

    def prepare(self) -> tuple[Mask, MaskOrigin]:
        """Load the run's mask, or make it where the file is missing.

        Says where it comes from. Of several runs that want the same file one makes it.

        Raises:
            WagleError: the file is damaged, does not fit the model, or was made by something else
                and ``unlearn.mask_mismatch`` is ``error``; or it cannot be written.
        """
        assert self.config.unlearn.mask_path is not None  # else no mask is asked for
        path = Path(self.config.unlearn.mask_path)
        if ranks.is_first():
            for folder in (path.parent, self.config.gradient_cache().parent):
                remove_dead_parts(folder)  # as large as the model
        prepared = self._load(path)
        if prepared is None:
            with ranks.first_in(lambda: locked(path, self.config.unlearn.lock_timeout)):
                prepared = self._load(path)  # another run may have made it meanwhile
                if prepared is None:
                    prepared = self._make(path)
        mask, origin = prepared
        self._say(path, density(mask), origin)
        return mask, origin

    def _make(self, path: Path) -> tuple[Mask, MaskOrigin]:
        ratio = self.config.ratio
        assert ratio is not None  # else the configuration was refused
        mask = self.make([ratio])[ratio]
        provenance = self.provenance(ratio)
        self._save(mask, path, provenance)
        return mask, MaskOrigin(str(path), "made", provenance)

    def _load(self, path: Path) -> tuple[Mask, MaskOrigin] | None:
        """``None`` where the mask is to be made."""
        origin = ranks.first(lambda: self._origin(path))
        if origin is None:
            return None
        shapes = {name: p.shape for name, p in self.model.named_parameters()}
        return load_mask(path, shapes, linear_names(self.model)), origin

    def _origin(self, path: Path) -> MaskOrigin | None:
        """Of the file; ``None`` where the mask is to be made."""
        if not path.is_file():
            return None
        found = read_provenance(path)
        comparison = compare_provenance(found, self.provenance(self.config.ratio))
        origin: Origin = "loaded" if found else "unknown origin"
        if comparison.differences:
            choice = self.config.unlearn.mask_mismatch
            if choice == "error":
                raise WagleError(_foreign(path, comparison))
            if choice == "remake":
                if self.config.ratio is None:
                    raise WagleError(
                        f"{path} cannot be made anew: nothing says at which ratio; give "
                        "unlearn.mask_ratio"
                    )
                say(f"{path} was made by something else: making it anew")
                return None
            origin = "accepted"
        unrecorded = comparison.unrecorded if found else ()
        return MaskOrigin(
            str(path), origin, found, comparison.differences, comparison.seeds, unrecorded
        )

    def make(self, ratios: list[float]) -> dict[float, Mask]:
        """Masks of the configured score type at several ratios, from the same scores."""
        section, cache = self.config.unlearn, self.config.gradient_cache()
        return make_masks(self.model, self.dataset, ratios, section, cache, **self._further)

    def write(self, ratios: list[float]) -> list[Path]:
        """Make the masks of several ratios and save each where its ratio's name says."""
        paths = {ratio: self.config.mask_file(ratio) for ratio in dict.fromkeys(ratios)}
        for ratio, mask in self.make(list(paths)).items():
            self._save(mask, paths[ratio], self.provenance(ratio))
        return list(paths.values())

    def _save(self, mask: Mask, path: Path, provenance: Mapping[str, str]) -> None:
        ranks.first(lambda: save_mask(mask, path, provenance=provenance))

    def score_histogram(self) -> ScoreHistogram:
        """How the configured scores, which masks are selected by, are spread."""
        return score_histogram(self.scores())

    def scores(self) -> ScoreStream:
        """The configured scores, which must be such that masks are selected by."""
        section, cache = self.config.unlearn, self.config.gradient_cache()
        return mask_scores(self.model, self.dataset, section, cache, **self._further)

    def gradient_sums(self) -> dict[str, TensorFile]:
        """Sums of the gradients of ``forget`` and ``retain`` examples, from the cache or new."""
        keys = [(0, index) for index in range(len(self.dataset))]
        return cached_gradient_sums(
            self.model,
            {view: [self.dataset.example(view, key) for key in keys] for view in (FORGET, RETAIN)},
            self.config.unlearn,
            self.config.gradient_cache(),
            batch_size=self.config.dataset.batch_size,
            pad_token_id=self.pad_token_id,
            on_resume=self.on_resume,
        )

    @property
    def _further(self) -> dict[str, Any]:
        return {
            "batch_size": self.config.dataset.batch_size,
            "pad_token_id": self.pad_token_id,
            "seed": self.config.overall.seed,
            "on_resume": self.on_resume,
        }

    def provenance(self, ratio: float | None) -> dict[str, str]:
        """What a mask made now depends on, with one of several ratios (``None``: not known)."""
        entries = provenance_entries(self.config.unlearn.score_type)
        values = {entry: self._entry(entry, ratio) for entry in entries}
        return {entry: value for entry, value in values.items() if value is not None}

    def _entry(self, entry: str, ratio: float | None) -> str | None:
        score = SCORES[self.config.unlearn.score_type]
        entries: dict[str, Callable[[], str | None]] = {
            "unlearn.score_type": lambda: score.label,
            "score code": lambda: score.code,
            "ratio": lambda: None if ratio is None else plain_number(ratio),
            "model": lambda: self.model_fingerprint,
            "dtype": lambda: str(self.model.dtype).removeprefix("torch."),
            "forget examples": lambda: self._forget_fingerprint,
            "retain examples": lambda: self._retain_fingerprint,
            "dataset.template": lambda: self.template,
            "unlearn.mask_exclude": lambda: (
                ", ".join(sorted(self.config.unlearn.mask_exclude)) or "nothing"
            ),
        }
        return entries[entry]() if entry in entries else str(self.config[entry])

    @cached_property
    def _forget_fingerprint(self) -> str:
        keys = [(0, index) for index in range(len(self.dataset))]
        return unordered_fingerprint(self.dataset.example(FORGET, key) for key in keys)

    @cached_property
    def _retain_fingerprint(self) -> str:
        """Of all rows that partners are drawn from, and of how they become tokens."""
        rows = self.dataset.retain
        first = examples_fingerprint([self.dataset.encode_retain(rows[0])])
        return xxhash.xxh3_128_hexdigest(f"{rows_fingerprint(rows)} {first}".encode())

    def _say(self, path: Path, selected: float, origin: MaskOrigin) -> None:
        """Tell the user what mask it is, and what is to be known about it."""
        where = "saved to" if origin.origin == "made" else "loaded from"
        say(f"mask: {selected:.4%} of the weights selected, {where} {path}")
        ratio = self.config.ratio
        if ratio is not None and abs(selected - ratio) >= 0.005:
            say(
                f"note: the ratio of this mask is {plain_number(ratio)}, and it selects "
                f"{selected:.2%} of all weights"
            )
        if origin.origin == "unknown origin":
            say("note: of unknown origin; its file does not say what made it")
        if origin.unrecorded:
            say(f"note: its file does not say: {', '.join(origin.unrecorded)}")
        if origin.origin == "accepted":
            say(f"note: accepted although {_pairs(origin.differences)}")
        if origin.seeds:
            say(f"note: a mask of another seed is used: {_pairs(origin.seeds)}")


def _pairs(entries: Mapping[str, tuple[str, str]]) -> str:
    return "; ".join(
        f"{key} was {file} when it was made and is {run} in this run"
        for key, (file, run) in entries.items()
    )


def _foreign(path: Path, comparison: Comparison) -> str:
    return (
        f"the mask {path} was made by something else:\n{comparison.listing()}\n"
        "Give another unlearn.mask_path (with {score}, {ratio}, {mu}, {seed} or {task} in it each "
        "run names its own), or set unlearn.mask_mismatch: accept uses the mask as it is, remake "
        "replaces it"
    )
