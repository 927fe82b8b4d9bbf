"""Attacks on a finished run: does forgetting survive few bits and relearning?

What they find is kept in the run folder, in ``attack.json``, part by part: an attack that was
interrupted goes on, and one that was made from other models, rows or settings is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from wagle.config import AttackConfig, UnlearnConfig, load_config
from wagle.dataset.encoding import Encoded
from wagle.dataset.sources import row_encoder
from wagle.errors import ConfigError, WagleError
from wagle.loggers import Logger
from wagle.loggers.files import read_json, write_json
from wagle.loggers.run_folder import ATTACK, CONFIG, FINISHED, read_manifest
from wagle.model.environment import mask_fingerprint
from wagle.model.interference import mean_probability
from wagle.model.quantization import compare_to_bins, quantize_model
from wagle.model.record import find_saved_model
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
from wagle.model.unlearn import TRAINLESS, Unlearn
from wagle.optim.bitmask import Mask
from wagle.terminal import say, say_phase
from wagle.unlearn.mask.file import load_mask
from wagle.unlearn.mask.scores import CHUNK
from wagle.unlearn.mask.selection import select_top
from wagle.unlearn.mask.statistics import combined, complement, density, random_alike

UNLEARNED, RETAIN, ORIGINAL = "unlearned", "retain-only", "original"
WHERE = ("all", "mask", "complement", "random")
_ROWS = 200  # of the retain set that are asked about, and at most of the benign rows


class Attack:
    """Attacks on one finished run.

    Args:
        folder: of the run, with its model; or of the evaluation of a model that was not changed.
        config: what to attack with.

    Raises:
        WagleError: it is no finished run, or holds no model.
    """

    def __init__(self, folder: Path, config: AttackConfig) -> None:
        self.folder = folder
        self.settings = config.attack
        self.manifest = read_manifest(folder)
        if self.manifest.get("status") != FINISHED:
            raise WagleError(f"the run in {folder} is not finished: its model cannot be attacked")
        self.config = load_config(
            ["--config_file", str(folder / CONFIG)], prog="attack", description=""
        )
        changes = {}
        if self.config.unlearn.unlearn_method != TRAINLESS:
            saved = self.config.unlearn.resume_path or str(find_saved_model(folder))
            changes["unlearn.resume_path"] = saved
        self.run = _opened(self.config, changes)
        self.models = {UNLEARNED: self.run.model}
        self.parts: dict[str, Any] = {}

    def make(self) -> dict[str, Any]:
        """Run what has not been run yet; returns what is in ``attack.json``."""
        known = read_json(self.folder / ATTACK) if (self.folder / ATTACK).is_file() else {}
        for name, origin, part in self._planned():
            digest = _digest({**origin, "models": self._fingerprints, "rows": self._rows_origin})
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
        with _restored(model):
            quantize_model(model, kind)
            after = self._knowledge(model)
        q = min(before["forget"] / after["forget"], 1.0) if after["forget"] else 1.0
        even = alike(before["forget"], after["forget"])
        found = {"before": before, "after": after, "Q": q, "Q symmetric": even}
        original = self._model(ORIGINAL)
        if original is not None:
            found["moves"] = compare_to_bins(original, model, self._mask, kind)
        return found

    # -------------------------------------------------------------------------------- relearning

    def _relearn(self, preset: Preset, where: str) -> dict[str, Any]:
        names = [UNLEARNED, RETAIN, *([ORIGINAL] if where == "all" else [])]
        models = {name: model for name in names if (model := self._model(name)) is not None}
        mask = self._mask_of(where)
        taught, asked = chosen_rows(len(self._forget), preset, self.settings.seed)
        rows = [self._forget[i] for i in taught]
        if preset.rows == "retain":
            rows = self._benign[: len(self._forget)]
        asked_rows = [self._forget[i] for i in asked]
        curves, found = {}, {**asdict(preset), "where": where}
        for name, model in models.items():
            with _restored(model) as before:
                curves[name] = relearn(
                    model,
                    rows,
                    preset,
                    lambda model: self._ask(model, asked_rows),
                    points=self.settings.points,
                    seed=self.settings.seed,
                    mask=mask,
                    pad_token_id=self._pad,
                )
                if name == UNLEARNED and where == "all" and self._mask is not None:
                    found["overlap"] = _overlap(before, model, self._mask)
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
        usual = WHERE if self._mask is not None else WHERE[:1]
        chosen: list[str] = list(self.settings.where or usual)
        if self._mask is None and chosen != ["all"]:
            raise ConfigError(
                f"attack.where is {', '.join(chosen)}, but the run in {self.folder} has no mask "
                "file; give all"
            )
        return chosen

    def _mask_of(self, where: str) -> Mask | None:
        if where == "all" or self._mask is None:
            return None
        if where == "complement":
            return complement(self._mask)
        return random_alike(self._mask, self.settings.seed) if where == "random" else self._mask

    # ------------------------------------------------------------------- models, mask and rows

    def _model(self, name: str) -> PreTrainedModel | None:
        """A model by its role, loaded once; ``None`` where nobody names the retain-only one."""
        if name not in self.models:
            given = {RETAIN: self.settings.retain_model, ORIGINAL: self.settings.original_model}[
                name
            ]
            given = given or (self.config.overall.model_name if name == ORIGINAL else None)
            if given is None:
                return None
            changes = {
                "overall.model_name": str(find_saved_model(Path(given))),
                "unlearn.unlearn_method": TRAINLESS,
                "unlearn.mask_path": None,
                "unlearn.resume_path": None,
            }
            self.models[name] = _opened(self.config, changes).model
        return self.models[name]

    @cached_property
    def _mask(self) -> Mask | None:
        """The run's mask, from its file."""
        path = self.config.unlearn.mask_path
        if path is None or self.config.unlearn.unlearn_method == TRAINLESS:
            return None
        shapes = {name: p.shape for name, p in self.run.model.named_parameters()}
        mask = load_mask(Path(path), shapes)
        known = self.manifest.get("fingerprints", {}).get("mask")
        if known is not None and mask_fingerprint(mask) != known:
            raise WagleError(f"{path} is not the mask that the run in {self.folder} was made with")
        return mask

    @cached_property
    def _forget(self) -> list[Encoded]:
        name = self.config.dataset.forget_dataset_name
        encode = row_encoder(name, self.run.tokenizer, self.run.template)
        return [encode(row) for row in self.run.data.forget_rows()]

    @cached_property
    def _retain(self) -> list[Encoded]:
        return self._first(self.config.dataset.retain_dataset_name)

    @cached_property
    def _benign(self) -> list[Encoded]:
        name = self.settings.benign_dataset_name or self.config.dataset.retain_dataset_name
        return self._first(name)

    def _first(self, name: str) -> list[Encoded]:
        encode = row_encoder(name, self.run.tokenizer, self.run.template)
        rows = self.run.data.rows(name, "retain")
        return [encode(row) for row in rows.select(range(min(len(rows), _ROWS)))]

    @property
    def _pad(self) -> int:
        pad: int = self.run.tokenizer.pad_token_id
        return pad

    def _ask(self, model: PreTrainedModel, rows: list[Encoded]) -> float:
        size = self.config.evaluation.batch_size
        return mean_probability(model, rows, batch_size=size, pad_token_id=self._pad)

    def _knowledge(self, model: PreTrainedModel) -> dict[str, float]:
        return {name: self._ask(model, getattr(self, f"_{name}")) for name in ("forget", "retain")}

    @cached_property
    def _fingerprints(self) -> dict[str, Any]:
        """Of everything that is named, so that nothing measured of other models is taken over."""
        named = (self.settings.retain_model, self.settings.original_model)
        return {
            "unlearned": self.run.fingerprints["model"],
            "named": [_weights_stamp(name) for name in (*named, self.config.overall.model_name)],
            "mask": mask_fingerprint(self._mask) if self._mask is not None else None,
        }

    @cached_property
    def _rows_origin(self) -> str:
        return _digest([row.input_ids for row in (*self._forget, *self._retain)])


_OF_RELEARNING = ("benign_dataset_name", "points", "threshold", "seed")


def _opened(config: UnlearnConfig, changes: Mapping[str, Any]) -> Unlearn:
    run = Unlearn(config.replace(changes), Logger())
    run.load()
    return run


def _weights_stamp(name: str | None) -> Any:
    """A model's name and, of a folder, its weights' sizes and times."""
    folder = Path(name) if name else None
    if folder is None or not folder.is_dir():
        return name
    where = find_saved_model(folder)
    files = sorted(path for path in where.iterdir() if path.suffix in (".safetensors", ".bin"))
    return [name, [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """The model's weights as they are; what happens to them in the block is undone."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    try:
        yield before
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])


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
