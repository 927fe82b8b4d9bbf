"""Several runs side by side: as a table, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.table import Table

from src.reporting.runs import Run

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_SHORT = {"real authors": "RA", "world facts": "WF", "retain": "retain"}


def comparison_table(runs: Sequence[Run], path: Path) -> None:
    """Print the UE and UT columns of several runs, and save them as Markdown."""
    metrics = [name for name in runs[0].results if name.startswith(("UE ", "UT "))]
    heads = ["run", *(_short(name) for name in metrics), "updated", "time"]
    rows = []
    for run in runs:
        cells = [f"{run.results[name]:.3f}" for name in metrics]
        share = f"{run.results['density']:.0%}" if run.trained else "–"
        seconds = f"{run.unlearning_seconds:.0f} s" if run.trained else "–"
        rows.append([run.title, *cells, share, seconds])
    # Seventeen columns do not fit a terminal side by side, so there each metric is a row.
    table = Table(title="UE: unlearning efficacy, UT: utility (larger is better)")
    table.add_column("")
    for row in rows:
        table.add_column(row[0].replace("+", "\n+"), justify="right")
    for index, head in enumerate(heads[1:], start=1):
        table.add_row(head, *(row[index] for row in rows), end_section=head.endswith("Avg"))
    Console().print(table)
    lines = [heads, ["---"] * len(heads), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"table: {path}")


def _short(metric: str) -> str:
    for long, short in _SHORT.items():
        metric = metric.replace(long, short)
    return metric


def draw_comparison(runs: Sequence[Run], path: Path) -> None:
    """Draw UE Avg against UT Avg, one point a run: up and to the right is better."""
    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    colours = plt.get_cmap("tab10").colors
    families = list(dict.fromkeys(run.title.partition("+")[0] for run in runs))
    for run in runs:
        x, y = run.results["UT Avg"], run.results["UE Avg"]
        masked = "+" in run.title
        colour = colours[families.index(run.title.partition("+")[0])]
        axes.plot(x, y, "o" if masked else "s", color=colour, markersize=9, label=run.title)
    axes.set_xlabel("utility (UT Avg)")
    axes.set_ylabel("unlearning efficacy (UE Avg)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"picture: {path}")
