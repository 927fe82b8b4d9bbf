"""Attacks on a finished run: does forgetting survive few bits and relearning?

What they find is kept in the run folder, in ``attack.json``, part by part: an attack that was
interrupted goes on, and one that was made from other models, rows or settings is made anew. How
the models that a run is compared with learn does not depend on the run, but for the mask that they
are confined to: the cache keeps their curves for the attacks on other runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from wagle.config import AttackConfig
from wagle.dataset.encoding import Encoded
from wagle.errors import ConfigError
from wagle.loggers.files import json_checksum, read_object, write_json
from wagle.loggers.run_folder import ATTACK
from wagle.model.copied_weights import restored
from wagle.model.environment import mask_fingerprint, versions
from wagle.model.finished import ORIGINAL, FinishedRun
from wagle.model.interference import mean_probability
from wagle.model.measured import Measured, place_in_cache
from wagle.model.patching import RETAIN, UNLEARNED
from wagle.model.quantization import QUANTIZERS, compare_to_bins, quantize_model
from wagle.model.relearning import (
    PRESETS,
    Curve,
    Preset,
    alike,
    chosen_rows,
    mean_gap,
    relearn,
    robustness,
    steps_until,
)
from wagle.optim.bitmask import Mask
from wagle.terminal import say, say_phase
from wagle.unlearn.mask.fingerprints import examples_fingerprint
from wagle.unlearn.mask.scores import CHUNK
from wagle.unlearn.mask.selection import select_top
from wagle.unlearn.mask.statistics import combined, complement, density, random_alike

RELEARNING = "relearning"
"""The folder in the cache of the curves of models that runs are compared with."""
FORMAT = 1  # of these curves: raise it when what is measured, or how models learn, changes
WHERE = ("all", "mask", "complement", "random")
_ROWS = 200  # of the retain set that are asked about, and at most of the benign rows


class _Lesson(NamedTuple):
    """What a model learns, what it is asked about, and the weights that may change."""

    preset: Preset
    taught: list[Encoded]
    asked: list[Encoded]
    mask: Mask | None


def _is_of(part: Mapping[str, Any], digest: str) -> bool:
    return part.get("origin") == digest


class Attack(FinishedRun):
    """Attacks on one finished run.

    Args:
        folder: of the run, with its model; or of the evaluation of a model that was not changed.
        config: what to attack with.

    Raises:
        WagleError: it is no finished run, or holds no model.
    """

    def __init__(self, folder: Path, config: AttackConfig) -> None:
        self.settings = config.attack
        super().__init__(
            folder,
            "attack",
            retain_model=self.settings.retain_model,
            original_model=self.settings.original_model,
        )

    def make(self) -> dict[str, Any]:
        """Run what has not been run yet; returns what is in ``attack.json``.

        What an earlier attack has found with other kinds or presets, and otherwise the same
        settings, stays there.
        """
        document = read_object(self.folder / ATTACK) if (self.folder / ATTACK).is_file() else {}
        known = document.get("parts", {})
        chosen = self.settings
        planned = list(  # what cannot be done is said first
            self._planned(chosen.quantization, chosen.relearning, self._where)
        )
        others = self._planned(QUANTIZERS, PRESETS, WHERE, known.keys() - {p[0] for p in planned})
        kept = {name: known[name] for name, digest, _ in others if _is_of(known[name], digest)}
        parts: dict[str, Any] = {}
        for place, (name, digest, part) in enumerate(planned, 1):
            if _is_of(known.get(name, {}), digest):
                say(f"already measured: {name}")
                parts[name] = known[name]
            else:
                say_phase(name)
                parts[name] = {"origin": digest, **part()}
            # what is there of the parts to come is not lost if this attempt is interrupted
            coming = {later: known[later] for later, *_ in planned[place:] if later in known}
            write_json(self.folder / ATTACK, self._document(parts | coming | kept))
        return self._document(parts | kept)

    def _document(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "metric": "mean over the forget rows of exp(-mean loss of the answer)",
            "attack": asdict(self.settings),
            "parts": dict(parts),
        }

    def _planned(
        self,
        quantization: Iterable[str],
        relearning: Iterable[str],
        places: Iterable[str],
        only: Collection[str] | None = None,
    ) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
        """Name, checksum of all that decides the outcome, and work of each part.

        Args:
            only: of these names.
        """

        def digest(origin: Mapping[str, Any]) -> str:
            return json_checksum({**origin, "models": self.fingerprints, "rows": self._rows_origin})

        for kind in quantization:
            name = f"quantization {kind}"
            if only is None or name in only:
                yield name, digest({}), partial(self._quantize, kind)
        for preset_name, where in itertools.product(relearning, places):
            name = f"relearning {preset_name} {where}"
            if only is None or name in only:
                preset = PRESETS[preset_name]
                if self.settings.lr is not None:
                    preset = replace(preset, lr=self.settings.lr)
                settings = {k: v for k, v in asdict(self.settings).items() if k in _OF_RELEARNING}
                if preset.rows == "retain":
                    settings["benign rows"] = examples_fingerprint(self._benign)
                work = partial(self._relearn, preset, where)
                yield name, digest({**settings, **asdict(preset)}), work

    # ------------------------------------------------------------------------------ quantisation

    def _quantize(self, kind: str) -> dict[str, Any]:
        model, before = self.run.model, self._before
        with restored(model):
            quantize_model(model, kind)
            after = self._knowledge(model)
        q = min(before["forget"] / after["forget"], 1.0) if after["forget"] else 1.0
        even = alike(before["forget"], after["forget"])
        found = {"before": before, "after": after, "Q": q, "Q symmetric": even}
        original = self.model(ORIGINAL)
        if original is not None:
            found["moves"] = compare_to_bins(original, model, self.mask, kind)
        return found

    # -------------------------------------------------------------------------------- relearning

    def _relearn(self, preset: Preset, where: str) -> dict[str, Any]:
        lesson = self._lesson(preset, where)
        found: dict[str, Any] = {**asdict(preset), "where": where}
        curves: dict[str, Curve] = {}
        with restored(self.run.model) as before:
            curves[UNLEARNED] = self._curve(self.run.model, lesson)
            if where == "all" and self.mask is not None:
                found["overlap"] = _overlap(before, self.run.model, self.mask)
        for name in (RETAIN, *([ORIGINAL] if where == "all" else [])):
            model = self.model(name)
            if model is not None:
                curves[name] = self._shared_curve(name, model, lesson)
        found["curves"] = curves
        threshold = self.settings.threshold * self._known(curves, lesson)
        found["threshold"] = threshold
        found["steps until"] = {n: steps_until(curve, threshold) for n, curve in curves.items()}
        if RETAIN in curves:
            pair = curves[UNLEARNED], curves[RETAIN]
            found["R"] = robustness(*pair)
            found["R symmetric"] = alike(*(curve[-1][1] - curve[0][1] for curve in pair))
            found["gap"] = mean_gap(*pair)
        return found

    def _known(self, curves: Mapping[str, Curve], lesson: _Lesson) -> float:
        """The original's knowledge of what is asked about."""
        if ORIGINAL in curves:
            return curves[ORIGINAL][0][1]
        original = self.model(ORIGINAL)
        assert original is not None  # the run has
        return self._ask(original, lesson.asked)

    def _lesson(self, preset: Preset, where: str) -> _Lesson:
        taught, asked = chosen_rows(len(self.forget_rows), preset, self.settings.seed)
        rows = [self.forget_rows[i] for i in taught]
        if preset.rows == "retain":
            rows = self._benign[: len(self.forget_rows)]
        return _Lesson(preset, rows, [self.forget_rows[i] for i in asked], self._mask_of(where))

    def _curve(self, model: PreTrainedModel, lesson: _Lesson) -> Curve:
        """Teach a model, in place."""
        return relearn(
            model,
            lesson.taught,
            lesson.preset,
            lambda model: self._ask(model, lesson.asked),
            points=self.settings.points,
            seed=self.settings.seed,
            mask=lesson.mask,
            pad_token_id=self.pad_token_id,
        )

    def _shared_curve(self, name: str, model: PreTrainedModel, lesson: _Lesson) -> Curve:
        """The curve of a model that runs are compared with; it is taught once for all of them."""
        origin = {
            "format": FORMAT,
            "model": self.model_fingerprint(name),
            "taught": examples_fingerprint(lesson.taught),
            "asked": examples_fingerprint(lesson.asked),
            "preset": asdict(lesson.preset),
            "mask": None if lesson.mask is None else mask_fingerprint(lesson.mask),
            "points": self.settings.points,
            "seed": self.settings.seed,
            "batch size": self.config.evaluation.batch_size,
            "padding": self.pad_token_id,
            "device": model.device.type,
            "versions": versions(),
        }
        cache = Path(self.config.overall.cache_dir)
        path = place_in_cache(cache, RELEARNING, origin).with_suffix(".json")
        kept = Measured(path, origin)
        if kept.earlier:
            say(f"the {name} model's curve is that in {path}")

        def learn() -> Curve:
            with restored(model):
                return self._curve(model, lesson)

        return kept.get("curve", learn, read=lambda curve: [(step, v) for step, v in curve])

    @property
    def _where(self) -> list[str]:
        """Where relearning is confined to."""
        usual = WHERE if self.mask is not None else WHERE[:1]
        chosen: list[str] = list(self.settings.where or usual)
        if self.mask is None and chosen != ["all"]:
            raise ConfigError(
                f"attack.where is {', '.join(chosen)}, but the run in {self.folder} has no mask "
                "file; give all"
            )
        return chosen

    def _mask_of(self, where: str) -> Mask | None:
        if where == "all" or self.mask is None:
            return None
        if where == "complement":
            return complement(self.mask)
        return random_alike(self.mask, self.settings.seed) if where == "random" else self.mask

    # ----------------------------------------------------------------------------------- rows

    @cached_property
    def _retain(self) -> list[Encoded]:
        return self.first_rows(self.config.dataset.retain_dataset_name, _ROWS)

    @cached_property
    def _benign(self) -> list[Encoded]:
        own = self.config.dataset.retain_dataset_name
        return self.first_rows(self.settings.benign_dataset_name or own, _ROWS)

    def _ask(self, model: PreTrainedModel, rows: list[Encoded]) -> float:
        size, pad = self.config.evaluation.batch_size, self.pad_token_id
        return mean_probability(model, rows, batch_size=size, pad_token_id=pad)

    @cached_property
    def _before(self) -> dict[str, float]:
        """Knowledge of the run's model, before any attack."""
        return self._knowledge(self.run.model)

    def _knowledge(self, model: PreTrainedModel) -> dict[str, float]:
        asked = {"forget": self.forget_rows, "retain": self._retain}
        return {name: self._ask(model, rows) for name, rows in asked.items()}

    @cached_property
    def _rows_origin(self) -> str:
        return json_checksum([row.input_ids for row in (*self.forget_rows, *self._retain)])


_OF_RELEARNING = ("benign_dataset_name", "points", "threshold", "seed")


def _change(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return (new.float() - old.float()).abs()


def _overlap(before: Mapping[str, torch.Tensor], model: PreTrainedModel, mask: Mask) -> Any:
    """Share of the largest changes, as many as a mask selects, that it selects; and by chance."""

    def stream() -> Iterator[tuple[str, int, Callable[[], torch.Tensor]]]:
        for name, parameter in model.named_parameters():
            old, new = before[name].view(-1), parameter.detach().view(-1)
            for start in range(0, len(old), CHUNK):
                part = slice(start, start + CHUNK)
                yield name, start, partial(_change, old[part], new[part])

    chance = density(mask)
    largest = select_top(stream, {n: bits.shape for n, bits in mask.items()}, [chance])[chance]
    both = combined("intersection", [largest, mask])
    selected = sum(bits.count() for bits in largest.values())
    return {"share": sum(b.count() for b in both.values()) / selected, "chance": chance}
