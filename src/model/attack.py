"""Attacks on a finished run: does forgetting survive few bits and relearning?

What they find is kept in the run folder, in ``attack.json``, part by part: an attack that was
interrupted goes on, and one that was made from other models, rows or settings is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from wagle.config import AttackConfig
from wagle.dataset.encoding import Encoded
from wagle.errors import ConfigError
from wagle.loggers.files import json_checksum, read_json, write_json
from wagle.loggers.run_folder import ATTACK
from wagle.model.copied_weights import restored
from wagle.model.finished import ORIGINAL, FinishedRun
from wagle.model.interference import mean_probability
from wagle.model.patching import RETAIN, UNLEARNED
from wagle.model.quantization import compare_to_bins, quantize_model
from wagle.model.relearning import (
    PRESETS,
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
from wagle.unlearn.mask.scores import CHUNK
from wagle.unlearn.mask.selection import select_top
from wagle.unlearn.mask.statistics import combined, complement, density, random_alike

WHERE = ("all", "mask", "complement", "random")
_ROWS = 200  # of the retain set that are asked about, and at most of the benign rows


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
            retain_model=self.settings.retain_model,
            original_model=self.settings.original_model,
        )
        self.parts: dict[str, Any] = {}

    def make(self) -> dict[str, Any]:
        """Run what has not been run yet; returns what is in ``attack.json``."""
        known = read_json(self.folder / ATTACK) if (self.folder / ATTACK).is_file() else {}
        for name, origin, part in self._planned():
            digest = json_checksum(
                {**origin, "models": self.fingerprints, "rows": self._rows_origin}
            )
            found = known.get("parts", {}).get(name)
            if found is None or found.get("origin") != digest:
                say_phase(name)
                found = {"origin": digest, **part()}
            else:
                say(f"already measured: {name}")
            self.parts[name] = found
            write_json(self.folder / ATTACK, self._document())
        return self._document()

    def _document(self) -> dict[str, Any]:
        return {
            "metric": "mean over the forget rows of exp(-mean loss of the answer)",
            "attack": asdict(self.settings),
            "parts": self.parts,
        }

    def _planned(self) -> Iterator[tuple[str, dict[str, Any], Callable[[], dict[str, Any]]]]:
        for kind in self.settings.quantization:
            yield f"quantization {kind}", {}, partial(self._quantize, kind)
        for name in self.settings.relearning:
            for where in self._where:
                preset = PRESETS[name]
                if self.settings.lr is not None:
                    preset = replace(preset, lr=self.settings.lr)
                settings = {k: v for k, v in asdict(self.settings).items() if k in _OF_RELEARNING}
                yield (
                    f"relearning {name} {where}",
                    {**settings, **asdict(preset)},
                    partial(self._relearn, preset, where),
                )

    # ------------------------------------------------------------------------------ quantisation

    def _quantize(self, kind: str) -> dict[str, Any]:
        model = self.run.model
        before = self._knowledge(model)
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
        names = [UNLEARNED, RETAIN, *([ORIGINAL] if where == "all" else [])]
        models = {name: model for name in names if (model := self.model(name)) is not None}
        mask = self._mask_of(where)
        taught, asked = chosen_rows(len(self.forget_rows), preset, self.settings.seed)
        rows = [self.forget_rows[i] for i in taught]
        if preset.rows == "retain":
            rows = self._benign[: len(self.forget_rows)]
        asked_rows = [self.forget_rows[i] for i in asked]
        curves, found = {}, {**asdict(preset), "where": where}
        for name, model in models.items():
            with restored(model) as before:
                curves[name] = relearn(
                    model,
                    rows,
                    preset,
                    lambda model: self._ask(model, asked_rows),
                    points=self.settings.points,
                    seed=self.settings.seed,
                    mask=mask,
                    pad_token_id=self.pad_token_id,
                )
                if name == UNLEARNED and where == "all" and self.mask is not None:
                    found["overlap"] = _overlap(before, model, self.mask)
        found["curves"] = curves
        if ORIGINAL in self.models:
            threshold = self.settings.threshold * self._ask(self.models[ORIGINAL], asked_rows)
            found["threshold"] = threshold
            found["steps until"] = {n: steps_until(curve, threshold) for n, curve in curves.items()}
        if RETAIN in curves:
            pair = curves[UNLEARNED], curves[RETAIN]
            found["R"] = robustness(*pair)
            found["R symmetric"] = alike(*(curve[-1][1] - curve[0][1] for curve in pair))
            found["gap"] = mean_gap(*pair)
        return found

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
