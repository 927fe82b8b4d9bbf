"""A report about finished runs: one HTML page that needs no network.

python src/exec/report.py RUN [RUN ...] -o report.html [--original RUN]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from src.errors import ConfigError
from src.exec.entry import run_main
from src.terminal import say


def main(argv: Sequence[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(
        prog="report.py", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
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
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise ConfigError(f"there is no folder {', '.join(missing)}; give folders of finished runs")
    from src.reporting.page import write_report
    from src.reporting.runs import read_runs

    distinct = {folder.resolve(): folder for folder in folders}
    runs = read_runs(list(distinct.values()))
    original = None
    if options.original:
        original = runs[list(distinct).index(options.original.resolve())]
        if not original.is_original:
            raise ConfigError(
                f"--original {options.original} is a run of {original.method}; give one with "
                "unlearn.unlearn_method origin"
            )
    write_report(runs, options.output, original)
    say(f"report: {options.output}")
    return 0


if __name__ == "__main__":
    run_main(main)
