"""What runs there are, what one is, and by what several differ.

wagle runs ls FOLDER [FOLDER ...] [--export runs.parquet|runs.csv] [--rows]
wagle runs show RUN
wagle runs compare RUN RUN [RUN ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wagle.cli import program
from wagle.errors import ConfigError
from wagle.terminal import plain, say, show_table

if TYPE_CHECKING:
    from wagle.reporting.listing import Listed


def main(argv: Sequence[str]) -> int:
    """Run one sub-command."""
    parser = argparse.ArgumentParser(
        prog=program("runs"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    ls = commands.add_parser("ls", help="a line for each run folder, whatever became of it")
    ls.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    ls.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="write a row for each run, with all settings and numbers: .parquet or .csv",
    )
    ls.add_argument("--rows", action="store_true", help="export a row for each run and question")
    show = commands.add_parser("show", help="settings that are not the defaults, and results")
    show.add_argument("folders", type=Path, nargs=1, metavar="RUN")
    compare = commands.add_parser("compare", help="settings and numbers that differ")
    compare.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    options = parser.parse_args(argv)
    from wagle.reporting.listing import Listed, existing
    from wagle.reporting.runs import find_run_folders

    folders = existing(options.folders)
    if options.command == "ls":
        return _list(find_run_folders(folders), options)
    runs = [Listed.of(folder) for folder in folders]
    if options.command == "show":
        _show(runs[0])
    else:
        if len(runs) < 2:
            raise ConfigError("compare takes two or more runs")
        _compare(runs)
    return 0


def _list(folders: Sequence[Path], options: argparse.Namespace) -> int:
    from wagle.reporting.listing import export, frame_of, list_runs

    if options.rows and not options.export:
        raise ConfigError("--rows is about --export; name a file")
    if options.export is None:
        for line in list_runs(folders):
            say(line)
        return 0
    frame = frame_of(folders, rows=options.rows)
    export(frame, options.export)
    for folder, reason in _left_out(folders):
        say(f"without numbers: {folder}: {reason}", sys.stderr)
    say(f"written: {options.export}, {len(frame)} rows of {len(frame.columns)} columns")
    return 0


def _left_out(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    from wagle.reporting.listing import Listed

    listed = map(Listed.of, folders)
    return [(run.folder, f"{run.status}: {run.reason}") for run in listed if run.run is None]


def _show(listed: Listed) -> None:
    from rich.table import Table

    from wagle.metrics.benchmarks import find_metric

    for name, value in listed.about.items():
        if value not in (None, ""):
            say(f"{name}: {value}")
    if listed.settings:
        table = Table(title="settings that are not the defaults", title_justify="left")
        table.add_column("key", overflow="fold")
        table.add_column("value", overflow="fold")
        for name, value in listed.settings.items():
            table.add_row(plain(name), plain(value))
        show_table(table)
    if listed.run:
        table = Table(title="results", title_justify="left")
        table.add_column("number")
        table.add_column("value", justify="right")
        table.add_column("meaning")
        for name, number in listed.numbers.items():
            metric = find_metric(listed.run.benchmark, name)
            table.add_row(plain(name), f"{number:.4f}", plain(metric.meaning) if metric else "")
        show_table(table)


def _compare(runs: Sequence[Listed]) -> None:
    from rich.table import Table

    names = [chr(ord("A") + index) if index < 26 else str(index + 1) for index in range(len(runs))]
    for name, run in zip(names, runs, strict=True):
        say(f"{name}: {run.folder}{f' ({run.status}: {run.reason})' if run.reason else ''}")
    for title, parts in (
        ("what they are", [run.about for run in runs]),
        ("settings", [run.config for run in runs]),
        ("numbers", [run.numbers for run in runs]),
    ):
        keys = dict.fromkeys(key for part in parts for key in part if key not in _SAID)
        differing = [key for key in keys if len({str(part.get(key)) for part in parts}) > 1]
        if not differing:
            continue
        table = Table(title=f"{title} that differ" if title != "what they are" else title)
        table.add_column("")
        for name in names:
            table.add_column(name, overflow="fold", justify="right")
        for key in differing:
            table.add_row(plain(key), *(_text(part.get(key, "–")) for part in parts))
        show_table(table)


_SAID = ("folder", "reason")


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else plain(value)
