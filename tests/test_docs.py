"""The documentation points at things that exist."""

import re
import shlex
from pathlib import Path

import pytest

from wagle.catalogue import METHODS
from wagle.shipped import CHECKOUT as ROOT

PAGES = [
    *(ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_files_that_exist(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command in re.findall(r"python ((?:src|benchmarks)/[^\n`]+)", text):
        words = shlex.split(command, comments=True)
        wanted = [words[0], *(word for word in words if word.startswith("configs/"))]
        for name in wanted:
            assert (ROOT / name).exists(), f"{page.name}: python {command}"


def test_the_documentation_mentions_no_key_that_does_not_exist():
    from wagle.config import FINE_TUNE_KEYS, UNLEARN_KEYS, AttackConfig, CompareConfig, DepthConfig

    programs = (
        UNLEARN_KEYS,
        FINE_TUNE_KEYS,
        AttackConfig.KEYS,
        CompareConfig.KEYS,
        DepthConfig.KEYS,
    )
    known = {key.name for keys in programs for key in keys}
    sections = {name.rpartition(".")[0] for name in known}
    tops = "|".join(sorted({name.partition(".")[0] for name in known}))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(rf"`(?:--)?((?:{tops})\.[\w.+-]+)", text):
            assert name in known | sections, f"{page.name} mentions {name}"


@pytest.mark.parametrize("name", METHODS)
def test_the_page_of_methods_has_every_method_with_its_defaults(name):
    """A row of a table by each name; numbers among its defaults stand in it or above the table."""
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for title in (name, *METHODS[name].aliases):
        row = next((line for line in text.splitlines() if f"`{title}`" in line.split(" | ")[0]), "")
        assert row, f"docs/methods.md has no row of {title}"
    for option in METHODS[name].options:
        if type(option.default) in (int, float) and option.name not in _COMMON:
            assert re.search(rf"\b{option.default:g}\b", row), f"{name}: {option.name}"


_COMMON = {"gamma", "forget_weight"}


_STANDS_FOR = "(?<![A-Z])(SET|PROTOCOL|ATTACK|TASK|METRIC)(?![A-Z])"


def test_the_page_of_metrics_has_every_number_of_every_benchmark():
    """With its direction and its range."""
    from wagle.catalogue import BENCHMARKS
    from wagle.metrics.benchmark import Benchmark
    from wagle.metrics.tofu_benchmark import OFFICIAL
    from wagle.metrics.utility import FURTHER

    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    known = [
        (re.sub(_STANDS_FOR, ".+", re.escape(name)), place, row)
        for row in rows
        for place, name in enumerate(re.findall("`([^`]+)`", row[0]))
    ]
    benchmarks: list[Benchmark] = [OFFICIAL, *(entry.load() for entry in BENCHMARKS.values())]
    for metric in (*FURTHER, *(m for benchmark in benchmarks for m in benchmark.metrics)):
        found = [line for line in known if re.fullmatch(line[0], metric.key)]
        assert found, metric.key
        _, place, (_, _, better, limits, *_) = min(found, key=lambda line: line[0].count(".+"))
        told = re.findall("[↑↓–]", better) or ["–"]  # or the value that is best
        if "else" in better:
            place = int("Forget" not in metric.key)
        assert told[place % len(told)] == "↓–↑"[metric.better + 1], metric.key
        highest = [int(number) for number in re.findall(r" to (\d+)", limits)]
        assert (metric.largest in highest) if highest else metric.largest is None, metric.key
