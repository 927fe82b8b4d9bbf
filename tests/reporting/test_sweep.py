"""Sweeps: grids, the choice at a floor of utility, the front; tables of several forget sets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from wagle.commands import running, table, unlearn
from wagle.commands import sweep as command
from wagle.config import load_config
from wagle.errors import ConfigError
from wagle.loggers.run_folder import read_manifest
from wagle.metrics.benchmark import Benchmark, Headline, Metric
from wagle.metrics.muse import MUSE
from wagle.metrics.tofu_benchmark import OFFICIAL, TOFU
from wagle.reporting import executor, figures
from wagle.reporting.executor import execute
from wagle.reporting.grid import key_of, read_grid, settings_of
from wagle.reporting.plan import plan_runs
from wagle.reporting.planned import TableRow
from wagle.reporting.request import TableRequest
from wagle.reporting.selection import Selection, choose, front, kept_by, share_kept
from wagle.reporting.tables import Outcome, aggregate, form_of
from wagle.shipped import CHECKOUT as ROOT

FORGOTTEN, UTILITY, PERPLEXITY = (
    Metric("forgotten", ""),
    Metric("utility", ""),
    Metric("PPL", "", better=-1),
)
BENCHMARK = Benchmark(
    "made", "Made", (FORGOTTEN, UTILITY, PERPLEXITY), {}, headline=Headline(FORGOTTEN, UTILITY)
)


def base(method: str, *more: str):
    argv = ["--config_file", str(ROOT / "configs/demo/GradDiff.json"), *more]
    return load_config([*argv, "--unlearn.unlearn_method", method], prog="", description="")


# ---------------------------------------------------------------------------------------- grids


def test_a_grid_as_it_is_written():
    assert read_grid(["lr=1e-4,3e-4,1e-4", "unlearn.mu= 1 "]) == {
        "lr": ("1e-4", "3e-4"),
        "unlearn.mu": ("1",),
    }
    for text, message in (
        *(("lr", "KEY=VALUE"), ("=1", "KEY=VALUE"), ("lr=", "KEY=VALUE")),
        ("lr=1,,2", "not 'lr=1,,2'"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_grid([text])
    with pytest.raises(ConfigError, match="twice"):
        read_grid(["lr=1", "lr=2"])


def test_keys_by_their_ends():
    config = base("NPO")
    assert key_of("lr", config) == "unlearn.lr"
    assert key_of("beta", config) == "unlearn.NPO+FT.beta"
    assert key_of("gamma", base("GradDiff")) == "unlearn.GA+FT.gamma"
    assert key_of("unlearn.NPO+FT.beta", config) == "unlearn.NPO+FT.beta"
    assert key_of("unlearn.SimNPO+FT.beta", config) is None  # another method's
    assert key_of("beta", base("GradDiff")) is None
    with pytest.raises(ConfigError, match="no such key"):
        key_of("betta", config)
    with pytest.raises(ConfigError, match=r"may be unlearn\.gradients or b\.gradients; write one"):
        key_of("gradients", {**config, "b.gradients": 1})


def test_points_of_a_grid_are_of_keys_that_concern_the_run():
    grid = read_grid(["lr=1,2", "beta=3,4", "mu=5,6"])
    assert settings_of(grid, base("GradDiff"), "Random") == [(("lr", "1"),), (("lr", "2"),)]
    assert len(settings_of(grid, base("NPO"), "WAGLE")) == 8
    assert settings_of(grid, base("NPO"), "Dense")[1] == (("lr", "1"), ("beta", "4"))
    with pytest.raises(ConfigError, match="one key in two ways"):
        settings_of(read_grid(["lr=1", "unlearn.lr=2"]), base("NPO"), "Dense")


# ------------------------------------------------------------------------------------- planning


def plan(table: str, tmp_path: Path, **options):
    file = ROOT / ("configs/offline/muse.json" if table in STEPS else "configs/demo/GradDiff.json")
    return plan_runs(TableRequest(table, file, tmp_path / "out", **options))


STEPS = ("scalability", "sustainability")


def test_a_sweep_has_every_point_and_shares_masks(tmp_path):
    runs = plan(
        "sweep",
        tmp_path,
        methods=["GradDiff", "NPO"],
        ratios=[0.4],
        seeds=(0, 1),
        grid=read_grid(["lr=1e-4,3e-4", "gamma=2"]),
    )
    names = list(dict.fromkeys(run.row.name for run in runs))
    assert names == [
        "Original",
        *(
            f"{method}+{mask}_lr={lr}_gamma=2"
            for method in ("GradDiff", "NPO")
            for mask in ("Dense", "WAGLE_0.4")
            for lr in ("1e-4", "3e-4")
        ),
    ]
    assert len(runs) == 1 + 8 * 2
    last = runs[-1].config
    assert (last["unlearn.lr"], last["unlearn.NPO+FT.gamma"]) == (3e-4, 2.0)
    masked = [run.config for run in runs if run.row.mask == "WAGLE"]
    assert len({config["unlearn.mask_path"] for config in masked}) == 2  # one for each seed
    assert len({config["unlearn.gradient_cache"] for config in masked}) == 2
    assert len({run.fingerprint for run in runs}) == len(runs)


@pytest.mark.parametrize(
    ("grid", "more", "message"),
    [
        ("seed=1,2", [], "use --seeds"),
        ("unlearn.mask_ratio=0.1", [], "use --ratios"),
        ("lr=1,2", ["--unlearn.lr", "3"], "leave one of them out"),
        ("lr=fast", [], "unlearn.lr"),
        ("rate=1", [], "no such key"),
    ],
)
def test_what_a_grid_must_not_hold(tmp_path, grid, more, message):
    with pytest.raises(ConfigError, match=message):
        plan("sweep", tmp_path, grid=read_grid([grid]), overrides=more)


def test_forget_sets_grow_from_the_original_and_requests_follow_one_another(tmp_path):
    grown, chain = (
        plan(table, tmp_path, masks=["Dense", "WAGLE"], seeds=(0, 1)) for table in STEPS
    )
    assert len(grown) == len(chain) == 1 + 2 * 4 * 2
    for part, runs in (("scal", grown), ("sust", chain)):
        names = [run.config["dataset.forget_dataset_name"] for run in runs[1::2][:4]]
        assert names == [f"DemoMuse_{part}_forget_{step}" for step in (1, 2, 3, 4)]
    assert {run.config["overall.model_name"] for run in grown} == {"files/models/demo_llama"}
    assert not any(run.after or run.config["unlearn.save_model"] for run in grown[1:])
    for run in chain[1:]:
        step = int(run.config["dataset.forget_dataset_name"][-1])
        assert run.config["unlearn.save_model"]
        assert (run.after is None) == (step == 1)
        if run.after:
            assert (run.after.seed, run.after.row.mask) == (run.seed, run.row.mask)
            model = f"{run.after.folder}/checkpoints"
            assert run.config["overall.model_name"] == str(run.clears) == model
    masks = {run.config["unlearn.mask_path"] for run in chain if run.row.mask == "WAGLE"}
    assert len(masks) == 4 * 2  # the model differs, and with it the mask
    kept = plan("sustainability", tmp_path, overrides=["--unlearn.save_model", "true"])
    assert not any(run.clears for run in kept)
    with pytest.raises(ConfigError, match="name them with --forget_sets"):
        plan_runs(
            TableRequest("scalability", ROOT / "configs/demo/GradDiff.json", tmp_path, seeds=(0,))
        )
    with pytest.raises(ConfigError, match="--forget_sets is for --table scalability and"):
        plan("sweep", tmp_path, forget_sets=["Demo_forget01"])


def test_a_chain_ends_where_one_of_its_runs_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.0)
    runs = plan("sustainability", tmp_path, masks=["Dense"], seeds=(0, 1))[1:]
    started, ended = [], {}

    class Job:
        def __init__(self, run):
            started.append((run.config["dataset.forget_dataset_name"][-1], run.seed))
            if started[-1] != ("2", 0):
                run.folder.mkdir(parents=True)
                (run.folder / "results.json").write_text("{}")
                (run.folder / "manifest.json").write_text('{"status": "finished"}')

        def ended(self):
            return True

        def interrupt(self):
            pass

        def reason(self):
            return "diverged"

    execute(runs[::-1], lambda run, slot: Job(run), 2, lambda r, why: ended.update({r.title: why}))
    assert [step for step, seed in started if seed == 1] == ["1", "2", "3", "4"]
    assert [step for step, seed in started if seed == 0] == ["1", "2"]
    reasons = [ended[run.title] for run in runs if run.seed == 0]
    assert reasons[:2] == [None, "diverged"]
    assert "forget_2, seed 0 has failed" in reasons[2]
    assert "forget_3, seed 0 has failed" in reasons[3]


def test_tables_of_steps_know_what_differs_on_purpose():
    def outcome(step, model):
        row = TableRow("NPO", "Dense", settings=(("forget set", f"s{step}"),))
        origins = {"model": model, "forget": f"f{step}", "retain": "r"}
        return Outcome(row, 0, "x", {MUSE.columns[0].key: 1.0}, origins=origins)

    def warnings(table, *models):
        outcomes = [outcome(step, model) for step, model in enumerate(models)]
        return aggregate(form_of(table, MUSE), outcomes).warnings

    assert not warnings("scalability", "a", "a")
    assert warnings("scalability", "a", "b") == (
        "the runs were made from 2 different models; use another -o for each",
    )
    assert not warnings("sustainability", "a", "b")


# ------------------------------------------------------------------------------------ the choice


def made(method, mask, lr, *numbers, failed=False):
    row = TableRow(method, mask, settings=(("lr", lr),) if lr else ())
    found = [
        Outcome(row, seed, f"{method}{lr}", {"forgotten": y, "utility": x, "PPL": 1 / x})
        for seed, (y, x) in enumerate(numbers)
    ]
    return [*found, Outcome(row, 9, "z", failure="diverged")] if failed else found


OUTCOMES = [
    *made("Original", "", None, (0.0, 0.8)),
    *made("NPO", "Dense", "1", (0.2, 0.8), (0.4, 0.76)),  # keeps 0.975
    *made("NPO", "Dense", "2", (0.5, 0.73), (0.5, 0.73)),  # 0.9125
    *made("NPO", "Dense", "3", (0.9, 0.7), (0.9, 0.7)),  # too little is left
    *made("NPO", "WAGLE", "1", (0.3, 0.78), (0.3, 0.78)),
    *made("NPO", "WAGLE", "2", (0.6, 0.79), failed=True),
    *made("GA", "Dense", "1", (1.0, 0.1), (1.0, 0.1)),
    *made("Retain-only", "", None, (0.7, 0.8)),
]


def judged(by="forgotten", **options):
    selection = Selection.of(BENCHMARK, by, options.pop("floor", 0.9), **options)
    return aggregate(selection.form(BENCHMARK, ["lr"]), OUTCOMES), selection


def test_the_best_is_chosen_among_those_that_keep_the_utility():
    table, selection = judged()
    chosen = choose(table, selection)
    assert {(r.method, r.mask, dict(r.settings)["lr"]): s for r, s in chosen.items()} == {
        ("NPO", "Dense", "2"): pytest.approx(0.9125),
        ("NPO", "WAGLE", "1"): pytest.approx(0.975),  # of lr 2 a run has failed
    }
    assert {dict(row.settings)["lr"] for row in choose(*judged(floor=0.95))} == {"1"}
    assert len(choose(*judged(floor=0.0))) == 3
    by_utility = choose(*judged(by="PPL", floor=0.0))
    assert [dict(row.settings)["lr"] for row in by_utility] == ["1", "1", "1"]


def test_shares_of_numbers_that_are_better_small():
    assert share_kept(UTILITY, 0.6, 0.8) == pytest.approx(0.75)
    assert share_kept(PERPLEXITY, 20.0, 15.0) == pytest.approx(0.75)
    assert share_kept(UTILITY, 0.6, 0.0) is None
    assert share_kept(PERPLEXITY, float("inf"), 15.0) == 0
    table, selection = judged(utility="PPL")
    assert kept_by(table.lines[3], table, selection) == pytest.approx(0.7 / 0.8)
    assert kept_by(table.lines[0], table, selection) == 1


def test_the_front_by_hand():
    table, selection = judged()
    level = made("RMU", "Dense", "1", (0.6, 0.785)) + made("FLAT", "Dense", "1", (0.6, 0.79))
    table = aggregate(table.form, [*OUTCOMES, *level])
    places = [(r.method, r.mask, dict(r.settings)["lr"]) for r in front(table, selection)]
    assert places == [
        *(("GA", "Dense", "1"), ("NPO", "Dense", "3")),
        *(("NPO", "WAGLE", "2"), ("FLAT", "Dense", "1")),  # equals; RMU forgets as much, for more
    ]


def test_numbers_by_their_ends():
    selection = Selection.of(OFFICIAL, "Agg", 0.9)
    assert selection.metric.key == "tofu_official Agg"
    assert selection.utility.key == "tofu_official Model Utility"
    assert Selection.of(TOFU, "UE Avg", 0.9).axes == TOFU.headline
    for name in ("Avg", "nothing", "MIA x"):  # two of them, none, neither better nor worse
        with pytest.raises(ConfigError, match="is no number to choose by; tofu has: UE FQ"):
            Selection.of(TOFU, name, 0.9)


# ------------------------------------------------------------------------------------ the command

STAND_IN = """
import sys, time
from pathlib import Path
from wagle.config import load_config
from wagle.loggers import JsonLogger

config = load_config(sys.argv[1:], prog="", description="")
logger = JsonLogger(Path(config["logger.json.root"], config["logger.name"]))
lr, seed = config["unlearn.lr"], config["overall.seed"]
trained = config["unlearn.unlearn_method"] != "origin"
assert logger.start(config.as_dict(), config.fingerprint()) is None
results = {"task": "tofu", "method": config["unlearn.unlearn_method"], "density": 1.0, "seed": seed}
numbers = {"UE Avg": 1000 * lr + seed / 100, "UT Avg": 0.9 - 500 * lr} if trained else {}
logger.finish(results | ({"UE Avg": 0.1, "UT Avg": 0.8} | numbers), {"seconds": {"train": 1.0}})
"""


def test_the_command_writes_what_it_has_chosen_and_repeats_nothing(
    tmp_path, monkeypatch, undrawn, capsys
):
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(executor, "SCRIPT", script)
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.02)
    monkeypatch.chdir(tmp_path)
    argv = ["-C", str(ROOT / "configs/demo/GradDiff.json"), "--masks", "Dense", "-o", "out"]
    argv += ["--by", "UE Avg", "--seeds", "0", "--jobs", "3"]
    assert command.main([*argv, "--grid", "lr=1e-4,3e-4,9e-4", "--more_seeds", "0", "1"]) == 0
    said = capsys.readouterr().out
    assert "4 runs, 0 done, 4 to do" in said
    assert "5 runs, 4 done, 1 to do" in said  # seed 1 of what seed 0 has chosen
    document = json.loads(Path("out/sweep.json").read_text())
    rows = {row["lr"]: row for row in document["rows"] if row["lr"]}
    assert [rows[lr]["chosen"] for lr in ("1e-4", "3e-4", "9e-4")] == [False, True, False]
    assert rows["3e-4"]["seeds"] == [0, 1]
    assert rows["3e-4"]["kept"] == pytest.approx(0.75 / 0.8)
    assert rows["3e-4"]["numbers"]["UE Avg"]["mean"] == pytest.approx(0.305)
    # Student's t of one degree of freedom: 12.706 of the standard error 0.005
    assert rows["3e-4"]["numbers"]["UE Avg"]["high"] == pytest.approx(0.305 + 0.0635, abs=1e-4)
    assert all(row["front"] for row in rows.values())
    table = list(csv.DictReader(Path("out/sweep.csv").read_text().splitlines()))
    assert [row["chosen"] for row in table] == ["False", "False", "True", "False"]
    assert Path("out/sweep.png").is_file()

    assert command.main([*argv, "--grid", "lr=9e-4,2e-3", "--floor", "0.99"]) == 0
    said = capsys.readouterr().out
    assert "3 runs, 2 done, 1 to do" in said
    assert "GradDiff+Dense: none of 2 settings is chosen; the most that one keeps is 0.562" in said
    assert command.main([*argv, "--grid", "lr=9e-4,2e-3", "--dry_run"]) == 0
    assert not capsys.readouterr().out


def test_the_front_is_a_line_through_its_points(undrawn):
    points = [
        figures.Point("NPO", "Dense", "", [{"forgotten": y, "utility": x}])
        for y, x in ((0.9, 0.1), (0.5, 0.5), (0.4, 0.4))
    ]
    figure = figures.draw_tradeoff(points, BENCHMARK.headline, front=points[:2])
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert line.get_xydata().tolist() == [[0.1, 0.9], [0.5, 0.5]]


def test_a_real_chain_starts_each_request_from_the_model_of_the_one_before(
    tmp_path, model_folder, monkeypatch, undrawn
):
    class Job:
        """The run, in this process."""

        def __init__(self, run):
            unlearn.main(run.arguments)

        def ended(self):
            return True

    monkeypatch.setattr(running, "_starter", lambda *_: lambda run, slot: Job(run))
    monkeypatch.setattr(executor, "POLL_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    argv = ["--table", "sustainability", "-C", str(ROOT / "configs/offline/muse.json"), "-o", "out"]
    argv += ["--masks", "WAGLE", "--seeds", "0", "--overall.model_name", str(model_folder)]
    argv += ["--forget_sets", "DemoMuse_sust_forget_1", "DemoMuse_sust_forget_2"]
    argv += ["--dataset.batch_size", "1", "--dataset.data_dir", "null"]
    argv += ["--unlearn.max_steps", "2", "--evaluation.limit", "1"]
    assert table.main(argv) == 0
    rows = list(csv.DictReader(Path("out/sustainability_runs.csv").read_text().splitlines()))
    assert [row["forget set"][-1:] for row in rows] == ["", "1", "2"]
    assert {row["status"] for row in rows} == {"finished"}
    manifests = [read_manifest(Path(row["folder"])) for row in rows]
    prints = [manifest["fingerprints"]["model"] for manifest in manifests]
    assert prints[0] == prints[1] != prints[2]
    made_from = [manifest["mask"]["provenance"]["model"] for manifest in manifests[1:]]
    assert made_from == prints[1:]
    assert not Path(rows[1]["folder"], "checkpoints").exists()
    assert Path(rows[2]["folder"], "checkpoints").is_dir()
    assert "Not comparable" not in Path("out/sustainability.md").read_text()
    assert Path("out/sustainability.png").is_file()
