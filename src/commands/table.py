"""Make a table of the paper: plan its runs, run what is missing, write it.

python src/exec/reproduce_tables.py --table tofu --config_file configs/tofu --seeds 0 1 2

Any --section.key value goes to every run. What is done is found again by its configuration, so the
same command goes on after a failure, an interruption or a kill. Exit status: 0 done, 1 a run has
failed, 2 wrong configuration.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from wagle.cli import program
from wagle.commands.running import (
    add_choices,
    add_running,
    end,
    print_missing,
    run_missing,
    runs_parser,
)
from wagle.reporting.plan import plan_runs
from wagle.reporting.request import STEPS, TABLES, TableRequest
from wagle.terminal import say


def main(argv: Sequence[str]) -> int:
    """Make one table."""
    options, overrides = _parser().parse_known_args(argv)
    # Figures come after the command line has been found right.
    from wagle.reporting.reproduction import Reproduction
    from wagle.reporting.table_formats import to_markdown

    output = options.output or Path("files/results/tables") / options.config_file.stem
    request = TableRequest(
        table=options.table,
        config_file=options.config_file,
        output=output,
        methods=options.methods,
        masks=options.masks,
        ratios=options.ratios,
        mus=options.mus,
        forget_sets=options.forget_sets,
        seeds=tuple(dict.fromkeys(options.seeds)),
        overrides=overrides,
    )
    runs = plan_runs(request)
    command = f"{program('table')} {shlex.join(argv)}"
    reproduction = Reproduction(options.table, runs, output, command)
    if options.dry_run:
        print_missing(reproduction, options)
        return 0
    run_missing(reproduction, options)
    table = reproduction.write(over_questions=True)
    say(f"\n{to_markdown(table, command)}")
    return end(reproduction, ".md, .tex, .csv and _runs.csv")


def _parser() -> argparse.ArgumentParser:
    parser = runs_parser("table", __doc__)
    add = parser.add_argument
    add(
        "--table",
        required=True,
        help=f"{', '.join(TABLES)}, or the name of the benchmark from outside the program that "
        "unlearn.task_name names",
    )
    add_choices(parser, masks="", folder="files/results/tables")
    add("--mus", nargs="+", type=float, metavar="MU", help="for --table mu")
    add(
        "--forget_sets",
        nargs="+",
        metavar="NAME",
        help=f"for --table {' and '.join(STEPS)}, in order; default: what the data has for it",
    )
    add_running(parser)
    return parser
