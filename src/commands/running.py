"""What commands that run many runs have in common: how many at a time, where, and what is said."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wagle.cli import program
from wagle.errors import ConfigError
from wagle.reporting.executor import Start, command_of, start_here, submit_with_submitit
from wagle.reporting.table_masks import MASKS
from wagle.terminal import say

if TYPE_CHECKING:
    from wagle.reporting.reproduction import Reproduction


def runs_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of a command about many runs."""
    return argparse.ArgumentParser(
        prog=program(command),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Models are not kept unless --unlearn.save_model true is given.",
    )


def add_choices(parser: argparse.ArgumentParser, *, masks: str, folder: str) -> None:
    """Options about which runs there are.

    Args:
        masks: which are the default, for the help.
        folder: in which the command's folders lie by default, for the help.
    """
    add = parser.add_argument
    add(
        *("--config_file", "--config-file", "-C"),
        dest="config_file",
        type=Path,
        required=True,
        help="a configuration for all methods, or a folder with a METHOD.json for each; the ratio "
        "of METHOD+WAGLE.json, if there is one, is the usual one",
    )
    add("--methods", nargs="+", help="default: GradDiff, NPO and PO, as far as there are files")
    add("--masks", nargs="+", metavar="MASK", help=f"of {', '.join(MASKS)}{masks}")
    add("--ratios", nargs="+", type=float, metavar="RATIO", help="share of the weights")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    add("-o", dest="output", type=Path, help=f"folder; default: {folder}/CONFIG_FILE")


def add_running(parser: argparse.ArgumentParser) -> None:
    """Options about how runs are run."""
    add = parser.add_argument
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


def print_missing(reproduction: Reproduction, options: argparse.Namespace) -> None:
    """The commands of the runs that are left."""
    for command in _commands(reproduction, options):
        print(shlex.join(command))


def _commands(reproduction: Reproduction, options: argparse.Namespace) -> list[list[str]]:
    return [command_of(run, options.processes) for run in reproduction.missing]


def run_missing(reproduction: Reproduction, options: argparse.Namespace) -> None:
    """Say what is done and what is left, and run that.

    Raises:
        KeyboardInterrupt: on SIGINT or SIGTERM, after the runs that were going on have ended.
    """
    missing = len(_commands(reproduction, options))  # what cannot be started is said first
    slots = _slots(options, missing)
    for note in dict.fromkeys(note for run in reproduction.runs for note in run.config.notices):
        say(f"note: {note}", sys.stderr)
    print(reproduction.plan(slots), flush=True)
    if missing:
        reproduction.run(_starter(options, reproduction.output, slots), slots)


def end(reproduction: Reproduction, files: str) -> int:
    """Say what has been written, draw, and return the exit status.

    Args:
        files: the ends of the written files' names.
    """
    say(f"written: {reproduction.output / reproduction.table}{files}")
    if figures := reproduction.draw():
        say(f"figures: {', '.join(map(str, figures))}")
    return 1 if reproduction.failures else 0


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
