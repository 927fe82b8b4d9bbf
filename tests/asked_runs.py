"""Finished runs of TOFU as the main command leaves them: random rows, and their numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import ks_2samp

from wagle.loggers.files import write_json
from wagle.loggers.run_folder import CONFIG, FINISHED, RESULTS, write_manifest
from wagle.metrics.composites import official_numbers
from wagle.metrics.membership import attack_aucs
from wagle.metrics.privacy import MIN_K_PERCENT, min_k_name
from wagle.metrics.tofu_benchmark import (
    EXACT_MEMORIZATION,
    EXTRACTION_STRENGTH,
    paper_numbers,
    under,
)
from wagle.metrics.tofu_official import official_scores
from wagle.metrics.tofu_results import (
    AUTHOR_SETS,
    EPSILON,
    PerAnswer,
    TofuResults,
    TofuRow,
    TofuSet,
    to_document,
)

SIZES = {"forget": 12, "retain": 9, "real_author": 5, "world_fact": 4}
HELD_OUT = 7


def results_of(seed: int, protocol: str = "corrected") -> TofuResults:
    """Rows of random numbers, with ties, under the questions that all seeds share."""
    random = np.random.default_rng(seed)

    def row(role: str, number: int) -> TofuRow:
        losses = random.uniform(0.1, 3.0, 5).round(1).tolist()
        loss = PerAnswer(losses[0], losses[1], tuple(losses[2:]))
        attacks = {min_k_name(k): float(random.integers(6)) for k in MIN_K_PERCENT}
        return TofuRow(
            question=f"{role} {number}?",
            answer="yes",
            generated="no",
            truth_ratio=float(random.integers(1, 8)),
            rouge=float(random.uniform(0.1, 1)),
            paraphrase_rouge=float(random.uniform()) if role == "forget" else None,
            acc=float(random.integers(2)),
            exact_memorization=None if number == 1 else float(random.uniform()),
            extraction_strength=float(random.uniform()),
            loss=loss,
            attacks={**attacks, "LOSS": losses[0]} if role in AUTHOR_SETS else None,
        )

    sets = {
        role: TofuSet(tuple(row(role, number) for number in range(size)))
        for role, size in SIZES.items()
    }
    return measured(TofuResults(sets, protocol, EPSILON if protocol == "official" else 0.0))


def measured(results: TofuResults) -> TofuResults:
    """With what an evaluation makes of the rows of two sets together."""
    if results.protocol == "official":
        return results
    ratios, attacks = (
        [results.sets[role].all(read) for role in AUTHOR_SETS]
        for read in (lambda row: row.truth_ratio, lambda row: row.attacks)
    )
    return replace(results, forget_quality=ks_2samp(*ratios).pvalue, mia=attack_aucs(*attacks))


def numbers_of(
    results: TofuResults,
    original: TofuResults | None = None,
    retain_model: TofuResults | None = None,
) -> dict[str, float]:
    """What the main command writes into the results, but for the names of attacks."""
    if results.protocol == "official":
        found = official_numbers(results, retain_model, original)
        return {under("official", metric).key: value for metric, value in found.items()}
    forget = results.sets["forget"]
    known = forget.known(lambda row: row.exact_memorization)
    scores = official_scores(results, retain_model)
    found = {
        **paper_numbers(results),
        EXACT_MEMORIZATION: float(np.mean(known)),
        EXTRACTION_STRENGTH: forget.mean(lambda row: row.extraction_strength),
        **{under(results.protocol, metric): value for metric, value in scores.items()},
    }
    assert results.mia is not None
    return {metric.key: value for metric, value in found.items()} | {
        "MIA LOSS": results.mia["LOSS"]
    }


def write_run(folder: Path, method: str, results: TofuResults, **changes: object) -> Path:
    """A run folder with these rows."""
    folder.mkdir(parents=True)
    config = {
        "unlearn": {"unlearn_method": method, "use_lora": False, "score_type": "wagle"},
        "evaluation": {"protocol": results.protocol, **changes},
    }
    config["unlearn"]["mask_path"] = None
    about = {"task": "tofu", "method": method, "mask": None, "density": 1.0, "seed": 0}
    write_json(folder / CONFIG, config)
    write_json(folder / "tofu.json", to_document(results))
    write_json(folder / RESULTS, about | numbers_of(results))
    manifest = {"status": FINISHED, "seconds": {"evaluate": 1.0}, "fingerprint": "f"}
    environment = {"git_commit": None, "device": "cpu", "dtype": "float32"}
    nothing = {name: {} for name in ("versions", "fingerprints", "peak_memory_bytes")}
    write_manifest(folder, manifest | environment | nothing)
    return folder
