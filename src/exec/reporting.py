"""Loggers for a configuration, and results on the terminal, as a table and as a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

from src.config import Config
from src.loggers import JsonLogger, Logger
from src.loggers.json_logger import MANIFEST, RESULTS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_SHORT = {"real authors": "RA", "world facts": "WF", "retain": "retain"}


def make_logger(config: Config) -> Logger:
    """The logger that ``overall.logger`` names."""
    if config["overall.logger"] == "none":
        return Logger()
    name = config["logger.name"] or time.strftime("%Y-%m-%d_%H-%M-%S")
    return JsonLogger(Path(config["logger.json.root"]) / name)


def print_results(results: Mapping[str, Any], folder: Path | None) -> None:
    """Print the flat summary of a run as a table."""
    table = Table(title="results", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in results.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console = Console()
    console.print(table)
    if folder is not None:
        console.print(f"run folder: {folder}", soft_wrap=True)


@dataclass(frozen=True)
class Run:
    """A finished run: its title in tables, its results, and the seconds of each phase."""

    title: str
    results: Mapping[str, Any]
    seconds: Mapping[str, float]

    @property
    def unlearning_seconds(self) -> float:
        """Time of mask and training together."""
        return self.seconds.get("mask", 0.0) + self.seconds.get("train", 0.0)


def read_run(title: str, folder: Path) -> Run:
    """Read a finished run's folder."""
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return Run(title, results, manifest["seconds"])


def comparison_table(runs: Sequence[Run], path: Path) -> None:
    """Print the UE and UT columns of several runs, and save them as Markdown."""
    metrics = [name for name in runs[0].results if name.startswith(("UE ", "UT "))]
    heads = ["run", *(_short(name) for name in metrics), "updated", "time"]
    rows = []
    for run in runs:
        trained = run.results["method"] != "origin"
        cells = [f"{run.results[name]:.3f}" for name in metrics]
        share = f"{run.results['density']:.0%}" if trained else "–"
        seconds = f"{run.unlearning_seconds:.0f} s" if trained else "–"
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
