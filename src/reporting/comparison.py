"""Several runs side by side: as a table, and as pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from src.loggers.files import write_text
from src.reporting.figures import draw_tradeoff, draw_training, write_figure
from src.reporting.groups import group_runs
from src.reporting.runs import Run
from src.terminal import plain, say, show_table

_SHOWN = r"UE |UT |tofu_official |lm_eval .* (acc|word_perplexity)$"
_SHORT = {
    "tofu_official ": "",
    "real authors": "RA",
    "world facts": "WF",
    "lm_eval ": "",
    "word_perplexity": "PPL",
}


def comparison_table(runs: Sequence[Run], path: Path) -> None:
    """Print UE, UT and lm-eval numbers of several runs, and save them as Markdown."""
    metrics = [name for name in runs[0].results if re.match(_SHOWN, name)]
    heads = ["run", *(_short(name) for name in metrics), "updated", "time"]
    rows = []
    for run in runs:
        cells = [f"{run.results[name]:.3f}" for name in metrics]
        share = f"{run.results['density']:.0%}" if run.trained else "–"
        seconds = f"{run.unlearning_seconds:.0f} s" if run.trained else "–"
        rows.append([run.title, *cells, share, seconds])
    # Seventeen columns do not fit a terminal side by side, so there each metric is a row.
    title = "UE: unlearning efficacy, UT: utility (larger is better)"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("")
    for row in rows:
        table.add_column(plain(row[0]).replace("+", "\n+"), justify="right")
    for index, head in enumerate(heads[1:], start=1):
        table.add_row(plain(head), *(row[index] for row in rows), end_section=head.endswith("Avg"))
    show_table(table)
    lines = [heads, ["---"] * len(heads), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    write_text(path, text + "\n")
    say(f"table: {path}")


def _short(metric: str) -> str:
    for long, short in _SHORT.items():
        metric = metric.replace(long, short)
    return metric


def save_figures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Draw forgetting against utility, and the training curves, of several runs as PNG and PDF."""
    points = [group.point for group in group_runs(runs)]
    logs = [(run.method, run.mask, run.log) for run in runs if run.log]
    paths = write_figure(folder / "forgetting_against_utility", draw_tradeoff(points))
    paths += write_figure(folder / "training", draw_training(logs))
    say(f"figures: {', '.join(map(str, paths))}")
    return paths
