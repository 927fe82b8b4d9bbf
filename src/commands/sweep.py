"""Try settings: every method and mask with the same grid, and choose where enough utility is left.

wagle sweep --config_file configs/demo --grid lr=2e-4,4e-4 gamma=0.5,1 --by "UE Avg" --floor 0.9

A key is named whole or by its end; gamma is that of each method. Any --section.key value goes to
every run. What is done is found again by its configuration, so the same command goes on after an
interruption, and one with more values or seeds runs what is new. Exit status: as of wagle table.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
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
from wagle.metrics.benchmarks import benchmark_of
from wagle.reporting.grid import read_grid
from wagle.reporting.plan import FEW_MASKS, plan_runs
from wagle.reporting.request import SWEEP, TableRequest
from wagle.terminal import say


def main(argv: Sequence[str]) -> int:
    """Make one sweep."""
    options, overrides = _parser().parse_known_args(argv)
    output = options.output or Path("files/results/sweeps") / options.config_file.stem
    request = TableRequest(
        table=SWEEP,
        config_file=options.config_file,
        output=output,
        methods=options.methods,
        masks=options.masks,
        ratios=options.ratios,
        grid=read_grid(options.grid),
        seeds=tuple(dict.fromkeys(options.seeds)),
        overrides=overrides,
    )
    runs = plan_runs(request)
    from wagle.reporting.selection import Selection  # numpy takes its time to import

    selection = Selection.of(
        benchmark_of(runs[0].config),
        options.by,
        options.floor,
        forgetting=options.forgetting,
        utility=options.utility,
    )
    # Figures come after the command line has been found right.
    from wagle.reporting.sweep import Sweep

    sweep = Sweep(selection, runs, output, f"{program('sweep')} {shlex.join(argv)}")
    if options.dry_run:
        print_missing(sweep, options)
        return 0
    run_missing(sweep, options)
    if more := [seed for seed in dict.fromkeys(options.more_seeds) if seed not in request.seeds]:
        chosen = sweep.chosen()
        further = plan_runs(replace(request, seeds=more))
        sweep.runs = [*runs, *(run for run in further if run.row in chosen)]
        run_missing(sweep, options)
    sweep.write()
    say(f"\n{sweep.summary()}\n")
    for reason in sweep.without_choice():
        say(reason)
    return end(sweep, ".md, .tex, .csv, .json and _runs.csv")


def _parser() -> argparse.ArgumentParser:
    parser = runs_parser("sweep", __doc__)
    add = parser.add_argument
    default = f"; default: {' and '.join(FEW_MASKS)}"
    add_choices(parser, masks=default, folder="files/results/sweeps")
    add(
        "--grid", nargs="+", required=True, metavar="KEY=VALUE,VALUE", help="lr=1e-4,3e-4 gamma=1,2"
    )
    add("--by", required=True, metavar="NUMBER", help="which is to be best, such as Agg")
    add(
        "--floor",
        type=float,
        default=0.9,
        help="share of the original's utility that must be kept; default: 0.9",
    )
    add("--utility", metavar="NUMBER", help="default: that of the benchmark's headline")
    add("--forgetting", metavar="NUMBER", help="of the figure; default: the same")
    add(
        "--more_seeds",
        nargs="+",
        type=int,
        default=[],
        metavar="SEED",
        help="of the settings that the others have chosen",
    )
    add_running(parser)
    return parser
