"""Planted ground truth: facts are learned in known weights, and scores have to find these.

A model that never saw the forget set learns it in a set P of weights, all others bit for bit as
before; then the scores of the planted model are judged against P. What is found is kept in
``plant.json``, score by score: work that was interrupted goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from wagle.catalogue import SCORES
from wagle.config import PlantConfig, plain_number
from wagle.dataset.encoding import Encoded
from wagle.dataset.pairing import FORGET, RETAIN
from wagle.errors import ConfigError, WagleError
from wagle.loggers import Logger
from wagle.loggers.files import json_checksum, read_object, write_json
from wagle.loggers.folder_lock import FolderLock
from wagle.model.copied_weights import copied, put, restored
from wagle.model.environment import mask_fingerprint
from wagle.model.equal_utility import mix, smallest_share
from wagle.model.fine_tuning import fine_tune
from wagle.model.interference import mean_probability
from wagle.model.opened import TRAINLESS, OpenedRun
from wagle.model.unlearn import Unlearn
from wagle.optim.bitmask import Mask
from wagle.terminal import Progress, say, say_phase
from wagle.training.schedule import Plan
from wagle.unlearn.mask.certificate import model_digest
from wagle.unlearn.mask.file import save_mask
from wagle.unlearn.mask.make import score_files, scores_of
from wagle.unlearn.mask.planted import PLACES, as_scores, judge
from wagle.unlearn.mask.scores import ScoreStream
from wagle.unlearn.mask.selection import select_top
from wagle.unlearn.mask.statistics import combined, complement, density, random_alike

PLANT = "plant.json"
SUMS = ".sums"
"""Folder of what scores of the planted model are formed from, until all are judged."""
Run = TypeVar("Run", bound=OpenedRun)
WARMUP = 0.1  # of the steps of planting
UTILITY, EVALUATIONS = 0.95, 6  # of equal utility, as wagle compare has them
LINES = ("oracle", "random alike", "complement")
"""Beside the scores: P itself, random weights of P's density in each tensor, all but P."""


class Plant:
    """Facts in known weights, of every kind and seed, and what the scores find of them.

    Args:
        config: every key, resolved.

    Raises:
        ConfigError: a score ranks nothing, or somebody else's plant.json is in the folder.
    """

    def __init__(self, config: PlantConfig) -> None:
        self.config = config
        self.settings = config.plant
        rankless = [name for name in self.settings.scores if not SCORES[name].ranks]
        if rankless:
            raise ConfigError(
                f"plant.scores has {', '.join(rankless)}: they give no weight a score, so there is "
                "nothing to judge"
            )
        unlearns = config.plant.unlearn
        self._training = config.training_fingerprint() if unlearns else None
        if unlearns and config.unlearn.unlearn_method == TRAINLESS:
            raise ConfigError("plant.unlearn needs a method: give unlearn.unlearn_method")
        self.path = Path(self.settings.output_dir) / PLANT
        self.document: dict[str, Any] = {"plant": asdict(self.settings), "cells": {}}

    def make(self) -> dict[str, Any]:
        """Plant and judge what has not been judged yet; returns what is in ``plant.json``.

        Raises:
            ConfigError: another process is at it in the same folder.
        """
        with FolderLock(self.path.parent, "plant.output_dir"):
            return self._make()

    def _make(self) -> dict[str, Any]:
        known = read_object(self.path).get("cells", {}) if self.path.is_file() else {}
        for seed in self.settings.seeds:
            cells = {kind: f"{kind}, seed {seed}" for kind in self.settings.kinds}
            run = _with_rows(OpenedRun(_changed(self.config, seed)))
            origin = self._origin(run)
            kept = {n: cell for n, cell in known.items() if cell["origin"] == origin}
            self.document["cells"] = kept | self.document["cells"]
            for kind, name in cells.items():
                fresh = {"origin": origin, "kind": kind, "seed": seed, "judged": {}}
                found = self.document["cells"].setdefault(name, fresh)
                if not self._missing(found):
                    say(f"already judged: {name}")
                else:
                    say_phase(name)
                    self._fill(found, kind, seed, run)
                self._write()
        return self.document

    def _write(self) -> None:
        write_json(self.path, self.document)

    def _origin(self, run: OpenedRun) -> str:
        """A digest of everything that a cell depends on, but for kind, seed and score."""
        settings = asdict(self.settings)
        for each in ("output_dir", "kinds", "seeds", "scores", "mus", "unlearn"):
            settings.pop(each)
        section = self.config.unlearn
        content = {
            "planting": settings,
            "accumulation": section.gradient_accumulation_steps,
            "batch size": self.config.dataset.batch_size,
            "dtype": section.attribution_dtype,
            **run.fingerprints,
            "template": run.template.name,
        }
        return json_checksum(content)

    def _asked(self) -> dict[str, tuple[str, float | None]]:
        """What is judged by its name in ``plant.json``: (score, μ where it depends on that)."""
        asked: dict[str, tuple[str, float | None]] = {name: (name, None) for name in LINES}
        for name in self.settings.scores:
            if SCORES[name].depends_on("mu"):
                for mu in self.settings.mus:
                    asked[f"{name} {plain_number(mu)}"] = (name, mu)
            else:
                asked[name] = (name, None)
        return asked

    def _missing(self, found: Mapping[str, Any]) -> dict[str, tuple[str, float | None]]:
        """What is still to be judged or, where that is asked for, to be unlearned by."""

        def done(name: str) -> bool:
            entry = found["judged"].get(name)
            return entry is not None and (
                self._training is None or entry.get("unlearned", {}).get("origin") == self._training
            )

        return {name: of for name, of in self._asked().items() if not done(name)}

    # ----------------------------------------------------------------------------------- planting

    def _fill(self, found: dict[str, Any], kind: str, seed: int, run: OpenedRun) -> None:
        """Plant one kind of set, and judge what is not judged yet."""
        masks = PLACES[kind](run.model, self.settings.density, seed)
        planted = combined("union", masks)
        found["density"] = density(planted)
        found["mask"] = mask_fingerprint(planted)
        digest = model_digest(run.model, planted)
        found["before"] = self._knowledge(run)
        with restored(run.model) as before:
            found |= self._plant(run, before, masks, seed)
            if model_digest(run.model, planted) != digest:
                raise WagleError("planting has changed weights that it may not change")
            found["certificate"] = digest
            found["after"] = self._knowledge(run)
            folder = self.path.parent / "planted"
            about = {"planted": kind, "overall.seed": str(seed), "model": run.fingerprints["model"]}
            save_mask(planted, folder / f"{kind}_{seed}.safetensors", provenance=about)
            self._judge(found, planted, seed, run)

    def _plant(
        self, run: OpenedRun, before: dict[str, torch.Tensor], masks: Sequence[Mask], seed: int
    ) -> dict[str, Any]:
        """Learn all facts in each of some disjoint sets, each from the model as it was."""
        alone, changed = [], []
        for number, mask in enumerate(masks):
            put(run.model, before)
            self._learn(run, mask, seed + number)
            if len(masks) > 1:
                alone.append(self._knowledge(run))
                changed.append(copied(run.model))
        for weights, mask in zip(changed, masks, strict=False):
            for name, parameter in run.model.named_parameters():
                chosen = mask[name].to_bool().to(parameter.device)
                parameter.data[chosen] = weights[name][chosen]
        return {"after each copy alone": alone} if alone else {}

    def _learn(self, run: OpenedRun, mask: Mask, seed: int) -> None:
        rows = self._rows(run, FORGET)
        if self.settings.rehearse:
            rows += self._rows(run, RETAIN)
        plan = Plan.make(
            len(rows),
            batch_size=self.settings.batch_size,
            accumulation=1,
            num_epochs=self.settings.num_epochs,
            whole_epochs=True,
            warmup=WARMUP,
        )
        say(f"planting in {density(mask):.4%} of the weights: {plan.describe()}")
        fine_tune(
            run.model,
            rows,
            plan,
            lr=self.settings.lr,
            weight_decay=0.0,
            master_weights=run.model.dtype.itemsize == 2,
            seed=seed,
            pad_token_id=run.tokenizer.pad_token_id,
            mask=mask,
        )

    def _rows(self, run: OpenedRun, view: str) -> list[Encoded]:
        """Forget rows, or their retain partners."""
        return [run.paired.example(view, (0, index)) for index in range(len(run.paired))]

    def _knowledge(self, run: OpenedRun) -> dict[str, float]:
        size, pad = self.config.evaluation.batch_size, run.tokenizer.pad_token_id
        return {
            view: mean_probability(
                run.model, self._rows(run, view), batch_size=size, pad_token_id=pad
            )
            for view in (FORGET, RETAIN)
        }

    # ------------------------------------------------------------------------------------ judging

    def _judge(self, found: dict[str, Any], planted: Mask, seed: int, run: OpenedRun) -> None:
        left = self._missing(found)
        folder = self.path.parent / SUMS
        for name, stream, mask in self._streams(left, planted, seed, run, folder / "planted"):
            score, mu = left[name]
            if name not in found["judged"]:
                found["judged"][name] = {
                    **{"score": score, "mu": mu},
                    **asdict(judge(stream, planted)),
                }
                self._write()
            if self._training is not None:
                forgotten = self._unlearn(mask or _largest(stream, planted), seed, run)
                found["judged"][name]["unlearned"] = {"origin": self._training, **forgotten}
                self._write()
        shutil.rmtree(folder, ignore_errors=True)

    def _unlearn(self, mask: Mask, seed: int, run: OpenedRun) -> dict[str, Any]:
        """Unlearn the planted model with a mask, to equal utility.

        Utility is how likely retain answers are; the unlearned model is mixed with the planted one
        until it is as likely as ``UTILITY`` of before.
        """
        weights = dict(run.model.named_parameters())
        method = self.config.unlearn.unlearn_method
        unlearning = _with_rows(Unlearn(_changed(self.config, seed, method), Logger()))
        put(unlearning.model, weights)
        unlearning.mask = mask
        unlearning.train()
        after = copied(unlearning.model)
        asked: dict[float, dict[str, float]] = {}

        def utility(share: float) -> float:
            put(unlearning.model, after)
            mix(unlearning.model, weights, share)
            asked[share] = self._knowledge(unlearning)
            return asked[share][RETAIN]

        before = self._knowledge(run)
        share = smallest_share(utility, UTILITY * before[RETAIN], EVALUATIONS)
        if share not in asked:
            utility(share)
        return {"unlearned": asked[0.0], "share": share, "at equal utility": asked[share]}

    def _streams(
        self,
        asked: dict[str, tuple[str, float | None]],
        planted: Mask,
        seed: int,
        run: OpenedRun,
        prefix: Path,
    ) -> Iterator[tuple[str, ScoreStream, Mask | None]]:
        """What is judged: its name, its scores and, where it is a mask by itself, that."""
        lines: dict[str, Callable[[], Mask]] = {
            "oracle": lambda: planted,
            "random alike": lambda: random_alike(planted, seed),
            "complement": lambda: complement(planted),
        }
        batch_size = self.config.dataset.batch_size
        scores = {name: SCORES[score] for name, (score, _) in asked.items() if name not in lines}
        files = score_files(
            *(run.model, run.paired, list(scores.values()), self.config.unlearn, prefix),
            batch_size=batch_size,
            pad_token_id=run.tokenizer.pad_token_id,
        )
        for name, (score, mu) in Progress("judging", len(asked), "score").over(asked.items()):
            if name in lines:
                mask = lines[name]()
                yield name, as_scores(mask), mask
                continue
            section = replace(self.config.unlearn, score_type=score, mu=mu or 1.0)
            stream = scores_of(
                *(run.model, run.paired, section, files), batch_size=batch_size, seed=seed
            )
            yield name, stream, None


def _largest(stream: ScoreStream, planted: Mask) -> Mask:
    """As many of the largest scores as were planted."""
    total = sum(bits.numel for bits in planted.values())
    count = sum(bits.count() for bits in planted.values())
    ratio = (count + 0.5) / total if count < total else 1.0
    return select_top(stream, {n: bits.shape for n, bits in planted.items()}, [ratio])[ratio]


def _with_rows(run: Run) -> Run:
    """The run, with its model and rows loaded."""
    run.load()
    run.build_dataset()
    return run


def _changed(config: PlantConfig, seed: int, method: str = TRAINLESS) -> PlantConfig:
    changes = {
        "overall.seed": seed,
        "unlearn.unlearn_method": method,
        "unlearn.mask_path": None,
        "unlearn.resume_path": None,
    }
    return config.replace(changes)
