"""What the benchmarks say about their numbers, and what a benchmark from outside needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import wagle
from wagle.catalogue import BENCHMARKS
from wagle.dataset.sources import muse
from wagle.metrics import own, privacy, utility
from wagle.metrics.benchmark import Metric, forgets
from wagle.metrics.benchmarks import benchmark_of, find_metric
from wagle.metrics.composites import official_numbers
from wagle.metrics.privacy import AUCS, OTHER_AUC, PRIVLEAK_OF_HALF
from wagle.metrics.tofu_benchmark import OFFICIAL, TITLES, TOFU, paper_numbers, under
from wagle.metrics.tofu_results import PerAnswer, TofuResults, TofuRow, TofuSet
from wagle.metrics.views import VIEWED
from wagle.reporting.planned import TableRow
from wagle.reporting.table_formats import to_markdown
from wagle.reporting.tables import Outcome, aggregate, form_of

PACKAGE = Path(wagle.__file__).parent


def test_benchmarks_are_known_without_what_measures_them():
    code = (
        "import sys\n"
        "from wagle.catalogue import BENCHMARKS\n"
        "assert all(entry.load().name == name for name, entry in BENCHMARKS.items())\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'datasets', 'lm_eval'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules)) or ''))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.strip() == ""


@pytest.mark.parametrize("benchmark", [*(entry.load() for entry in BENCHMARKS.values()), OFFICIAL])
def test_columns_and_headline_are_numbers_of_the_benchmark(benchmark):
    keys = [metric.key for metric in benchmark.metrics]
    assert len(set(keys)) == len(keys)
    assert {*benchmark.columns, *benchmark.summary} <= set(benchmark.metrics)
    assert set(benchmark.answers.documents) == set(benchmark.answers.sets)
    for metric in benchmark.metrics:
        assert metric.meaning.endswith((".", ")."))
        assert metric.better in (-1, 0, 1)
    assert all(metric.better == 1 for metric in benchmark.headline or ())


def test_every_number_of_tofu_is_explained():
    row = TofuRow(
        rouge=0.5,
        paraphrase_rouge=0.5,
        acc=0.5,
        exact_memorization=1.0,
        extraction_strength=1.0,
        loss=PerAnswer(1.0, 1.0, (2.0, 2.0)),
    )
    sets = dict.fromkeys(TITLES, TofuSet((row, row)))
    aucs = dict.fromkeys([*AUCS, "length"], 0.5)
    results = TofuResults(
        sets,
        "official",
        forget_quality=1.0,
        mia={"Min_50.0% Prob": 0.5},
        holdout=aucs,
        fluency=0.5,
    )
    assert set(paper_numbers(results)) == set(TOFU.columns)
    scores = [under("official", metric) for metric in official_numbers(results, results, results)]
    others = {PRIVLEAK_OF_HALF: PRIVLEAK_OF_HALF, OTHER_AUC: OTHER_AUC.of("length")}
    explained = {*OFFICIAL.metrics, under("official", others[OTHER_AUC])}
    explained -= {metric for view in VIEWED.values() for metric in view.values()}
    assert set(scores) == explained - {under("official", metric) for metric in others}
    better = {metric.key: metric.better for metric in scores}
    worse = {key for key in better if better[key] == -1}
    assert worse == {
        *("tofu_official ROUGE Forget", "tofu_official Prob. Forget", "tofu_official KS"),
        *("tofu_official prob_mean Forget", "tofu_official Exact Memorization"),
        *("tofu_official Extraction Strength", "tofu_official PARA Prob. Forget"),
        "tofu_official PARA ROUGE Forget",
    }


def test_the_protocol_decides_tofus_numbers():
    config = {"unlearn.task_name": "tofu", "evaluation.protocol": "official"}
    assert benchmark_of(config) is OFFICIAL
    assert benchmark_of({**config, "evaluation.protocol": "published"}) is TOFU


def test_members_of_families():
    found = find_metric(TOFU, "lm_eval demo_wmdp acc")
    assert found.meaning == "Share of correct answers in the lm-eval task demo_wmdp."
    found = find_metric(TOFU, "lm_eval gsm8k exact_match strict-match")
    assert found.meaning == "From the lm-eval task gsm8k."
    assert find_metric(TOFU, "MIA Min++_10.0% Prob").better == 0
    assert find_metric(TOFU, "something else") is None


def test_headings_follow_from_the_key():
    metric = Metric("UE FQ", "", group="UE")
    assert (metric.heading, metric.name) == ("FQ", "UE FQ")
    assert Metric("toxicity a rate", "", group="PKU", title="rate").name == "PKU rate"
    assert Metric("PPL", "").name == "PPL"


def test_a_benchmark_fits_its_forget_sets_where_its_files_are(tmp_path):
    values = {"dataset.forget_dataset_name": "Tofu_forget10", "dataset.data_dir": None}
    assert forgets(values, r"Tofu_forget\d+", "TOFU/a.json")
    assert not forgets(values, "Tofu")
    values["dataset.data_dir"] = str(tmp_path)
    assert not forgets(values, r"Tofu_forget\d+", "TOFU/a.json")
    (tmp_path / "TOFU").mkdir()
    (tmp_path / "TOFU" / "a.json").touch()
    assert forgets(values, r"Tofu_forget\d+", "TOFU/a.json")


def test_no_number_is_named_outside_its_definition():
    """Docstrings may speak of numbers; code asks a ``Metric`` for its key."""
    metrics = {m for entry in BENCHMARKS.values() for m in entry.load().metrics}
    keys = {metric.key.partition("{}")[0] for metric in (*metrics, *OFFICIAL.metrics)}
    keys |= {protocol.partition(" ")[0] for protocol in keys if protocol.startswith("tofu_")}
    defined = {import_module(entry.place.partition(":")[0]) for entry in BENCHMARKS.values()}
    definitions = {
        Path(module.__file__) for module in (*defined, privacy, utility, muse)
    }  # a set of MUSE's is called as a number is
    # privleak_forget is a set of MUSE's, and privleak.json a file
    named = re.compile(rf"\b(?:{'|'.join(map(re.escape, keys))})(?![_.][a-z])")
    found = []
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix not in (".py", ".html", ".js") or path in definitions:
            continue
        text = path.read_text("utf-8")
        for string in _strings(text) if path.suffix == ".py" else [text]:
            found += [(path.name, key) for key in named.findall(string)]
    assert found == []


def _strings(code: str) -> Iterator[str]:
    """The strings of a module, without its docstrings."""
    tree = ast.parse(code)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


HEADINGS = {
    "tofu": "UE FQ ↑|UE MIA ↑|UE 1-FA ↑|UE 1-RougeL ↑|UE Avg ↑|retain acc ↑|retain RougeL ↑|"
    "real authors acc ↑|real authors RougeL ↑|world facts acc ↑|world facts RougeL ↑|UT Avg ↑",
    "official": "in short Mem ↑|in short Priv ↑|in short Util ↑|in short Agg ↑|"
    "forget Quality ↑|forget Truth Ratio ↑|forget Prob. ↓|forget ROUGE ↓|forget EM ↓|"
    "forget ES ↓|Model Utility ↑|privacy mia_min_k|privacy privleak",
    "wmdp": "UE 1-FA bio ↑|UE 1-FA cyber ↑|UE Avg ↑|UT MMLU ↑",
    "copyright": "seen BLEU ↓|seen RougeL ↓|unseen BLEU ↓|unseen RougeL ↓|UT PPL ↓|"
    "UT zero-shot acc ↑|UT TruthfulQA ↑",
    "own": "UE 1-Prob ↑|UE 1-RougeL ↑|UE 1-EM ↑|UE 1-ES ↑|UE MIA ↑|UE Avg ↑|UT Prob ↑|UT RougeL ↑|"
    "UT EM ↑|UT ES ↑|UT Avg ↑",
    "toxic": "PKU rate ↓|PKU score ↓|real rate ↓|real score ↓|UT PPL ↓|UT zero-shot acc ↑|"
    "UT TruthfulQA ↑",
}


@pytest.mark.parametrize("name", HEADINGS)
def test_tables_have_the_columns_of_the_papers(name):
    benchmark = OFFICIAL if name == "official" else BENCHMARKS[name].load()
    table = aggregate(form_of(benchmark.name, benchmark), [Outcome(TableRow("NPO"), 0, "folder")])
    (heads,) = (line for line in to_markdown(table, "").splitlines() if line.startswith("| method"))
    assert heads.split(" | seeds | ")[1].removesuffix(" |").replace(" | ", "|") == HEADINGS[name]


def test_which_numbers_are_neither_better_nor_worse():
    shown = [entry.load() for entry in BENCHMARKS.values()]
    plain = {metric.key for b in (*shown, OFFICIAL) for metric in b.metrics if not metric.better}
    of_held_out_rows = {metric.key for metric in own.UNSEEN.values()} | {own.LOSS["holdout"].key}
    attacks = {m for m in privacy.PRIVACY if m not in privacy.SIMILARITIES.values()}
    attacks |= {under("official", metric) for metric in attacks}
    of_attacks = {metric.key for metric in attacks}
    assert plain == {"MIA {}", own.UNLIKE_UNSEEN.key, *of_held_out_rows, *of_attacks}
    assert {metric.better for metric in utility.FURTHER} == {0}
