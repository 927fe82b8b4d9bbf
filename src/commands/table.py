"""Make a table of the paper: plan its runs, run what is missing, write it.

python src/exec/reproduce_tables.py --table tofu --config_file configs/tofu --seeds 0 1 2

Any --section.key value goes to every run. What is done is found again by its configuration, so the
same command goes on after a failure, an interruption or a kill. Exit status: 0 done, 1 a run has
failed, 2 wrong configuration.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from wagle.cli import program
from wagle.errors import ConfigError
from wagle.reporting.executor import Start, command_of, start_here, submit_with_submitit
from wagle.reporting.plan import plan_runs
from wagle.reporting.request import TABLES, TableRequest
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
        seeds=tuple(dict.fromkeys(options.seeds)),
        overrides=overrides,
    )
    runs = plan_runs(request)
    command = f"{program('table')} {shlex.join(argv)}"
    reproduction = Reproduction(options.table, runs, output, command)
    missing = reproduction.missing
    for run in missing:
        command_of(run, options.processes)  # what cannot be started is said before anything is
    if options.dry_run:
        for run in missing:
            print(shlex.join(command_of(run, options.processes)))
        return 0
    slots = _slots(options, len(missing))
    for note in dict.fromkeys(note for run in runs for note in run.config.notices):
        say(f"note: {note}", sys.stderr)
    print(reproduction.plan(slots), flush=True)
    if missing:
        reproduction.run(_starter(options, output, slots), slots)
    table = reproduction.write()
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
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    add("-o", dest="output", type=Path, help="folder; default: files/results/tables/CONFIG_FILE")
    add("--jobs", type=_count, help="runs at a time; default: one for each device, else one")
    add("--devices", nargs="+", default=[], help="such as cuda:0 cuda:1; one for each job")
    add(
        "--processes",
        type=_count,
        default=1,
        help="of each run, started by torchrun, each with a device of its own; the batches that a "
        "step accumulates are shared out among them",
    )
    add("--executor", choices=("local", "slurm", "submitit-local"), default="local")
    add(
        "--submitit",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of submitit's AutoExecutor: gpus_per_node=1 slurm_partition=gpu timeout_min=600",
    )
    add("--dry_run", action="store_true", help="print the commands that are left, do nothing")
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return count


def _slots(options: argparse.Namespace, runs: int) -> int:
    """How many runs go on at a time; a cluster queues what it has no room for."""
    if options.jobs:
        return options.jobs
    if options.executor == "slurm":
        return max(runs, 1)
    return max(len(options.devices) // options.processes, 1)


def _starter(options: argparse.Namespace, output: Path, slots: int) -> Start:
    if options.executor == "local":
        if options.submitit:
            raise ConfigError("--submitit is for --executor slurm or submitit-local")
        return start_here(output / "logs", options.devices, slots, options.processes)
    if options.devices:
        raise ConfigError("--devices is for --executor local; submitit gives each job its own")
    cluster = "local" if options.executor == "submitit-local" else "slurm"
    parameters = _parameters(options.submitit)
    return submit_with_submitit(output / "logs", cluster, parameters, options.processes)


def _parameters(pairs: Sequence[str]) -> dict[str, int | str]:
    parameters: dict[str, int | str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--submitit takes KEY=VALUE, not {pair!r}")
        parameters[name] = int(value) if value.isdecimal() else value
    return parameters
