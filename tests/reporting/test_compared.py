"""Runs compared: intervals of paired draws, the front, the command, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from asked_runs import results_of, write_run

from wagle.commands import compare
from wagle.errors import ConfigError, WagleError
from wagle.metrics.privacy import MIDDLE
from wagle.metrics.tofu_results import TofuSet
from wagle.reporting.bootstrap import Interval, differences, resample
from wagle.reporting.compared import Compared
from wagle.reporting.compared_figures import draw_differences, draw_front
from wagle.reporting.null_distribution import draw_strips
from wagle.reporting.runs import read_run


def shifted(results, by):
    """The forget answers' ROUGE is lower by that much."""
    rows = tuple(replace(row, rouge=row.rouge - by) for row in results.sets["forget"].rows)
    return replace(results, sets={**results.sets, "forget": TofuSet(rows)})


@pytest.fixture
def folders(tmp_path):
    """The second run differs from the first by what the model says to forget questions alone."""
    first, other = results_of(0), results_of(1)
    return [
        write_run(tmp_path / "a", "GA+FT", first),
        write_run(tmp_path / "b", "NPO+FT", shifted(first, 0.05)),
        write_run(tmp_path / "c", "origin", other),
    ]


def test_pairs_of_draws_show_differences_that_single_runs_hide(folders):
    first, second, other = (resample(read_run(folder), 2000) for folder in folders)
    apart = differences(first, second)
    assert apart["UE 1-RougeL"] == pytest.approx((0.05, 0.05, 0.05))
    assert apart["UT Avg"] == (0, 0, 0)
    assert apart["UE Avg"].excludes(0)
    alone = first.interval("UE 1-RougeL")
    assert alone.low < alone.value - 0.1 < alone.value + 0.1 < alone.high
    # The middle 95 % of a mean's draws: 1.96 standard deviations of the rows by √n to either side.
    rouge = np.array(
        [row["rougeL_score"] for row in first.run.document("tofu.json")["forget"]["rows"]]
    )
    half = 1.96 * rouge.std() / math.sqrt(len(rouge))
    assert (alone.high - alone.low) / 2 == pytest.approx(half, rel=0.08)
    assert not differences(first, other)["UT Avg"].excludes(
        differences(first, other)["UT Avg"].value
    )


def test_the_front_is_of_those_that_none_is_better_than(folders):
    compared = Compared.read(folders[:2], original=folders[2], resamples=200)
    headline = compared.headline()
    assert compared.front(headline) == {"GradDiff": 0, "NPO": 1}  # as useful, forgets more
    assert list(compared.everything) == ["GradDiff", "NPO", "Original"]
    with pytest.raises(WagleError, match="no number nonsense"):
        compared.headline("nonsense")


def test_methods_whose_marker_is_a_letter_are_drawn(tmp_path):
    rows = results_of(0)
    folders = [write_run(tmp_path / name, name, rows) for name in ("SimNPO+FT", "WGA")]
    compared = Compared.read(folders, resamples=100)
    strips = draw_strips([(part, [part.run]) for part in compared.runs], {}, compared.headline())
    for figure in (draw_differences(compared), draw_front(compared, compared.headline()), strips):
        lines = [line for axes in figure.axes for line in axes.lines]
        assert "$W$" in {line.get_marker() for line in lines}


def test_the_command(folders, tmp_path, capsys, undrawn):
    words = [*map(str, folders[:2]), "--compare.original", str(folders[2])]
    output = tmp_path / "out"
    assert compare.main([*words, f"--compare.output={output}", "--compare.resamples=300"]) == 0
    shown = capsys.readouterr().out
    assert "first: GradDiff; second: NPO" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("UE 1-RougeL"))
    assert "+0.050 *" in line
    document = json.loads((output / "compare.json").read_text())
    assert document["differences from"] == "GradDiff"
    assert Interval(**document["differences"]["NPO"]["UT Avg"]) == (0, 0, 0)
    assert document["questions"]["forget"] == 12
    assert {path.name for path in output.iterdir()} == {
        *("compare.json", "differences.png", "differences.pdf", "front.png", "front.pdf")
    }


def test_what_is_relative_to_results_that_are_gone_is_not_compared(tmp_path):
    results = replace(results_of(0, "official"), holdout={MIDDLE: 0.75})
    folder = write_run(tmp_path / "a", "GA+FT", results, retain_results="gone.json")
    held = [{"question": f"{i}?", MIDDLE: 3.0} for i in range(2)]
    asked = results.sets["forget"].all(lambda row: row.question)
    forget = [{"question": q, MIDDLE: 2.0 + 2 * (i % 2) / (i + 1)} for i, q in enumerate(asked)]
    auc = {MIDDLE: 1 - 0.5 / 12}  # the second row's 3.0 is as large as the others'
    rows = {"forget": {"rows": forget}, "holdout": {"rows": held}}
    (folder / "privacy.json").write_text(json.dumps({"AUC": auc, **rows}))
    numbers = json.loads((folder / "results.json").read_text())
    numbers["tofu_official mia_min_k"] = auc[MIDDLE]
    numbers["tofu_official privleak"] = numbers.pop("tofu_official privleak against 0.5")
    (folder / "results.json").write_text(json.dumps(numbers))
    (folder / "manifest.json").write_text(json.dumps({"status": "finished", "seconds": {}}))
    values = resample(read_run(folder), 100).values
    assert {key for key in values if "privleak" in key or "mia" in key} == {
        "tofu_official mia_min_k"
    }


def test_what_cannot_be_paired_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="give run folders"):
        compare.main(["--compare.seed", "1"])
    with pytest.raises(WagleError, match="the same run folder is given twice"):
        Compared.read([folders[0], folders[0]])
    with pytest.raises(WagleError, match="no evaluation of the original model"):
        Compared.read(folders[:2], original=folders[1])
    results = results_of(0)
    rows = results.sets["retain"].rows
    swapped = TofuSet((rows[1], rows[0], *rows[2:]))
    other = write_run(
        tmp_path / "d", "GA+FT", replace(results, sets={**results.sets, "retain": swapped})
    )
    with pytest.raises(
        WagleError, match="of the set retain 9 and 9 rows, 9 in common or in another"
    ):
        Compared.read([folders[0], other], resamples=100)
    document = json.loads((other / "tofu.json").read_text())
    document["retain"]["rows"][0]["acc"] = 0.5
    (other / "tofu.json").write_text(json.dumps(document))
    with pytest.raises(WagleError, match="has been changed since the run wrote it"):
        resample(read_run(other))
    (other / "manifest.json").write_text(json.dumps({"status": "finished", "seconds": {}}))
    with pytest.raises(WagleError, match="give UT retain acc"):
        resample(read_run(other))
    (other / "results.json").write_text(
        (other / "results.json").read_text().replace('"tofu"', '"wmdp"')
    )
    with pytest.raises(WagleError, match="keeps no rows"):
        resample(read_run(other))
