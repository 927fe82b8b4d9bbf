"""Tables: planning, running with failures and interruptions, aggregation, and real runs."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from tests.processes import Running
from wagle.commands import running
from wagle.commands import table as reproduce_tables
from wagle.config import load_config
from wagle.errors import ConfigError
from wagle.loggers import JsonLogger
from wagle.metrics.benchmark import Metric, Range
from wagle.metrics.tofu_benchmark import OFFICIAL, TOFU
from wagle.reporting import executor, reproduction
from wagle.reporting.plan import MUS, RATIOS, plan_runs
from wagle.reporting.planned import TableRow
from wagle.reporting.request import TableRequest
from wagle.reporting.spread import Spread, clearly_best
from wagle.reporting.table_formats import escape, runs_to_csv, to_csv, to_latex, to_markdown
from wagle.reporting.tables import Form, Outcome, aggregate, form_of
from wagle.shipped import CHECKOUT as ROOT

# ------------------------------------------------------------------------------------- planning


@pytest.fixture
def configs(tmp_path, monkeypatch) -> Path:
    """A folder of configurations, as in configs/."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    folder.mkdir()
    (tmp_path / "model").mkdir()
    methods = {"GradDiff": ("GA+FT", 1e-5, 0.95), "NPO": ("NPO+FT", 2e-5, 0.8)}
    for name, (method, lr, ratio) in methods.items():
        config = {
            "overall": {"model_name": "model", "seed": 5},
            "unlearn": {
                **{"unlearn_method": method, "lr": lr, "mu": 1e-6, "task_name": "tofu"},
                method: {"gamma": 1.0},
            },
            "dataset": {
                "forget_dataset_name": "Demo_forget10",
                "retain_dataset_name": "Demo_retain90",
                "dataset_seed": 1000,
            },
        }
        (folder / f"{name}.json").write_text(json.dumps(config))
        config["unlearn"]["mask_path"] = f"mask/demo_{ratio}.pt"
        (folder / f"{name}+WAGLE.json").write_text(json.dumps(config))
    (folder / "fine_tune.json").write_text("{}")
    return folder


def plan(table, configs, **options):
    return plan_runs(TableRequest(table, configs, Path("out"), **options))


def find(runs, name, seed=0):
    (run,) = [run for run in runs if run.row.name == name and run.seed == seed]
    return run


def test_a_task_table_has_every_method_mask_and_seed(configs):
    runs = plan("tofu", configs, seeds=(0, 1))
    rows = list(dict.fromkeys(run.row.name for run in runs))
    assert rows == [
        *("Original", "GradDiff+Dense", "GradDiff+Random_0.95", "GradDiff+Magnitude_0.95"),
        *("GradDiff+Wanda_0.95", "GradDiff+LoRA", "GradDiff+WAGLE_0.95", "NPO+Dense"),
        *("NPO+Random_0.8", "NPO+Magnitude_0.8", "NPO+Wanda_0.8", "NPO+LoRA", "NPO+WAGLE_0.8"),
    ]
    assert len(runs) == 1 + 12 * 2
    assert len({run.folder for run in runs}) == len({run.fingerprint for run in runs}) == len(runs)
    wagle = find(runs, "NPO+WAGLE_0.8", seed=1).config
    assert wagle["overall.seed"] == 1
    assert wagle["dataset.dataset_seed"] == 1000
    assert wagle["unlearn.lr"] == 2e-5
    assert wagle["unlearn.NPO+FT.gamma"] == 1.0
    assert wagle["unlearn.score_type"] == "wagle"
    assert wagle["unlearn.save_model"] is False
    dense, lora = (find(runs, f"GradDiff+{mask}").config for mask in ("Dense", "LoRA"))
    assert dense["unlearn.mask_path"] is lora["unlearn.mask_path"] is None
    assert (dense["unlearn.use_lora"], lora["unlearn.use_lora"]) == (False, True)


def test_commands_say_all_there_is_to_a_run(configs):
    for run in plan("tofu", configs, overrides=["--unlearn.max_steps", "7"]):
        config = load_config(run.arguments, prog="", description="")
        assert config.fingerprint() == run.fingerprint
        folder = Path(config["logger.json.root"]) / config["logger.name"]
        assert folder == run.folder
        assert config["overall.logger"] == "json"
        assert run.seed is None or config["unlearn.max_steps"] == 7


def test_runs_share_masks_and_sums_where_they_can(configs):
    options = {"masks": ["WAGLE", "wagle_gn", "Random", "Magnitude"], "ratios": [0.8, 0.4]}
    runs = plan("tofu", configs, seeds=(0, 1), **options)
    masks = {run.config["unlearn.mask_path"] for run in runs[1:]}
    # GradDiff and NPO share all; the magnitudes of the weights are the same for both seeds
    assert len(masks) == 2 * (3 * 2 + 1)
    sums = {
        run.config["unlearn.gradient_cache"]
        for run in [*runs, *plan("mu", configs, seeds=(0, 1))]
        if run.row.mask.startswith("WAGLE")
    }
    assert len(sums) == 2  # a seed each
    others = plan(
        "tofu", configs, overrides=["--unlearn.gradient_accumulation_steps", "4"], **options
    )
    assert masks.isdisjoint(run.config["unlearn.mask_path"] for run in others)
    other_mu = plan("tofu", configs, overrides=["--unlearn.mu", "1"], masks=["WAGLE"])
    assert masks.isdisjoint(run.config["unlearn.mask_path"] for run in other_mu)


def test_the_original_is_evaluated_once_for_everything(configs):
    first = plan("tofu", configs, seeds=(0, 1))[0]
    assert first.row == TableRow("Original")
    assert first.config["unlearn.unlearn_method"] == "origin"
    for table in ("tofu", "ratio", "mu"):
        options = {"methods": ["NPO"], "seeds": (3,), "overrides": ["--unlearn.lr", "1"]}
        assert plan(table, configs, **options)[0].fingerprint == first.fingerprint
    changed = plan("tofu", configs, overrides=["--evaluation.limit", "3"])[0]
    assert changed.config["evaluation.limit"] == 3
    assert changed.folder != first.folder


def test_methods_of_one_table_are_evaluated_alike(configs):
    other = json.loads((configs / "NPO.json").read_text())
    other["evaluation"] = {"protocol": "published"}
    (configs / "NPO.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match=r"GradDiff and NPO .* differ in evaluation.protocol"):
        plan("tofu", configs)


def test_another_configuration_has_another_folder(configs):
    first = plan("tofu", configs)
    again = plan_runs(TableRequest("tofu", configs, Path("out").resolve()))
    assert [run.folder for run in first] == [run.folder for run in again]
    assert [run.fingerprint for run in first] == [run.fingerprint for run in again]
    changed = plan("tofu", configs, overrides=["--unlearn.lr", "1"])
    assert {r.folder for r in first} & {r.folder for r in changed} == {first[0].folder}


def test_ratio_table(configs):
    runs = plan("ratio", configs, seeds=(0, 1, 2))
    assert {run.row.method for run in runs} == {"Original", "GradDiff"}
    assert len(runs) == 1 + (9 * 3 + 1) * 3  # at ratio 1 all masks are the dense one
    assert [r.row.ratio for r in runs if r.row.mask == "WAGLE"][::3] == list(RATIOS[:-1])
    assert runs[-1].row == TableRow("GradDiff", "Dense")
    assert runs[-1].fingerprint == find(plan("tofu", configs), "GradDiff+Dense", 2).fingerprint


def test_mu_table_shares_runs_with_the_task_table(configs):
    runs = plan("mu", configs, seeds=(0,))
    assert [run.row.mu for run in runs] == [None, *MUS, None]
    assert runs[-1].row.mask == "WAGLE-GN"
    same = find(runs, "GradDiff+WAGLE_0.95_mu1e-06")
    assert same.fingerprint == find(plan("tofu", configs), "GradDiff+WAGLE_0.95").fingerprint


def test_cost_runs_have_masks_of_their_own(configs):
    runs = plan("cost", configs, seeds=(0, 1))
    masked = [run for run in runs if run.config["unlearn.mask_path"]]
    assert {run.row.mask for run in masked} == {"Random", "Magnitude", "Wanda", "WAGLE"}
    for run in masked:
        assert Path(run.config["unlearn.mask_path"]).parent == run.folder
        assert Path(run.config["unlearn.gradient_cache"]).parent == run.folder
    assert len({run.folder for run in runs}) == 12


def test_one_file_serves_all_methods(configs):
    file = configs / "GradDiff+WAGLE.json"
    assert {r.row.method for r in plan("tofu", file)} == {"Original", "GradDiff"}
    runs = plan("tofu", file, methods=["NPO", "PO"], masks=["ffn"], seeds=(0,))
    assert [r.config["unlearn.unlearn_method"] for r in runs] == ["origin", "NPO+FT", "CL+FT"]
    assert find(runs, "NPO+FFN").config["unlearn.score_type"] == "ffn"
    assert find(plan("tofu", file), "GradDiff+WAGLE_0.95")


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ("wmdp", {}, "needs unlearn.task_name wmdp"),
        ("none", {}, "needs unlearn.task_name none"),
        ("toffu", {}, "there is no table 'toffu'; --table takes tofu, wmdp,"),
        ("ratio", {"overrides": ["--unlearn.task_name", "none"]}, "evaluates nothing"),
        ("tofu", {"overrides": ["--overall.seed", "1"]}, "use --seeds"),
        ("tofu", {"overrides": ["--unlearn.mask_path=a_0.5.pt"]}, "use --masks and --ratios"),
        ("mu", {"overrides": ["--unlearn.mu", "1"]}, "use --mus"),
        ("tofu", {"overrides": ["--unlearn.lrr", "1"]}, "did you mean unlearn.lr"),
        ("tofu", {"masks": ["wogle"]}, "there is no mask 'wogle'"),
        ("tofu", {"methods": ["DPO"]}, "DPO.json"),
        ("tofu", {"ratios": [1.5]}, "not 1.5"),
        ("tofu", {"mus": [1.0]}, "--mus is for --table mu"),
        ("mu", {"masks": ["WAGLE"]}, "leave --masks out"),
    ],
)
def test_wrong_requests(configs, table, options, message):
    with pytest.raises(ConfigError, match=message):
        plan(table, configs, **options)


# ---------------------------------------------------------------------------------- aggregation

FORM = Form(
    "Test",
    (
        Metric("a", "", group="UE", title="A"),
        Metric("b", "", -1, group="UE", title="B", digits=2),
        Metric("c", "", 0, title="C"),
    ),
)
DENSE, WAGLE, LORA = (
    TableRow("GradDiff", "Dense"),
    TableRow("GradDiff", "WAGLE", 0.8),
    TableRow("NPO", "LoRA"),
)


def outcome(row, seed, a=None, b=None, c=0.0, **rest):
    values = None if a is None else {"a": a, "b": b, "c": c}
    return Outcome(row, seed, "folder", values, **rest)


@pytest.fixture
def table():
    outcomes = [
        outcome(TableRow("Original"), None, 0.99, 0.0),
        *(outcome(DENSE, 0, 0.1, 3.0), outcome(DENSE, 1, 0.3, 5.0), outcome(DENSE, 2, 0.2, 4.0)),
        *(outcome(WAGLE, 0, 0.4, 4.0), outcome(WAGLE, 1, failure="no_memory & 50%")),
        *(outcome(LORA, 0, failure="diverged"), outcome(LORA, 1)),
    ]
    return aggregate(FORM, outcomes)


def test_remarks_and_a_given_model_in_a_table():
    metric = Metric("a", "", usual=Range(0.05, 0.95, below="too low", above="too high"))
    outcomes = [
        Outcome(TableRow("NPO"), 0, "folder", {"a": 0.99}),
        Outcome(TableRow("Retain-only"), None, "folder", {"a": 0.5}),
    ]
    table = aggregate(Form("A table", (metric,)), outcomes)
    assert table.remarks == ("NPO: a is 0.990: too high",)
    assert "NPO: a is 0.990: too high." in to_markdown(table, "c")
    assert "NPO: a is 0.990: too high" in to_latex(table, "l")
    assert [line.row.method for line in table.lines] == ["NPO", "Retain-only"]


def test_mean_and_sample_deviation_by_hand(table):
    assert Spread.of([1.0, 2.0, 6.0]) == (3.0, pytest.approx(((4 + 1 + 9) / 2) ** 0.5), 3)
    assert Spread.of([5.0]) == (5.0, None, 1)
    assert Spread.of([]) is None
    dense = table.lines[1].cells
    assert dense[0] == (pytest.approx(0.2), pytest.approx(0.1), 3)
    assert dense[1] == (pytest.approx(4.0), pytest.approx(1.0), 3)
    assert [line.finished for line in table.lines] == [1, 3, 1, 0]


def test_only_what_differs_by_more_than_the_intervals_is_best():
    # 95 % of Student's t with 2 degrees of freedom: 4.303 · 0.1 / √3 = 0.2484 on either side
    def around(mean):
        return Spread.of([mean - 0.1, mean, mean + 0.1])

    assert around(1.0).interval == pytest.approx((0.75159, 1.24841), abs=1e-5)
    assert clearly_best([around(1.0), around(1.49)], 1) is None
    assert clearly_best([around(1.0), around(1.5)], 1) == 1
    assert clearly_best([around(1.0), around(1.5)], -1) == 0
    assert clearly_best([around(1.0), around(1.5)], 0) is None
    assert clearly_best([around(1.0), around(1.5), None], 1) == 1
    assert clearly_best([around(1.0), Spread.of([9.0])], 1) is None  # one seed has no interval
    assert clearly_best([Spread.of([1.0]), around(9.0)], 1) is None
    assert clearly_best([around(1.0), Spread.of([math.inf])], -1) == 0
    assert clearly_best([around(1.0)], 1) is None


def test_draws_of_the_questions_tell_single_seeds_apart():
    random = np.random.default_rng(0)
    shared = random.normal(size=4000)
    first, second = shared, shared + 0.3 + 0.1 * random.normal(size=4000)  # 3 deviations apart
    one, other = Spread.of([0.0]), Spread.of([0.3])
    assert clearly_best([one, other], 1) is None
    assert clearly_best([one, other], 1, [first, second]) == 1
    assert clearly_best([one, other], -1, [first, second]) == 0
    assert clearly_best([one, other], 1, [first, second - 0.12]) is None
    assert clearly_best([one, other], 1, [first, None]) is None
    # Seeds that overlap are not told apart by the questions, nor questions by the seeds.
    wide, narrow = ([Spread.of([m - d, m + d]) for m in (0.0, 0.3)] for d in (0.2, 0.001))
    assert clearly_best(wide, 1, [first, second]) is None
    assert clearly_best(narrow, 1, [first, second]) == 1
    assert clearly_best(narrow, 1, [first, second - 0.12]) is None
    assert clearly_best([one, narrow[1]], 1, [first, second]) == 1


def test_marks_over_questions_are_of_the_mean_over_seeds():
    outcomes = [
        replace(outcome(row, seed, value, 1.0), folder=f"{row.mask}{seed}")
        for row, value in ((DENSE, 0.1), (WAGLE, 0.4))
        for seed in (0, 1)
    ]
    drawn = {  # of each seed alone the draws reach both ways; their means never do
        **{f"Dense{seed}": {"a": np.array([-1.0, 1.0] * 50) * (1 - 2 * seed)} for seed in (0, 1)},
        **{f"WAGLE{seed}": {"a": np.full(100, 0.3)} for seed in (0, 1)},
    }
    marked = aggregate(FORM, outcomes, drawn)
    assert [set(line.best) for line in marked.lines] == [set(), {0}]
    assert "over questions of what sets it apart does not hold 0" in to_markdown(marked, "")
    drawn["Dense1"]["a"] *= -1
    assert not any(line.best for line in aggregate(FORM, outcomes, drawn).lines)


def test_the_best_of_several_is_marked(table):
    # the original does not compete, and the one seed of WAGLE has no interval
    assert [set(line.best) for line in table.lines] == [set()] * 4
    outcomes = [outcome(DENSE, seed, 0.1 + seed / 100, 3.0 + seed / 10, seed) for seed in range(3)]
    outcomes += [outcome(WAGLE, seed, 0.4 + seed / 100, 3.1, 5 + seed) for seed in range(3)]
    marked = aggregate(FORM, outcomes)
    assert [set(line.best) for line in marked.lines] == [set(), {0}]  # B overlaps, C is not judged
    text = to_markdown(marked, "")
    assert "| **0.410 ± 0.010** |" in text
    assert "95 % confidence interval (Student's t over the seeds) overlaps no other's" in text


def test_a_sweep_compares_masks_at_the_same_ratio():
    numbers = {("WAGLE", 0.1): 1, ("Random", 0.1): 2, ("WAGLE", 0.2): 5, ("Random", 0.2): 3}
    outcomes = [
        Outcome(TableRow("NPO", mask, ratio), seed, "", dict.fromkeys(("UE Avg", "UT Avg"), value))
        for (mask, ratio), mean in numbers.items()
        for seed, value in enumerate((mean - 0.01, mean + 0.01))
    ]
    lines = aggregate(form_of("ratio", TOFU), outcomes).lines
    assert [bool(line.best) for line in lines] == [False, True, True, False]


def test_averages_are_taken_per_run(table):
    """UE Avg is a column like any other: mean and spread are over the runs' own averages."""
    averages = [0.25, 0.75, 0.5]
    outcomes = [
        Outcome(DENSE, seed, "", {"UE Avg": value, "UT Avg": 1.0})
        for seed, value in enumerate(averages)
    ]
    cell = aggregate(form_of("mu", TOFU), outcomes).lines[0].cells[0]
    assert cell == (0.5, statistics.stdev(averages), 3)


def test_markdown(table):
    text = to_markdown(table, "the command")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| method | mask | ρ | seeds | UE A ↑ | UE B ↓ | C |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| Original | – | – | 1 | 0.990 | 0.00 | 0.000 |",
        "| GradDiff | Dense | – | 3 | 0.200 ± 0.100 | 4.00 ± 1.00 | 0.000 ± 0.000 |",
        "| GradDiff | WAGLE | 0.8 | 1 of 2 [1] | 0.400 | 4.00 | 0.000 |",
        "| NPO | LoRA | – | 0 of 2 [2] | failed | failed | failed |",
    ]
    assert "1. GradDiff+WAGLE_0.8, seed 1: no_memory & 50%" in text
    assert "2. NPO+LoRA, seed 0: diverged" in text
    assert "unfinished: 1 runs" in text
    assert "the command" in text


def test_latex(table):
    text = to_latex(table, "tab:test")
    assert r"\multicolumn{2}{c}{UE} & \multicolumn{1}{c}{} \\" in text
    assert r"\cmidrule(lr){5-6}" in text
    assert r"method & mask & $\rho$ & seeds & A $\uparrow$ & B $\downarrow$ & C \\" in text
    assert r"GradDiff & WAGLE & 0.8 & 1 of 2 [1] & 0.400 & 4.00 & 0.000 \\" in text
    assert r"0.200$_{\pm 0.100}$ & 4.00$_{\pm 1.00}$" in text
    assert r"[1] GradDiff+WAGLE\_0.8, seed 1: no\_memory \& 50\%\par" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert body.count(r"\midrule") == 3
    tabular = [line for line in body.splitlines() if line.endswith(r"\\")]
    widths = [line.count("&") + line.count(r"\multicolumn{2}") for line in tabular]
    assert set(widths) == {6}


def test_latex_escapes_everything_special():
    assert escape(r"\a_b{c}~^#$%&") == (
        r"\textbackslash{}a\_b\{c\}\textasciitilde{}\textasciicircum{}\#\$\%\&"
    )


def test_names_and_reasons_are_plain_text_everywhere():
    row = TableRow("a[/red]b\x1b[2J", "_m|n", 0.8)
    reason = "no <b>memory</b>\n| and \\input{x}\x1b[31m"
    table = aggregate(FORM, [outcome(row, 0, failure=reason)])
    markdown, latex = to_markdown(table, "c"), to_latex(table, "tab:x")
    for text in (markdown, latex):
        assert "\x1b" not in text
    assert r"| a\[/red\]b\\x1b\[2J | _m\|n |" in markdown
    assert r"no \<b\>memory\</b\> | and" in markdown
    assert r"\textbackslash{}input\{x\}" in latex
    assert escape("[x]") == "{}[x]"  # else LaTeX takes it for an argument of the line before


def test_infinite_numbers_are_marked_cells():
    outcomes = [outcome(DENSE, seed, 0.5, math.inf) for seed in (0, 1)]
    outcomes += [outcome(WAGLE, 0, 0.5, 2.0), outcome(WAGLE, 1, 0.5, 2.1)]
    table = aggregate(FORM, outcomes)
    markdown = to_markdown(table, "")
    assert "| 0.500 ± 0.000 | inf | 0.000 ± 0.000 |" in markdown
    assert "inf: larger than a computer's numbers reach" in markdown
    assert set(table.lines[1].best) == {1}
    assert "& inf &" in to_latex(table, "t")
    assert next(iter(csv.DictReader(io.StringIO(to_csv(table)))))["UE B mean"] == "inf"


def test_csv_in_full_precision(table):
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert float(rows[1]["UE A mean"]) == statistics.fmean([0.1, 0.3, 0.2])
    assert float(rows[1]["UE A std"]) == statistics.stdev([0.1, 0.3, 0.2])
    assert rows[2]["UE A std"] == rows[3]["UE A mean"] == ""
    assert [row["seeds"] for row in rows] == ["1", "3", "1", "0"]
    assert [row["failed"] for row in rows] == ["0", "0", "1", "1"]
    runs = [o for line in table.lines for o in line.outcomes]
    rows = list(csv.DictReader(io.StringIO(runs_to_csv(runs))))
    assert [row["status"] for row in rows] == ["finished"] * 5 + ["failed", "failed", "pending"]
    assert rows[2]["a"] == "0.3"
    assert rows[5]["reason"] == "no_memory & 50%"


def test_a_number_that_was_not_measured_is_no_failure():
    outcomes = [Outcome(DENSE, 0, "", {"a": 1.0})]
    assert "| 1.000 | – | – |" in to_markdown(aggregate(FORM, outcomes), "")


def test_diverged_numbers_stay_readable():
    table = aggregate(FORM, [outcome(DENSE, 0, 0.5, 2.4e12), outcome(DENSE, 1, 0.5, 2.6e12)])
    assert "| 2.5e+12 ± 1.4e+11 |" in to_markdown(table, "")


def test_official_scores_have_columns_of_their_own():
    keys = [column.key for column in form_of("tofu", OFFICIAL).columns]
    assert all(key.startswith("tofu_official ") for key in keys)
    assert form_of("ratio", OFFICIAL).columns[-1].key == "tofu_official Model Utility"


def test_runs_of_different_models_are_not_compared_in_silence():
    outcomes = [
        outcome(DENSE, 0, 1.0, 1.0, origins={"model": "x", "forget": "f"}),
        outcome(WAGLE, 0, 1.0, 1.0, origins={"model": "y", "forget": "f"}),
    ]
    table = aggregate(FORM, outcomes)
    assert len(table.warnings) == 1
    assert "Not comparable: the runs were made from 2 different models" in to_markdown(table, "")
    assert aggregate(FORM, outcomes[:1]).warnings == ()


# -------------------------------------------------------------- running, with runs made of paper

STAND_IN = """
import os, signal, sys, time
from pathlib import Path
from wagle.config import load_config
from wagle.loggers import JsonLogger

config = load_config(sys.argv[1:], prog="", description="")
seed = config["overall.seed"]
if seed == 13:
    print("no such device", file=sys.stderr)
    sys.exit(3)
logger = JsonLogger(Path(config["logger.json.root"]) / config["logger.name"])
if logger.start(config.as_dict(), config.fingerprint()) is None:
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    manifest = dict(seconds=dict(train=1.0))
    try:
        logger.save("environment.json", [os.environ.get(name) for name in names])
        if seed == 14:
            raise ValueError("diverged")
        if seed == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(max(config["unlearn.max_steps"], 0) / 10)
    except BaseException as error:
        logger.fail(error, manifest)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)
    results = dict(task="tofu", method=config["unlearn.unlearn_method"], density=1.0, seed=seed)
    results |= {name: seed / 10 for name in ("UE Avg", "UT Avg")}
    logger.finish(results, manifest)
"""


@pytest.fixture
def paper(configs, monkeypatch, undrawn) -> Path:
    """Replaces the main command by one that keeps to the protocol of run folders, and no more."""
    script = configs.parent / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(executor, "SCRIPT", script)
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.02)
    return configs


def arguments(configs, *rest, table="tofu", masks=("Dense",)):
    return [
        *("--table", table, "--config_file", str(configs), "--methods", "GradDiff"),
        *("--masks", *masks, "-o", "out", *rest),
    ]


def runs_csv(table="tofu"):
    return list(csv.DictReader(io.StringIO(Path(f"out/{table}_runs.csv").read_text())))


def environments():
    return [json.loads(path.read_text()) for path in sorted(Path("out").rglob("environment.json"))]


def test_failures_are_marked_and_the_others_go_on(paper, capsys):
    argv = arguments(paper, "--seeds", "1", "13", "14", "15", "2")
    assert reproduce_tables.main(argv) == 1
    reasons = {row["seed"]: row["reason"] for row in runs_csv()}
    assert reasons.pop("13").startswith("exit status 3: no such device")
    assert reasons == {
        **{"": "", "1": "", "2": ""},
        **{"14": "ValueError: diverged", "15": "killed by SIGKILL, maybe out of memory"},
    }
    text = Path("out/tofu.md").read_text()
    assert "| GradDiff | Dense | – | 2 of 5 [1, 2, 3] |" in text
    assert "2. GradDiff+Dense, seed 14: ValueError: diverged" in text
    assert "0.150 ± 0.071" in text
    assert "6 runs, 0 done, 6 to do" in capsys.readouterr().out


def test_what_is_done_is_found_by_its_configuration(paper, capsys):
    argv = arguments(paper, "--seeds", "1", "2")
    assert reproduce_tables.main(argv) == 0
    stamps = {path: path.stat().st_mtime_ns for path in Path("out").rglob("results.json")}
    assert len(stamps) == 3
    Path("out/runs/GradDiff+Dense").rename("out/runs/renamed")
    assert reproduce_tables.main(arguments(paper, "--seeds", "1", "2", "3")) == 0
    assert "4 runs, 3 done, 1 to do" in capsys.readouterr().out
    assert len(list(Path("out").rglob("results.json"))) == 4
    assert reproduce_tables.main([*argv, "--unlearn.lr", "0.5"]) == 0
    output = capsys.readouterr().out
    assert "3 runs, 1 done, 2 to do" in output  # the original stays
    assert "time: about 2 s" in output
    assert len(list(Path("out").rglob("results.json"))) == 6


@pytest.mark.parametrize(
    ("table", "masks", "labels"),
    [("ratio", ("WAGLE", "Random"), {"WAGLE", "Random"}), ("tofu", ("Dense", "WAGLE"), set())],
)
def test_figures_of_finished_runs(paper, capsys, monkeypatch, table, masks, labels):
    drawn = []
    monkeypatch.setattr(reproduction, "write_figure", lambda path, figure: drawn.append(figure))
    rest = ("--ratios", "0.1", "0.8") if table == "ratio" else ()
    reproduce_tables.main(arguments(paper, "--seeds", "1", *rest, table=table, masks=masks))
    (figure,) = drawn
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels <= legend
    assert (
        figure.axes[0].get_ylabel() == f"{'forgetting, ' * (not labels)}UE Avg\n(larger is better)"
    )


def test_dry_run_prints_commands_and_writes_nothing(paper, capsys):
    assert reproduce_tables.main(arguments(paper, "--seeds", "1", "2", "--dry_run")) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 3
    assert not Path("out").exists()
    for command in commands:
        subprocess.run(command, shell=True, check=True)
    reproduce_tables.main(arguments(paper, "--seeds", "1", "2", "--dry_run"))
    assert capsys.readouterr().out == ""  # nothing is left to do


def test_devices_go_round_and_threads_are_shared_out(paper, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(executor, "_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    rest = ("--seeds", "1", "--unlearn.max_steps", "3")
    reproduce_tables.main(arguments(paper, *rest, "--devices", "cuda:0", "cuda:1"))
    assert {tuple(e) for e in environments()} == {("4", None), ("7", None)}
    shutil.rmtree("out")
    reproduce_tables.main(arguments(paper, *rest, "--jobs", "2"))
    assert {tuple(e) for e in environments()} == {("4,7", "4")}
    for devices in (["cuda:2"], ["gpu0"]):
        with pytest.raises(ConfigError, match=devices[0]):
            executor.start_here(Path("out"), devices, 1)


def test_several_processes_share_the_batches_of_a_step(paper, capsys, monkeypatch):
    rest = ("--seeds", "1", "--processes", "2", "--unlearn.gradient_accumulation_steps")
    assert reproduce_tables.main(arguments(paper, *rest, "6", "--dry_run")) == 0
    original, dense = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    for command in (original, dense):
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        assert command[1:7] == [*words, str(executor.SCRIPT)]
        monkeypatch.setenv("WORLD_SIZE", "2")  # as each of the two sees itself
        two = load_config(command[7:], prog="", description="").fingerprint()
        monkeypatch.delenv("WORLD_SIZE")
        one = command[7:-2] if command is dense else command[7:]
        assert two == load_config(one, prog="", description="").fingerprint()
    assert dense[-2:] == ["--unlearn.gradient_accumulation_steps", "3"]
    with pytest.raises(ConfigError, match=r"accumulates 3 batches .* 2 processes"):
        reproduce_tables.main(arguments(paper, *rest, "3"))
    assert not Path("out").exists()


def test_each_process_of_a_run_has_a_device_of_its_own(paper, monkeypatch):
    monkeypatch.setattr(executor, "command_of", lambda run, _: [sys.executable, "-c", "pass"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    seen = []
    monkeypatch.setattr(executor, "LocalJob", lambda command, env, log: seen.append(env))
    run = plan("tofu", paper)[0]
    devices = [f"cuda:{index}" for index in range(4)]
    start = executor.start_here(Path("out"), devices, 2, processes=2)
    for slot in range(3):
        start(run, slot)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in seen] == ["4,5", "6,7", "4,5"]
    with pytest.raises(ConfigError, match="--processes 2 takes as many --devices or a multiple"):
        executor.start_here(Path("out"), devices[:3], 1, processes=2)


def test_never_more_runs_than_slots(paper):
    class FakeJob:
        def __init__(self, run):
            self.run, self.polls = run, 0

        def ended(self):
            self.polls += 1
            if self.polls == 2 + len(self.run.title) % 3:
                logger = JsonLogger(self.run.folder)
                logger.start({}, self.run.fingerprint)
                logger.finish({}, {})
                running.discard(self)
            return self not in running

    running, most, ended = set(), [], []

    def start(run, slot):
        job = FakeJob(run)
        running.add(job)
        most.append(len(running))
        return job

    runs = plan("tofu", paper)
    executor.execute(runs, start, 3, lambda run, failure: ended.append((run.title, failure)))
    assert max(most) == 3
    assert sorted(ended) == sorted((run.title, None) for run in runs)


def test_a_run_of_another_process_is_waited_for(paper, capsys):
    run = plan("tofu", paper, methods=["GradDiff"], masks=["Dense"], seeds=(1,))[1]
    run.folder.mkdir(parents=True)
    lock = FileLock(run.folder.with_name(f".{run.folder.name}.lock"))
    lock.acquire()
    ended = []

    def finished(run, failure):
        ended.append((run.seed, failure))
        lock.release()  # only after another run has been done

    other = plan("tofu", paper, methods=["GradDiff"], masks=["Dense"], seeds=(2,))[1]
    executor.execute([run, other], executor.start_here(Path("logs"), [], 1), 1, finished)
    assert ended == [(2, None), (1, None)]


def start_driver(argv, **options):
    """The command in a process of its own, with the stand-in for its runs."""
    code = (
        "import sys; from pathlib import Path\n"
        "from wagle.commands import table as reproduce_tables; from wagle.cli import run_main\n"
        "from wagle.reporting import executor, reproduction\n"
        "reproduction.write_figure = lambda path, figure: []\n"
        f"executor.SCRIPT = Path({str(executor.SCRIPT)!r})\n"
        "run_main(reproduce_tables.main, sys.argv[1:])\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, *argv], **options)


def wait_until(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never happened")


def test_killed_at_any_moment_it_goes_on_where_it_was(paper):
    seeds = [str(seed) for seed in range(4)]
    argv = arguments(paper, "--seeds", *seeds, "--unlearn.max_steps", "2", "--jobs", "2")
    done = 0
    for _ in range(2):
        process = start_driver(argv)
        wait_until(lambda: len(list(Path("out").rglob("results.json"))) > done)  # noqa: B023
        process.kill()
        process.wait()
        done = len(list(Path("out").rglob("results.json")))
    assert done < 5
    assert start_driver(argv).wait() == 0
    assert [row["status"] for row in runs_csv()] == ["finished"] * 5
    assert "0.150 ± 0.129" in Path("out/tofu.csv").with_suffix(".md").read_text()
    assert not list(Path("out").rglob("*.partial"))


@pytest.mark.parametrize(("kind", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruptions_reach_the_runs(paper, kind, status):
    argv = arguments(paper, "--seeds", "1", "2", "--unlearn.max_steps", "600", "--jobs", "2")
    process = start_driver(argv, stderr=subprocess.PIPE)
    wait_until(lambda: len(list(Path("out").rglob("GradDiff*/*/environment.json"))) == 2)
    process.send_signal(kind)
    process.communicate()
    assert process.returncode == status
    manifests = [json.loads(p.read_text()) for p in Path("out").rglob("GradDiff*/*/manifest.json")]
    assert [m["status"] for m in manifests] == ["interrupted"] * 2
    assert "unfinished: 2 runs" in Path("out/tofu.md").read_text()


@pytest.mark.parametrize("impatient", [False, True])
def test_runs_are_asked_to_end_twice_before_they_are_killed(monkeypatch, capsys, impatient):
    monkeypatch.setattr(executor, "GRACE_SECONDS", (60.0 if impatient else 0.0, 60.0))
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.0)

    class Deaf:
        """A run that is at a long step, and closes its folder when it is asked again."""

        asked, waited, killed = 0, 0, False

        def interrupt(self):
            self.asked += 1

        def ended(self):
            self.waited += 1
            if impatient and self.waited == 5:
                raise KeyboardInterrupt  # Ctrl-C once more
            return self.asked == 2

        def kill(self):
            self.killed = True

    job = Deaf()
    executor._stop([job])
    assert (job.asked, job.killed) == (2, False)
    assert "ending 1 run after the step or batch at hand; once more" in capsys.readouterr().err


def test_through_submitit(paper):
    argv = arguments(paper, "--seeds", "1", "14", "--executor", "submitit-local", "--jobs", "3")
    assert reproduce_tables.main(argv) == 1
    assert [row["status"] for row in runs_csv()] == ["finished", "finished", "failed"]
    assert runs_csv()[2]["reason"] == "ValueError: diverged"
    assert list(Path("out/logs").glob("*_log.out"))


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (["--executor", "slurm"], "cannot use slurm"),
        (["--executor", "submitit-local", "--devices", "cuda:0"], "--devices is for"),
        (["--executor", "submitit-local", "--submitit", "gpus=1"], "gpus"),
        (["--submitit", "timeout_min=1"], "--submitit is for"),
    ],
)
def test_wrong_executors(paper, rest, message):
    if "slurm" in rest and shutil.which("sbatch"):
        pytest.skip("this machine has Slurm")
    with pytest.raises(ConfigError, match=message):
        reproduce_tables.main(arguments(paper, *rest))


# ------------------------------------------------------------------------------------ real runs


@pytest.fixture
def real(tmp_path, model_folder, monkeypatch, undrawn) -> list[str]:
    """A command line about a tiny model and two training steps.

    Its runs are processes that need not import what this one's fork server has.
    """

    def start(run, slot):
        assert executor.command_of(run) == [sys.executable, str(executor.SCRIPT), *run.arguments]
        return Running("unlearn", run.arguments, tmp_path)

    assert executor.SCRIPT == ROOT / "src" / "exec" / "unlearn_model.py"
    monkeypatch.setattr(running, "_starter", lambda *_: start)
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)
    options = {
        "overall.model_name": model_folder,
        "unlearn.max_steps": 2,
        "unlearn.mu": 1e-6,
        "dataset.forget_ratio": 8,
        "dataset.batch_size": 4,
        "evaluation.limit": 2,
    }
    argv = ["--config_file", str(ROOT / "configs/demo/GradDiff.json"), "-o", "out", "--jobs", "2"]
    return [*argv, *(text for key, value in options.items() for text in (f"--{key}", str(value)))]


@pytest.mark.slow
def test_real_runs_fail_and_are_mended(real, capsys):
    argv = ["--table", "tofu", *real, "--masks", "WAGLE", "--seeds", "0"]
    reproduce_tables.main([*argv, "--dry_run"])
    (name,) = re.findall(r"--unlearn.mask_path (out\S+)", capsys.readouterr().out)
    mask = Path(name)
    mask.parent.mkdir(parents=True)
    mask.write_text("no mask")
    assert reproduce_tables.main(argv) == 1
    assert [row["status"] for row in runs_csv()] == ["finished", "failed"]
    assert mask.name in runs_csv()[1]["reason"]
    mask.unlink()
    assert reproduce_tables.main(argv) == 0
    rows = runs_csv()
    assert [row["status"] for row in rows] == ["finished"] * 2
    assert float(rows[1]["density"]) == pytest.approx(0.8, abs=1e-3)
    assert mask.is_file()
    line = next(csv.DictReader(io.StringIO(Path("out/tofu.csv").read_text())))
    results = json.loads((Path(rows[0]["folder"]) / "results.json").read_text())
    for column in form_of("tofu", TOFU).columns:
        assert float(line[f"{column.name} mean"]) == results[column.key]
    assert not list(Path("out").rglob("checkpoints"))
