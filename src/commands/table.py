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
from wagle.commands.running import add_running, print_missing, run_missing
from wagle.reporting.plan import plan_runs
from wagle.reporting.request import STEPS, TABLES, TableRequest
from wagle.reporting.table_masks import MASKS
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
    say(f"written: {output / options.table}.md, .tex, .csv and _runs.csv")
    if figures := reproduction.draw():
        say(f"figures: {', '.join(map(str, figures))}")
    return 1 if reproduction.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("table"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Models are not kept unless --unlearn.save_model true is given.",
    )
    add = parser.add_argument
    add(
        "--table",
        required=True,
        help=f"{', '.join(TABLES)}, or the name of the benchmark from outside the program that "
        "unlearn.task_name names",
    )
    add(
        *("--config_file", "--config-file", "-C"),
        dest="config_file",
        type=Path,
        required=True,
        help="a configuration for all methods, or a folder with a METHOD.json for each; the ratio "
        "of METHOD+WAGLE.json, if there is one, is the usual one",
    )
    add("--methods", nargs="+", help="default: GradDiff, NPO and PO, as far as there are files")
    add("--masks", nargs="+", metavar="MASK", help=f"of {', '.join(MASKS)}")
    add("--ratios", nargs="+", type=float, metavar="RATIO", help="share of the weights")
    add("--mus", nargs="+", type=float, metavar="MU", help="for --table mu")
    add(
        "--forget_sets",
        nargs="+",
        metavar="NAME",
        help=f"for --table {' and '.join(STEPS)}, in order; default: what the data has for it",
    )
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    add("-o", dest="output", type=Path, help="folder; default: files/results/tables/CONFIG_FILE")
    add_running(parser)
    return parser
