"""Numbers over drawn rows, against the same formulas on rows that are really repeated."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from asked_runs import HELD_OUT, SIZES, measured, numbers_of, results_of
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from wagle.metrics import own
from wagle.metrics.membership import attack_aucs
from wagle.metrics.privacy import min_k_name
from wagle.metrics.resampling import Draws, Recount
from wagle.metrics.tofu_benchmark import TOFU
from wagle.metrics.tofu_results import TofuResults, TofuSet, to_document

DRAWS = 20


def counts_of(sizes: dict[str, int], seed: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        role: random.multinomial(size, np.full(size, 1 / size), DRAWS).astype(float)
        for role, size in sizes.items()
    }


def repeated(results: TofuResults, counts: dict[str, np.ndarray], draw: int) -> TofuResults:
    """The evaluation as if the model had been asked the drawn rows, some several times."""
    sets = {
        role: TofuSet(tuple(np.repeat(np.array(rows.rows, object), counts[role][draw].astype(int))))
        for role, rows in results.sets.items()
    }
    return measured(replace(results, sets=sets))


def test_means_areas_and_tests_of_drawn_rows():
    random, counts = np.random.default_rng(0), counts_of({"a": 14, "b": 11})
    draws = Draws(counts)
    a, b = random.integers(9, size=14).astype(float), random.integers(9, size=11).astype(float)
    gaps = np.where(np.arange(14) == 2, np.nan, a)
    means, areas = draws.mean(("a", gaps)), draws.auc(("a", a), ("b", b))
    qualities, distances = draws.smirnov(("a", a), ("b", b))
    for draw in range(DRAWS):
        one, other, known = (
            np.repeat(column, counts[role][draw].astype(int))
            for role, column in (("a", a), ("b", b), ("a", gaps))
        )
        labels = [1] * 14 + [0] * 11
        assert means[draw] == pytest.approx(np.nanmean(known))
        assert areas[draw] == pytest.approx(roc_auc_score(labels, [*one, *other]))
        test = ks_2samp(one, other)
        assert (qualities[draw], distances[draw]) == pytest.approx((test.pvalue, test.statistic))


def test_every_draw_takes_as_many_rows_as_there_are():
    recount = Recount({"a": ["?"] * 6}, lambda draws: {TOFU.columns[0]: draws.counts["a"]})
    drawn = recount.resampled(4000, 0)[TOFU.columns[0].key]
    assert drawn.shape == (4000, 6)
    assert (drawn.sum(axis=1) == 6).all()
    assert drawn.mean(axis=0) == pytest.approx(1, abs=0.06)
    assert drawn.var(axis=0) == pytest.approx(5 / 6, abs=0.1)  # binomial: n p (1 − p)
    assert (drawn == recount.resampled(4000, 0)[TOFU.columns[0].key]).all()
    assert (drawn != recount.resampled(4000, 1)[TOFU.columns[0].key]).any()


@pytest.mark.parametrize("protocol", ["corrected", "official"])
def test_tofu(protocol, tmp_path):
    results, retain_model = results_of(1, protocol), results_of(2, protocol)
    config = {"evaluation.protocol": protocol}
    privacy = None
    if protocol == "official":
        random = np.random.default_rng(4)
        names = ("LOSS", "zlib", "Min_40.0% Prob", "Min++_40.0% Prob")
        rows = {
            role: [
                {"question": f"{role} {i}?", **{n: float(random.integers(9)) for n in names}}
                for i in range(size)
            ]
            for role, size in (("forget", SIZES["forget"]), ("holdout", HELD_OUT))
        }
        privacy = {
            "AUC": dict.fromkeys(names, 0.5),
            **{r: {"rows": part} for r, part in rows.items()},
        }
        retain_model = replace(
            retain_model, holdout=dict(zip(names, (0.5, 0.4, 0.6, 0.0), strict=True))
        )
    for name in ("retain_results", "original_results"):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(to_document(retain_model)))
        config[f"evaluation.{name}"] = str(path)
    documents = {"tofu.json": to_document(results), "privacy.json": privacy}
    recount = TOFU.recount(documents.get, config)
    sizes = {role: len(rows) for role, rows in recount.asked.items()}
    counts = counts_of(sizes)
    found = recount.numbers(Draws(counts))
    for draw in range(DRAWS):
        drawn = repeated(results, counts, draw)
        if privacy:
            forget, held = (
                np.repeat(np.array(rows[r], object), counts[r][draw].astype(int)) for r in rows
            )
            scores = [[{n: row[n] for n in names} for row in part] for part in (held, forget)]
            drawn = replace(drawn, holdout=attack_aucs(*scores))
        wanted = numbers_of(drawn, retain_model, repeated(retain_model, counts, draw))
        assert {metric.key: values[draw] for metric, values in found.items()} == pytest.approx(
            wanted, abs=1e-12
        )


def test_own_rows():
    random = np.random.default_rng(5)
    keys = (*own.FORGOTTEN, "loss")
    sizes = {"forget": 6, "retain": 5, "holdout": 4}
    attack = min_k_name(50)
    rows = {
        role: [
            {
                "text": f"{role} {i}",
                **{key: random.uniform() for key in keys},
                "MIA": {attack: float(random.integers(4))},
            }
            for i in range(size)
        ]
        for role, size in sizes.items()
    }
    document = {role: {"rows": part} for role, part in rows.items()}
    document["MIA"] = {role: {attack: 0.5} for role in ("retain", "holdout")}
    counts = counts_of(sizes)
    found = own.OWN.recount({"own.json": document}.get, {}).numbers(Draws(counts))
    for draw in range(DRAWS):
        drawn = {
            role: np.repeat(np.array(part, object), counts[role][draw].astype(int))
            for role, part in rows.items()
        }
        means = {
            role: {key: float(np.mean([row[key] for row in part])) for key in keys}
            for role, part in drawn.items()
        }
        scores = {role: [row["MIA"] for row in part] for role, part in drawn.items()}
        aucs = {role: attack_aucs(scores["forget"], scores[role]) for role in document["MIA"]}
        wanted = own.own_numbers(means, aucs)
        assert {m: values[draw] for m, values in found.items()} == pytest.approx(wanted)
