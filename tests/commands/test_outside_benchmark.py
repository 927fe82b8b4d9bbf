"""A benchmark from a file outside the program, as docs/extending.md shows it: it needs no edit."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from wagle.catalogue import BENCHMARKS
from wagle.commands import report, running, table, unlearn
from wagle.errors import ConfigError, WagleError
from wagle.reporting import reproduction
from wagle.shipped import CHECKOUT

TRUST = ("--overall.trust_code", "true")


class Job:
    """A run in this process."""

    def __init__(self, run, slot) -> None:
        unlearn.main(run.arguments)

    def ended(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _leave_no_benchmark_behind():
    before = dict(BENCHMARKS)
    yield
    BENCHMARKS.clear()
    BENCHMARKS.update(before)


@pytest.fixture
def file(tmp_path) -> Path:
    """The benchmark of the documentation, in a file of its own."""
    text = (CHECKOUT / "docs" / "extending.md").read_text("utf-8")
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "BENCHMARK =" in c)
    path = tmp_path / "held.py"
    path.write_text(code, "utf-8")
    return path


@pytest.fixture
def config(options, tmp_path, file) -> Path:
    """A configuration file that names the benchmark."""
    changes = {"unlearn.task_name": file, "unlearn.mask_path": None, "unlearn.save_model": "false"}
    nested: dict = {}
    for option in options(changes):
        *sections, name = (key := option.partition("=")[0].removeprefix("--")).split(".")
        if key.startswith("logger.") or key == "evaluation.sentence_model":
            continue
        level = nested
        for section in sections:
            level = level.setdefault(section, {})
        value = option.partition("=")[2]
        level[name] = None if value == "null" else value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(nested))
    return path


def test_its_numbers_are_everywhere(config, monkeypatch, capsys):
    figures = []
    monkeypatch.setattr(running, "_starter", lambda *_: Job)
    monkeypatch.setattr(reproduction, "write_figure", lambda path, figure: figures.append(figure))
    argv = ["--table", "held", "-C", str(config), "--masks", "Dense", "--seeds", "0", "1"]
    assert table.main([*argv, "-o", "out", *TRUST]) == 0
    runs = sorted(Path("out").rglob("results.json"))
    assert len(runs) == 3
    results = json.loads(runs[0].read_text())
    assert [name for name in results if name.startswith("held")] == ["held forget", "held world"]
    document = json.loads((runs[0].parent / "held.json").read_text())
    assert len(document["world"]["rows"]) == 4

    markdown = Path("out/held.md").read_text()
    assert "What the answers still hold" in markdown
    assert "| held forget ↓ | held world ↑ |" in markdown
    (_, line) = csv.DictReader(Path("out/held.csv").read_text().splitlines())
    assert float(line["held world mean"]) >= 0
    latex = Path("out/held.tex").read_text()
    assert r"\multicolumn{2}{c}{held}" in latex
    assert r"forget $\downarrow$ & world $\uparrow$" in latex
    (figure,) = figures
    (axes,) = figure.axes
    assert axes.get_ylabel() == "forgetting, held forget\n(smaller is better)"
    assert axes.get_xlabel() == "utility, held world (larger is better)"

    assert report.main(["out/runs", "-o", "report.html", *TRUST]) == 0
    words = " ".join(re.sub(r"<[^>]*>", " ", Path("report.html").read_text()).split())
    assert "held forget Share of the forget answers that hold the true one. ↓ smaller is" in words
    assert "Forgetting is held forget, utility held world" in words
    assert "down and to the right is better" in Path("report.html").read_text()
    capsys.readouterr()
    assert report.main(["out/runs", "--list", *TRUST]) == 0
    assert "held forget 0  held world 0" in capsys.readouterr().out


def test_its_code_runs_only_where_the_command_line_trusts_it(config, file, monkeypatch, capsys):
    argv = ["-C", str(config), "--unlearn.unlearn_method", "origin", "--overall.logger", "none"]
    with pytest.raises(ConfigError, match=r"(?s)code from.*outside"):
        unlearn.main(argv)
    assert unlearn.main([*argv, *TRUST, "--overall.logger", "json", "--logger.name", "a"]) == 0
    file.write_text("raise SystemExit('it was run')")
    monkeypatch.delitem(BENCHMARKS, f"{file}:BENCHMARK")  # as another process has it
    assert report.main(["files/logs/a", "-o", "report.html"]) == 0
    assert "held.py" in capsys.readouterr().err
    page = Path("report.html").read_text()
    assert "held world" in page
    assert "larger is better" not in page


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ('{"held world": 0.5}', "'held world' is none of the metrics of the benchmark held"),
        ('{Metric("other", ""): 0.5}', "other.* is none of the metrics of the benchmark held"),
        ('dict.fromkeys(HELD.values(), "a half")', "held forget is 'a half', which is no number"),
    ],
)
def test_what_no_metric_explains_is_refused(config, file, returned, message):
    file.write_text(file.read_text().replace("return numbers", f"return {returned}"))
    with pytest.raises(WagleError, match=message):
        unlearn.main(["-C", str(config), "--unlearn.unlearn_method", "origin", *TRUST])
