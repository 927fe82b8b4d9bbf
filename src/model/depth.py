"""Where a finished run's mask, its update and the knowledge that it was to remove sit.

What is found is kept in the run folder, in ``depth.json``: rows that have been measured of the same
models, with the same settings, are not measured again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wagle.catalogue import SCORES
from wagle.config import DepthConfig
from wagle.dataset.encoding import pad_batch
from wagle.loggers.files import json_checksum, read_object, write_json
from wagle.loggers.run_folder import DEPTH
from wagle.metrics.likelihood import most_tokens
from wagle.model.finished import ORIGINAL, FinishedRun
from wagle.model.opened import opened
from wagle.model.patching import (
    RETAIN,
    UNLEARNED,
    Lost,
    check_alike,
    depth_score,
    patch_rows,
)
from wagle.model.reading import reads_padded
from wagle.pace import Pace
from wagle.terminal import Progress, say, say_phase
from wagle.unlearn.mask.layers import mask_effects, score_shares, update_norms
from wagle.unlearn.mask.statistics import density_by

_KEEP_SECONDS, _KEEP_SHARE = 20.0, 0.02  # between two times that rows are written down


class Depth(FinishedRun):
    """A finished run, looked into layer by layer.

    Args:
        folder: of the run, with its model; or of the evaluation of a model that was not changed.
        config: with the retain-only model.

    Raises:
        WagleError: it is no finished run, or holds no model; or models have other shapes.
    """

    def __init__(self, folder: Path, config: DepthConfig) -> None:
        self.settings = config.depth
        super().__init__(
            folder,
            "depth",
            retain_model=self.settings.retain_model,
            original_model=self.settings.original_model,
        )
        full, retain = self.model(ORIGINAL), self.model(RETAIN)
        assert full is not None  # the run has
        assert retain is not None  # the configuration has
        self.full, self.retain = full, retain
        for name, model in ((RETAIN, self.retain), (UNLEARNED, self.run.model)):
            check_alike(self.full, model, name)

    def make(self) -> dict[str, Any]:
        """Measure what has not been measured yet; returns what is in ``depth.json``."""
        path = self.folder / DEPTH
        known = read_object(path) if path.is_file() else {}
        found: dict[str, Any] = {"depth": asdict(self.settings), "layers": self._layers(known)}
        rows = self._patching(known, found)
        found |= summary({index: Lost(**row) for index, row in rows.items()})
        write_json(path, found)
        return found

    # ------------------------------------------------------------------------------------ layers

    def _layers(self, known: Mapping[str, Any]) -> dict[str, Any]:
        origin = json_checksum([self.fingerprints, self.config.training_fingerprint()])
        found = known.get("layers", {})
        if found.get("origin") == origin:
            say("already measured: layers")
            return dict(found)
        say_phase("layers")
        columns: dict[str, Mapping[str, float]] = {
            "update": update_norms(self.full, self.run.model)
        }
        if self.mask is not None:
            columns["density"] = density_by(self.mask, "layer")
            columns |= self._scores()
        layers = sorted(columns["update"], key=lambda name: (not name.isdigit(), name.zfill(9)))
        by_layer = {x: {c: column[x] for c, column in columns.items()} for x in layers}
        return {"origin": origin, "by layer": by_layer}

    def _scores(self) -> dict[str, Mapping[str, float]]:
        """Where the score lies that made the mask, and to what effect the selected weights are."""
        assert self.mask is not None  # is asked for with one only
        source = opened(self.config, {"unlearn.resume_path": None})
        source.build_dataset()
        files = source.mask_files()
        batches = -(-len(source.paired) // self.config.dataset.batch_size)
        gamma = self.config.method_params.get("gamma", 1.0)
        effects = mask_effects(self.mask, files.gradient_sums(), batches=batches, gamma=gamma)
        columns: dict[str, Mapping[str, float]] = {
            "e_forget": {layer: effect.forget for layer, effect in effects.items()},
            "e_retain": {layer: effect.retain for layer, effect in effects.items()},
        }
        if SCORES[self.config.unlearn.score_type].ranks:
            columns["score"] = score_shares(files.scores())
        return columns

    # ---------------------------------------------------------------------------------- patching

    def _patching(self, known: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        """Rows by index; they are written down, with what else has been found, as they come."""
        rows = self.forget_rows[: self.settings.rows]
        texts = [(row.input_ids, row.labels) for row in self.forget_rows]
        origin = json_checksum([self.settings.tokens, self.fingerprints, texts])
        patching = known.get("patching", {})
        done = dict(patching["rows"]) if patching.get("origin") == origin else {}
        found["patching"] = {"origin": origin, "rows": done}
        longest = max(len(row.input_ids) for row in rows)
        size = int(
            min(self.config.evaluation.batch_size, max(1, most_tokens(self.full) // longest))
        )
        if size > 1 and not reads_padded(self.full, longest, self.pad_token_id):
            size = 1
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        pace = Pace(_KEEP_SECONDS, _KEEP_SHARE)
        with Progress("patching", len(rows)) as bar:
            for batch in batches:
                if any(str(i) not in done for i in batch):
                    view = pad_batch([rows[i] for i in batch], self.pad_token_id)
                    view = {name: part.to(self.full.device) for name, part in view.items()}
                    models = self.full, self.retain, self.run.model
                    lost = patch_rows(*models, view, tokens=self.settings.tokens)
                    done |= {str(i): row._asdict() for i, row in zip(batch, lost, strict=True)}
                bar.update(len(batch))
                if pace.due():
                    with pace.writing():
                        write_json(self.folder / DEPTH, found)
        return {str(i): done[str(i)] for i in range(len(rows))}


def summary(rows: Mapping[str, Lost]) -> dict[str, Any]:
    """The means over rows: of what patching costs behind each block, and of the score.

    Returns:
        ``blocks``: by source, a number a block, in nats, over the rows that have tokens which the
        retain-only model finds less likely; ``UDS``: mean of :func:`depth_score`, not there where
        no row has one; ``UDS rows``: of how many of how many.
    """
    told = [row.by_source for row in rows.values() if row.tokens]
    blocks = {
        name: [
            statistics.fmean(column) for column in zip(*(row[name] for row in told), strict=True)
        ]
        for name in (RETAIN, UNLEARNED)
    }
    scores = [s for row in told if (s := depth_score(row[RETAIN], row[UNLEARNED])) is not None]
    score = {"UDS": statistics.fmean(scores)} if scores else {}
    return {"blocks": blocks, **score, "UDS rows": [len(scores), len(rows)]}
