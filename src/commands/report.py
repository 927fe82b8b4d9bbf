"""A report about finished runs: one HTML page that needs no network.

python src/exec/report.py RUN [RUN ...] -o report.html [--original RUN]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wagle.catalogue import BENCHMARKS
from wagle.cli import program
from wagle.config.trust import HOW, TRUST
from wagle.errors import ConfigError
from wagle.outside import enter, is_outside
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
    parser.add_argument(
        f"--{TRUST}",
        dest="trust",
        choices=("true", "false"),
        default="false",
        help="run the code of benchmarks from outside the program, to explain their numbers",
    )
    options = parser.parse_args(argv)
    folders = [*options.runs, *([options.original] if options.original else [])]
    from wagle.reporting.listing import existing, list_runs
    from wagle.reporting.runs import find_run_folders, read_run, read_runs

    found = find_run_folders(existing(folders))
    _enter_benchmarks(found, options.trust == "true")
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


def _enter_benchmarks(folders: Sequence[Path], trusted: bool) -> None:
    """Run the code of benchmarks from outside that runs name, where it is trusted."""
    from wagle.reporting.runs import tasks_of

    for task in filter(is_outside, tasks_of(folders)):
        if trusted:
            enter(BENCHMARKS, task)
        else:
            about = f"the numbers of {task} are not explained, as that is code from outside"
            say(f"note: {about}; {HOW}", sys.stderr)
