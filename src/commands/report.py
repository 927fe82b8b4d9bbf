"""A report about finished runs: one HTML page that needs no network.

python src/exec/report.py RUN [RUN ...] -o report.html [--original RUN]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from wagle.cli import program
from wagle.errors import ConfigError
from wagle.terminal import say


def main(argv: Sequence[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(
        prog=program("report"), description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folders, or folders with run folders below; what has not finished is left out",
    )
    parser.add_argument("--list", action="store_true", help="list the runs, and write no page")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page"
    )
    parser.add_argument(
        "--original",
        type=Path,
        metavar="RUN",
        help="run folder of the model before unlearning (method origin), to compare answers "
        "with; not given: the first such among the runs",
    )
    options = parser.parse_args(argv)
    folders = [*options.runs, *([options.original] if options.original else [])]
    missing = [str(folder) for folder in folders if not folder.exists()]
    if missing:
        raise ConfigError(f"there is no folder {', '.join(missing)}; give folders of finished runs")
    from wagle.reporting.runs import find_run_folders, list_runs, read_run, read_runs

    found = find_run_folders(folders)
    if options.list:
        for line in list_runs(found):
            say(line)
        return 0
    from wagle.reporting.page import write_report

    runs = read_runs(found)
    original = None
    if options.original:
        read_run(options.original)  # it must not be left out
        given = options.original.resolve()
        original = next(run for run in runs if run.folder.resolve() == given)
        if not original.is_original:
            raise ConfigError(
                f"--original {options.original} is a run of {original.method}; give one with "
                "unlearn.unlearn_method origin"
            )
    write_report(runs, options.output, original)
    say(f"report: {options.output}")
    return 0
