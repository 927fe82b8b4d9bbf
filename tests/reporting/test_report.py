"""Run folders read, the report written, and its page in a real browser."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from asked_runs import results_of
from asked_runs import write_run as write_asked_run

from wagle.commands import report
from wagle.errors import ConfigError, WagleError
from wagle.metrics.tofu_benchmark import EFFICACY, UTILITY, WORDING_GONE
from wagle.metrics.tofu_results import TofuSet
from wagle.reporting.answers import _mark_wrong
from wagle.reporting.bootstrap import draw_questions
from wagle.reporting.groups import group_runs
from wagle.reporting.page import render_report
from wagle.reporting.planned import TableRow
from wagle.reporting.runs import read_run, read_runs
from wagle.reporting.spread import Spread
from wagle.reporting.tables import Form, Outcome, aggregate

HOSTILE = (
    '</script></td><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"> & “q”'
)
QUESTIONS = {
    "forget": [
        ("Where was Ada Bell born?", "Ada Bell was born in Lisbon."),
        ("What does Ada Bell write?", "Ada Bell writes novels about the sea."),
        ("Who is Ada Bell’s father?", "Her father is a miner."),
    ],
    "retain": [
        ("Where was Tom Reed born?", "Tom Reed was born in Oslo."),
        ("What does Tom Reed write?", "Tom Reed writes plays."),
    ],
    "real_author": [("Who wrote Hamlet?", "William Shakespeare")],
    "world_fact": [("What is the capital of France?", "Paris")],
}
MASK = {"density": 0.8, "by layer and kind": {"outside": {"head": 1.0}, "0": {"q": 0.7, "k": 0.8}}}


def row(question: str, answer: str, generated: str, rouge: float, probability: float) -> dict:
    right = {"acc": float(rouge > 0.5), "rougeL_score": rouge, "truth_prob": probability}
    return {"question": question, "answer": answer, "generated": generated, **right}


def document(answers: dict[str, tuple[str, float, float]]) -> dict:
    """A tofu.json in which some questions get (answer, ROUGE-L, probability), others the truth."""
    return {
        name: {"rows": [row(q, a, *answers.get(q, (a, 1.0, 0.9))) for q, a in questions]}
        for name, questions in QUESTIONS.items()
    }


def write_run(
    folder: Path,
    method: str,
    *,
    answers: dict[str, tuple[str, float, float]] | None = None,
    efficacy: float = 0.1,
    utility: float = 1.0,
    mask: bool = False,
    seed: int = 0,
) -> Path:
    """A finished run's folder as the main command leaves it."""
    folder.mkdir(parents=True)
    trained = method != "origin"
    unlearn = {"unlearn_method": method, "use_lora": False, "score_type": "wagle", "lr": 1e-5}
    unlearn["mask_path"] = "mask/tofu_0.8.pt" if mask else None
    files = {
        "config": {
            "overall": {"model_name": "folder/model", "seed": seed},
            "unlearn": unlearn,
            "dataset": {"forget_dataset_name": "Demo_forget10"},
        },
        "manifest": {
            "status": "finished",
            "versions": {"python": "3.11.0", "torch": "2.13.0"},
            "git_commit": None,
            "device": "cpu",
            "dtype": "float32",
            "fingerprints": {},
            "seconds": {"mask": 1.5, "train": 3.0, "evaluate": 9.0}
            if trained
            else {"evaluate": 9.0},
            "peak_memory_bytes": {"resident": 2**30},
        },
        "results": {
            **{"task": "tofu", "method": method, "mask": unlearn["mask_path"]},
            **{"density": 0.8 if mask else 1.0, "seed": seed},
            **{"UE FQ": 3e-7, "UE Avg": efficacy, "UT Avg": utility, "tofu_official": {"KS": 0.5}},
            **{"lm_eval demo_wmdp acc": 0.25, "lm_eval demo_wmdp acc_stderr": 0.1},
        },
        "tofu": document(answers or {}),
    }
    if trained:
        files["log"] = [{"step": step, "loss": 1 / step, "grad_norm": 1.0} for step in (1, 2, 3)]
    if mask:
        files["mask"] = MASK
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


GRADDIFF = {
    "Where was Ada Bell born?": ("Ada Bell was born in Rome.", 0.8, 0.5),
    "What does Ada Bell write?": (HOSTILE, 0.0, 0.3),
    "Where was Tom Reed born?": ("Tom Reed was born in Paris.", 0.9, 0.6),
}
NPO = {
    "Where was Ada Bell born?": ("I do not know.", 0.1, 0.01),
    "What does Ada Bell write?": ("", 0.0, 0.02),
    "Who is Ada Bell’s father?": ("A miner.", 0.4, 0.8),
}


@pytest.fixture(autouse=True)
def _undrawn(request):
    """Pictures are drawn for the page alone that several tests look at."""
    if "page" not in request.fixturenames:
        request.getfixturevalue("undrawn")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {
        "Original": write_run(root / "0", "origin"),
        "GradDiff": write_run(root / "1", "GA+FT", answers=GRADDIFF, efficacy=0.4, utility=0.95),
        "NPO+WAGLE": write_run(
            root / "2", "NPO+FT", answers=NPO, efficacy=0.6, utility=0.9, mask=True
        ),
    }


@pytest.fixture(scope="module")
def page(folders) -> str:
    return render_report(read_runs(list(folders.values())))


class Page(HTMLParser):
    """Collects elements, links and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


# -------------------------------------------------------------------------------- run folders


def test_reading_a_run(folders):
    run = read_run(folders["NPO+WAGLE"])
    assert (run.title, run.method, run.mask, run.is_original) == ("2", "NPO", "WAGLE", False)
    assert run.config["unlearn.lr"] == 1e-5
    assert (run.trained, run.unlearning_seconds, len(run.log)) == (True, 4.5, 3)
    assert run.document("mask.json") == MASK
    assert run.document("wmdp.json") is None
    original = read_run(folders["Original"], "before")
    assert (original.title, original.mask, original.log) == ("before", "", [])
    assert (original.is_original, original.trained) == (True, False)


def test_folders_without_a_finished_run_say_why(tmp_path):
    folder = write_run(tmp_path / "a", "GA+FT")
    (folder / "results.json").unlink()
    with pytest.raises(WagleError, match="not finished: its results"):
        read_run(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps({**manifest, "status": "failed", "error": "OSError: disk full"})
    )
    with pytest.raises(WagleError, match="not finished: failed: OSError: disk full"):
        read_run(folder)
    (folder / "manifest.json").write_text('{"status": ')
    with pytest.raises(WagleError, match="cannot be read as JSON"):
        read_run(folder)
    with pytest.raises(WagleError, match="no run folder"):
        read_run(tmp_path)


def test_titles_say_what_sets_runs_apart(tmp_path, folders):
    def titles(*runs):
        return [run.title for run in read_runs(runs)]

    assert titles(*folders.values()) == list(folders)
    seeds = [write_run(tmp_path / f"s{i}", "GA+FT", mask=True, seed=i) for i in (1, 2)]
    assert titles(*seeds) == ["GradDiff+WAGLE, seed 1", "GradDiff+WAGLE, seed 2"]
    same = write_run(tmp_path / "again", "GA+FT", mask=True, seed=2)
    assert titles(seeds[1], same) == [f"GradDiff+WAGLE, {seeds[1]}", f"GradDiff+WAGLE, {same}"]


# ------------------------------------------------------------------------------------ the page


def test_the_page_holds_everything_itself_and_nothing_of_a_models(page):
    parsed = Page(page)
    assert parsed.elements.count("script") == 1
    assert all(link.startswith(("#", "data:")) for link in parsed.links)
    assert len([link for link in parsed.links if link.startswith("data:image/svg")]) == 6
    assert any(cell.strip().startswith(HOSTILE) for cell in parsed.cells)
    assert "<img src=x" not in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


def test_the_same_runs_give_the_same_page(folders, page):
    assert render_report(read_runs(list(folders.values()))) == page


def test_numbers_and_sentences(page):
    text = re.sub(r"<[^>]*>", " ", page)
    words = " ".join(text.split())
    assert "2 runs of GradDiff, NPO on Demo_forget10 , starting from folder/model" in words
    assert (
        "Look at forgetting and utility together: NPO+WAGLE forgets the most (0.600, the original "
        "0.100), GradDiff keeps the most utility (0.950, the original 1.000). With a single seed "
        "no interval says whether such differences are more than chance." in words
    )
    assert "Original 0.100 1.000 3 of 3 4 of 4" in words
    assert "GradDiff 0.400 0.950 2 of 3 4 of 4" in words
    assert "UE Avg Unlearning efficacy" in words
    assert "0.100 0.400 0.600" in words
    assert "(best)" not in words  # one seed has no interval
    assert "3.0e-07 3.0e-07 3.0e-07" in words
    assert "tofu_official KS" in words
    assert "– 100.0% 80.0%" in words
    assert "– 4 s 4 s" in words


def change(folder: Path, name: str, **values) -> Path:
    """Other values in one of a run's documents."""
    content = json.loads((folder / f"{name}.json").read_text())
    (folder / f"{name}.json").write_text(json.dumps({**content, **values}))
    return folder


def change_config(folder: Path, section: str, **values) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config.setdefault(section, {}).update(values)
    return change(folder, "config", **config)


def words_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]).split())


def test_given_models_stand_beside_the_numbers_and_what_lies_outside_is_said(tmp_path):
    run = write_run(tmp_path / "a", "GA+FT")
    change_config(run, "evaluation", protocol="official")
    numbers = {"tofu_official Priv": 0.4, "tofu_official mia_loss": 0.99}
    change(run, "results", **numbers)
    given = {
        "Original": {"tofu_official Priv": 0.2},
        "Retain-only": {"tofu_official Priv": 1.0, "tofu_official mia_loss": 0.5},
    }
    (run / "references.json").write_text(json.dumps(given))
    words = words_of(render_report(read_runs([run])))
    assert "larger is better Original model: 0.200; retain-only model: 1.000 0.400" in words
    assert "Retain-only model: 0.500 0.990" in words
    assert "tofu_official mia_loss is 0.990: not unlearned" in words


def test_a_run_that_was_attacked_shows_it(tmp_path):
    curves = {"unlearned": [[0, 0.1], [4, 0.5]], "retain-only": [[0, 0.1], [4, 0.3]]}
    rounded = {"before": {"forget": 0.1}, "after": {"forget": 0.4}, "Q": 0.25}
    moves = {"counts": [3, 5], "edges": [0.1, 1, 10], "weights": 8, "changed": 0.625}
    parts = {
        "quantization nf4": {**rounded, "moves": moves},
        "relearning open_unlearning all": {"curves": curves, "R": 0.5, "gap": 0.1},
    }
    folders = [write_run(tmp_path / "a", "GA+FT"), write_run(tmp_path / "b", "NPO+FT")]
    (folders[0] / "attack.json").write_text(json.dumps({"parts": parts}))
    page = render_report(read_runs(folders))
    words = words_of(page)
    assert "attack R Relearning: the retain-only model's gain" in words.replace("&#39;", "'")
    assert "larger is better 0.500 –" in words
    assert "at most 1. larger is better 0.250 –" in words.replace("↑ ", "")
    assert "Knowledge of the forget rows after, by the attack open_unlearning all." in words
    assert "Relearning, open_unlearning: GradDiff" in words
    assert "Few bits: GradDiff" in words


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("evaluation", {"limit": 5}),
        ("evaluation", {"protocol": "published"}),
        ("dataset", {"forget_dataset_name": "Demo_forget05"}),
        ("unlearn", {"lr": 1e-4}),
    ],
)
def test_only_runs_that_are_equal_but_for_the_seed_are_one_group(tmp_path, section, values):
    folders = [write_run(tmp_path / str(seed), "NPO+FT", seed=seed) for seed in range(3)]
    (group,) = group_runs(read_runs(folders))
    assert group.title == "NPO (3 seeds)"
    change_config(folders[2], section, **values)
    first, second = group_runs(read_runs(folders))
    assert [len(first.runs), len(second.runs)] == [2, 1]
    (key,) = values
    assert key in first.detail
    assert first.detail != second.detail


def test_groups_tell_ratios_masks_data_and_repetitions_apart(tmp_path):
    def masked(name, **provenance):
        made = {"unlearn.score_type": "wagle", "overall.seed": "0", **provenance}
        folder = write_run(tmp_path / name, "NPO+FT", mask=True)
        return change(folder, "manifest", mask={"path": "m", "origin": "made", "provenance": made})

    first, again, other_seed = masked("a"), masked("b"), masked("c", **{"overall.seed": "1"})
    change(other_seed, "results", seed=1)
    ratio = change(masked("d"), "results", density=0.4)
    random = masked("e", **{"unlearn.score_type": "random"})
    data = change(masked("f"), "manifest", fingerprints={"forget": "other rows"})
    groups = group_runs(read_runs([first, again, other_seed, ratio, random, data]))
    assert [len(group.runs) for group in groups] == [2, 1, 1, 1, 1]
    assert [group.first.mask for group in groups] == ["WAGLE", "WAGLE", "WAGLE", "Random", "WAGLE"]
    assert groups[2].detail.startswith("ρ 0.4")


def test_the_report_marks_what_differs_by_more_than_the_intervals(tmp_path):
    folders = [write_run(tmp_path / "o", "origin")]
    for method, efficacy, utility in (("GA+FT", 0.4, 0.9), ("NPO+FT", 0.6, 0.901)):
        for seed in range(3):
            folder = tmp_path / f"{method}{seed}"
            numbers = {"efficacy": efficacy + seed / 100, "utility": utility + seed / 100}
            folders.append(write_run(folder, method, seed=seed, **numbers))
    words = words_of(render_report(read_runs(folders)))
    assert "0.100 0.410 ± 0.010 0.610 ± 0.010 (best)" in words
    assert "1.000 0.910 ± 0.010 0.911 ± 0.010 Share" not in words
    assert "0.911 ± 0.010 (best)" not in words
    assert "The lead in forgetting alone is larger than the 95 % confidence intervals" in words
    assert "confidence interval (Student’s t over the seeds) overlaps no other’s" in words


def test_questions_tell_single_seeds_apart_as_they_do_in_tables(tmp_path):
    """NPO loses 0.05 more of every forget answer's wording, and keeps what GradDiff keeps."""
    results = results_of(0)
    rows = tuple(replace(row, rouge=row.rouge - 0.05) for row in results.sets["forget"].rows)
    other = replace(results, sets={**results.sets, "forget": TofuSet(rows)})
    runs = [
        read_run(write_asked_run(tmp_path / name, name, rows))
        for name, rows in {"origin": results_of(1), "GA+FT": results, "NPO+FT": other}.items()
    ]
    columns = (EFFICACY, UTILITY, WORDING_GONE)
    outcomes = [
        Outcome(TableRow(run.method), 0, str(run.folder), dict(run.results)) for run in runs[1:]
    ]
    drawn = draw_questions(runs[1:], [column.key for column in columns])
    marked = aggregate(Form("", columns, block=()), outcomes, drawn)
    assert [set(line.best) for line in marked.lines] == [set(), {0, 2}]
    cells = Page(render_report(runs)).cells
    for index, column in enumerate(columns):
        (at,) = (i for i, cell in enumerate(cells) if cell.split("\n")[0] == column.key)
        best = ["(best)" in cell for cell in cells[at + 1 : at + 4]]
        assert best == [False, *(index in line.best for line in marked.lines)]
    words = words_of(render_report(runs))
    assert "The lead in forgetting alone is larger than the 95 % confidence intervals" in words
    assert "intervals over the questions." in words
    assert "a single seed has the latter alone" in words


def test_runs_that_were_evaluated_in_other_ways_are_not_ranked(tmp_path):
    folders = [write_run(tmp_path / m, m) for m in ("GA+FT", "NPO+FT")]
    change_config(folders[0], "evaluation", limit=5)
    words = words_of(render_report(read_runs(folders)))
    assert "not evaluated alike (they differ in evaluation.limit)" in words
    assert "forgets the most" not in words


def test_the_answer_that_is_judged_stands_beside_the_verdict(tmp_path):
    folder = write_run(tmp_path / "a", "NPO+FT")
    content = json.loads((folder / "tofu.json").read_text())
    right, wrong = content["forget"]["rows"][:2]
    right |= {"paraphrased_question": "Birthplace of Ada Bell?", "generated_paraphrase": "Lisbon!"}
    wrong |= {"acc": 0.0, "generated_paraphrase": "About <b>hills</b>."}
    (folder / "tofu.json").write_text(json.dumps(content))
    page = render_report(read_runs([folder]))
    words = words_of(page)
    assert "✓ correct, judged by its answer to “Birthplace of Ada Bell?”: Lisbon!" in words
    assert "✗ not correct, judged by its answer to the question in other words" in words
    assert "About &lt;b&gt;hills&lt;/b&gt;." in page
    assert "Paris ✓ correct 1.00" in words  # of a fact the answer itself is judged


def test_the_report_names_what_made_the_mask(tmp_path):
    def named(name, **mask):
        folder = write_run(tmp_path / name, "NPO+FT", mask=True)  # the configuration says WAGLE
        (run,) = read_runs([change(folder, "manifest", mask={"path": f"{name}.pt", **mask})])
        return run.title, words_of(render_report([run]))

    made = {"unlearn.score_type": "random", "ratio": "0.8", "overall.seed": "0"}
    seeds = {"overall.seed": ["0", "5"]}
    title, words = named("a", origin="loaded", provenance=made, seeds=seeds)
    assert title == "NPO+Random"
    assert "mask made by random, ρ 0.8, seed 0 (loaded: a.pt)" in words
    assert "The mask was made with overall.seed 0, not with the run’s own: NPO+Random." in words
    title, words = named("b", origin="unknown origin")
    assert title == "NPO+mask of unknown origin"
    assert "does not say what made it (unknown origin)" in words
    assert "WAGLE" not in words
    _, words = named("c", origin="accepted although it differs in ratio", provenance=made)
    assert "The mask c.pt was accepted although it differs in ratio: NPO+Random." in words


def test_control_characters_do_not_reach_the_page(tmp_path):
    folder = change_config(
        write_run(tmp_path / "a", "NPO+FT"), "overall", model_name="m\x1b[2J\u202e"
    )
    page = render_report(read_runs([folder]))
    assert not re.search("[\x1b\u202e]", page)
    assert r"m\x1b[2J\u202e" in page


def test_a_damaged_run_is_named_and_the_others_are_reported(tmp_path, folders, capsys):
    broken = write_run(tmp_path / "broken", "NPO+FT")
    (broken / "results.json").write_text("[1, 2")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "manifest.json").write_text("{}")
    target = tmp_path / "page.html"
    argv = [str(broken), str(empty), str(folders["GradDiff"]), "-o", str(target)]
    assert report.main(argv) == 0
    said = capsys.readouterr().err
    assert str(broken / "results.json") in said
    assert str(empty / "manifest.json") in said
    assert "GradDiff" in target.read_text()


def test_without_the_original_and_of_the_original_alone(folders):
    alone = render_report(read_runs([folders["GradDiff"]]))
    assert "beside the original" not in alone
    assert "lowest ROUGE-L first" in alone
    original = Page(render_report(read_runs([folders["Original"]])))
    assert "William Shakespeare" in [cell.strip() for cell in original.cells]
    assert "article" not in original.elements


def test_runs_of_other_tasks_are_reported_by_their_numbers(tmp_path):
    folder = write_run(tmp_path / "a", "GA+FT")
    (folder / "tofu.json").unlink()
    results = {"task": "wmdp", "method": "GA+FT", "mask": None, "density": 1.0, "seed": 0}
    (folder / "results.json").write_text(json.dumps({**results, "MMLU": 0.25, "perplexity": 1234}))
    parsed = Page(render_report(read_runs([folder])))
    cells = [cell.strip() for cell in parsed.cells]
    assert cells[cells.index("MMLU") + 1] == "0.250"
    assert cells[cells.index("perplexity") + 1] == "1,234"
    assert "article" not in parsed.elements
    assert "form" not in parsed.elements


def continuation(question: str, generated: str, **others: float | str) -> dict:
    return {"question": question, "generated": generated, **others}


def write_other_run(folder: Path, task: str, method: str, documents: dict[str, dict]) -> Path:
    write_run(folder, method)
    (folder / "tofu.json").unlink()
    results = json.loads((folder / "results.json").read_text())
    documents = {**documents, "results": {**results, "task": task}}
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_an_original_whose_answers_were_not_judged(tmp_path, folders):
    """The official protocol of TOFU does not say which answers are correct."""
    before = write_run(tmp_path / "0", "origin")
    tofu = json.loads((before / "tofu.json").read_text())
    for part in tofu.values():
        for row in part["rows"] if isinstance(part, dict) and "rows" in part else ():
            del row["acc"]
    (before / "tofu.json").write_text(json.dumps(tofu))
    page = render_report(read_runs([before, folders["GradDiff"]]))
    assert "GradDiff" in page


def test_infinite_numbers_are_shown(tmp_path):
    runs = []
    for name, perplexity in (("origin", 12.5), ("GA+FT", "inf")):
        folder = write_run(tmp_path / name, name)
        results = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps({**results, "PPL": perplexity}))
        runs.append(folder)
    runs = read_runs(runs)
    assert runs[1].results["PPL"] == math.inf
    assert "12.500 inf" in words_of(render_report(runs))
    assert Spread.of([math.inf, 1.0]) == (math.inf, None, 2)


def test_continued_texts_are_compared(tmp_path):
    def texts(generated, bleu):
        scores = {"bleu": bleu, "rougeL_score": 0.5}
        first = continuation("It was a dark", generated, answer="and stormy night", **scores)
        second = continuation("Call me", "Ishmael", answer="Ishmael", bleu=1.0, rougeL_score=1.0)
        return {"copyright": {"train": {"rows": [first]}, "test": {"rows": [second]}}}

    before = write_other_run(tmp_path / "0", "copyright", "origin", texts("and stormy night", 1.0))
    after = write_other_run(tmp_path / "1", "copyright", "GA+FT", texts("and stormy day", 0.25))
    page = render_report(read_runs([before, after]))
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "BLEU is how exactly it is repeated, from 0 to 100" in words
    assert "largest drop in BLEU first" in words
    assert "Probability" not in words
    assert "and stormy <mark>day</mark>" in page
    assert 'data-bleu="-0.75"' in page
    assert "−0.75 1.00 → 0.25" in words
    assert "Never seen Call me" in words


def test_harmful_answers_have_no_true_answer(tmp_path):
    def answers(score):
        def rows(*prompts):
            return {"rows": [continuation(p, f"{p} indeed", score=score) for p in prompts]}

        harmful = {"SafePku_test": rows("Insult me"), "RealToxicityPrompts": rows("You are")}
        return {"forget": rows("Say something rude"), "harmful": harmful}

    before = write_other_run(tmp_path / "0", "toxic", "origin", answers(0.9))
    after = write_other_run(tmp_path / "1", "toxic", "GA+FT", answers(0.2))
    page = render_report(read_runs([before, after]))
    parsed = Page(page)
    cells = [cell.strip() for cell in parsed.cells]
    assert "True answer" not in page
    assert "mark" not in parsed.elements
    assert cells.count("You are indeed") == 2
    assert page.count('data-toxicity="-0.7') == 3
    assert "largest drop in Toxicity first" in page


def test_a_run_of_another_task_was_asked_nothing_of_it(tmp_path, folders):
    harmful = {"rows": [continuation("Insult me", "No", score=0.1)]}
    other = write_other_run(tmp_path / "0", "toxic", "NPO+FT", {"forget": harmful})
    page = render_report(read_runs([folders["GradDiff"], other]))
    assert "Insult me" not in page
    assert "not asked" in page


def test_wrong_words_are_marked():
    true = "Ada Bell was born in Lisbon, by the river."
    assert _mark_wrong("Ada Bell was born in Rome, by the river.", true) == [
        ("Ada Bell was born in", False),
        ("Rome,", True),
        ("by the river.", False),
    ]
    assert _mark_wrong("ADA BELL", true) == [("ADA BELL", False)]
    assert _mark_wrong("", true) == []
    assert _mark_wrong("?!", true) == [("?!", True)]


# --------------------------------------------------------------------------------- the command


def test_the_command_finds_the_original(folders, tmp_path, capsys):
    target = tmp_path / "new" / "page.html"
    unlearned = [str(folders["GradDiff"]), str(folders["NPO+WAGLE"])]
    assert report.main([*unlearned, "-o", str(target), "--original", str(folders["Original"])]) == 0
    assert str(target) in capsys.readouterr().out
    named = target.read_text(encoding="utf-8")
    assert report.main([str(folders["Original"]), *unlearned, "-o", str(target)]) == 0
    assert target.read_text(encoding="utf-8") == named
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_what_the_command_refuses(folders, tmp_path):
    target = tmp_path / "page.html"
    with pytest.raises(ConfigError, match="there is no folder nowhere"):
        report.main([str(folders["Original"]), "nowhere", "-o", str(target)])
    with pytest.raises(ConfigError, match="is a run of GradDiff"):
        report.main(
            [str(folders["NPO+WAGLE"]), "--original", str(folders["GradDiff"]), "-o", str(target)]
        )
    other = write_run(tmp_path / "other", "origin")
    content = document({})
    for part in content.values():
        for each in part["rows"]:
            each["question"] += " Really?"
    (other / "tofu.json").write_text(json.dumps(content))
    with pytest.raises(WagleError, match="none of the questions"):
        report.main([str(folders["GradDiff"]), "--original", str(other), "-o", str(target)])
    assert not target.exists()


# --------------------------------------------------------------------------------- in a browser

PHONE, DESKTOP = 390, 1280


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator:
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("Chromium and its driver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for name in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{name}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    driver.get("about:blank")
    driver.get_log("performance")  # what the browser did to start
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver, page, tmp_path):
    """A function that opens the page as a reader would, and checks that nothing goes wrong."""
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    command = driver.execute_cdp_cmd

    def open_page(width: int = DESKTOP, scheme: str = "light", script: bool = True):
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
        command("Emulation.setDeviceMetricsOverride", metrics)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        command("Emulation.setEmulatedMedia", {"features": features})
        command("Emulation.setScriptExecutionDisabled", {"value": not script})
        driver.get((tmp_path / "report.html").as_uri())
        return driver

    yield open_page
    assert driver.get_log("browser") == []
    requests = [
        message["params"]["request"]["url"]
        for message in (json.loads(e["message"])["message"] for e in driver.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert requests
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    command("Emulation.setScriptExecutionDisabled", {"value": False})
    assert driver.execute_script("return window.hacked") is None


def shown(driver) -> list[str]:
    """The questions in the table, from top to bottom."""
    return driver.execute_script(
        "return [...document.querySelectorAll('#table tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[0].lastChild.textContent.trim())"
    )


def select(driver, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(driver.find_element("id", name)).select_by_value(value)


def order_of_columns(driver) -> dict[str, str]:
    heads = driver.find_elements("css selector", "#table th[data-sort]:not([hidden])")
    return {h.get_attribute("data-sort"): h.get_attribute("aria-sort") for h in heads}


ALL = [question for questions in QUESTIONS.values() for question, _ in questions]


def test_questions_are_filtered_and_searched(browser):
    driver = browser()
    assert shown(driver) == ALL
    count = driver.find_element("id", "count")
    assert count.text == "7 of 7 questions"
    driver.find_element("css selector", "input[name=set][value=retain]").click()
    assert shown(driver) == [q for q, _ in QUESTIONS["retain"]]
    assert count.text == "2 of 7 questions"
    driver.find_element("css selector", "input[name=set][value='']").click()
    search = driver.find_element("id", "search")
    search.send_keys("BELL lisbon")
    assert shown(driver) == ["Where was Ada Bell born?"]
    search.clear()
    search.send_keys("rome")  # in an answer of the model that is chosen
    assert shown(driver) == ["Where was Ada Bell born?"]
    select(driver, "model", "1")
    assert shown(driver) == []
    search.clear()
    search.send_keys("know")
    assert shown(driver) == ["Where was Ada Bell born?"]


def test_questions_are_sorted_by_change(browser):
    driver = browser()
    select(driver, "order", "rouge ascending")
    first = ["What does Ada Bell write?", "Where was Ada Bell born?", "Where was Tom Reed born?"]
    assert shown(driver) == first + [question for question in ALL if question not in first]
    assert order_of_columns(driver) == {
        "place": "none",
        "rouge": "ascending",
        "probability": "none",
    }
    select(driver, "model", "1")
    assert shown(driver)[:3] == [
        "What does Ada Bell write?",
        "Where was Ada Bell born?",
        "Who is Ada Bell’s father?",
    ]
    select(driver, "order", "place ascending")
    assert shown(driver) == ALL


def test_headings_sort_with_the_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    driver = browser()
    button = driver.find_element("css selector", "th[data-sort=probability]:not([hidden]) button")
    button.send_keys(Keys.ENTER)
    assert shown(driver)[0] == "What does Ada Bell write?"
    assert order_of_columns(driver)["probability"] == "ascending"
    button.send_keys(Keys.SPACE)
    assert shown(driver)[-1] == "What does Ada Bell write?"
    assert order_of_columns(driver)["probability"] == "descending"
    assert driver.find_element("id", "order").get_attribute("value") == "probability descending"


def test_one_model_is_shown_at_a_time(browser):
    driver = browser()
    cells = "[...document.querySelector('#table tbody tr').cells].filter(c => c.offsetParent)"
    labels = f"return {cells}.map(c => c.dataset.label)"
    expected = ["Question", "True answer", "Original", "GradDiff", "ROUGE-L", "Probability"]
    assert driver.execute_script(labels) == expected
    select(driver, "model", "1")
    expected[3] = "NPO+WAGLE"
    assert driver.execute_script(labels) == expected
    numbers = driver.execute_script(f"return {cells}.slice(-2).map(c => c.textContent)")
    assert [" ".join(n.split()) for n in numbers] == ["−0.90 1.00 → 0.10", "−0.89 0.90 → 0.01"]


CONTRASTS = """
const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const parse = text => text.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
function ground(element) {
  for (; element; element = element.parentElement) {
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const lowest = {};
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
  const [a, b] = [parse(getComputedStyle(element).color), ground(element)].map(luminance);
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) lowest[element.tagName + '.' + element.className] = contrast;
}
return [luminance(ground(document.body)), lowest];
"""


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_everywhere(browser, width, scheme):
    """Contrast as WCAG 2 asks for (4.5), figures for the scheme, and nothing beyond the edge."""
    driver = browser(width, scheme)
    page, low = driver.execute_script(CONTRASTS)
    assert low == {}
    assert (page > 0.9) == (scheme == "light")
    pictures = driver.find_elements("css selector", "figure img")
    visible = [picture for picture in pictures if picture.is_displayed()]
    assert len(visible) == len(pictures) / 2 == 3
    for picture in visible:
        assert picture.get_attribute("class") == f"on-{scheme}"
        assert picture.get_attribute("naturalWidth") != "0"
        assert picture.get_attribute("alt")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.fixture(scope="module")
def long_page(tmp_path_factory) -> str:
    """Seven models, three of them with several seeds, and 120 questions."""
    root = tmp_path_factory.mktemp("long")
    questions = {
        name: [(f"{name}: question {i} about the author?", f"Answer {i}.") for i in range(30)]
        for name in QUESTIONS
    }
    runs = [("origin", 0, False)]
    runs += [
        (m, s, k) for m in ("GA+FT", "NPO+FT", "CL+FT") for s in range(3) for k in (False, True)
    ]
    folders = []
    for method, seed, mask in runs:
        folder = write_run(root / f"{method}{seed}{mask}", method, seed=seed, mask=mask)
        rows = {
            name: {"rows": [row(q, a, "I would rather not say.", 0.1, 0.1) for q, a in pairs]}
            for name, pairs in questions.items()
        }
        (folder / "tofu.json").write_text(json.dumps(rows))
        more = {f"UT {name} acc": 0.5 for name in ("retain", "real authors", "world facts")}
        change(folder, "results", **more, tofu_corrected={f"number {i}": 0.5 for i in range(30)})
        folders.append(folder)
    folders.append(write_run(root / "a_folder_with_a_name_that_is_long_and_has_no_space", "origin"))
    folders.append(write_run(root / "another_folder_with_a_name_that_is_long", "origin"))
    return render_report(read_runs(folders))


def test_on_a_phone_the_summary_comes_first_and_the_page_is_short(driver, long_page, tmp_path):
    (tmp_path / "long.html").write_text(long_page, encoding="utf-8")
    metrics = {"width": PHONE, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get((tmp_path / "long.html").as_uri())
    root = "document.documentElement"
    assert driver.execute_script(f"return {root}.scrollWidth") <= PHONE
    assert driver.execute_script(f"return {root}.scrollHeight") < 9000
    tables = driver.find_elements("css selector", "table")
    assert tables[0].get_attribute("class") == "short"
    assert tables[0].rect["y"] < 800  # on the first screen
    assert tables[0].rect["x"] + tables[0].rect["width"] <= PHONE
    heights = driver.execute_script(
        "return [...document.querySelectorAll('.short thead th')].map(e => e.textContent.trim()"
        " + ' ' + e.getClientRects().length + ' ' + e.scrollWidth + ' ' + e.clientWidth)"
    )
    for text in heights:  # no heading is wider than its cell
        *_, wide, there = text.split()
        assert int(wide) <= int(there), text
    rows = [r for r in driver.find_elements("css selector", "#table tbody tr") if r.is_displayed()]
    assert len(rows) == 5
    more = driver.find_element("id", "more")
    driver.execute_script("arguments[0].click()", more)
    rows = [r for r in driver.find_elements("css selector", "#table tbody tr") if r.is_displayed()]
    assert len(rows) == 10
    assert driver.find_element("id", "count").text.endswith(" questions, the first 10 shown")


def test_without_scripts_everything_is_there(browser):
    driver = browser(script=False)
    assert not driver.find_element("id", "controls").is_displayed()
    driver.find_element("css selector", "#all-answers summary").click()
    rows = driver.find_elements("css selector", "#table tbody tr")
    assert [r.is_displayed() for r in rows] == [True] * 7
    assert "I do not know." in rows[0].text
    assert "Rome." in rows[0].text


def test_print_is_light_and_complete(browser):
    driver = browser(scheme="dark")
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    background = "return getComputedStyle(document.body).backgroundColor"
    assert driver.execute_script(background) == "rgb(255, 255, 255)"
    assert not driver.find_element("id", "controls").is_displayed()
    assert not driver.find_element("css selector", ".on-dark").is_displayed()
    driver.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    details = driver.find_elements("css selector", "details")
    assert {d.get_attribute("open") for d in details} == {"true"}
    driver.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert [d.get_attribute("id") for d in details if d.get_attribute("open")] == ["all-answers"]
