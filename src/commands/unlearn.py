"""Unlearn: load, build data, make or load the mask, train, save, evaluate.

python src/exec/unlearn_model.py --config_file configs/tofu/GradDiff+WAGLE.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wagle.cli import program
from wagle.config import load_config
from wagle.planning.flag import split_plan
from wagle.terminal import say


def main(argv: Sequence[str]) -> int:
    """Run one configuration."""
    plan, argv = split_plan(argv)
    config = load_config(argv, prog=program("unlearn"), description=__doc__.splitlines()[0])
    # Everything heavy comes after the configuration has been found right.
    if plan is not None:
        from wagle.planning.report import show_plan

        show_plan(config, plan)
        return 0
    from wagle.commands.results import make_logger, print_results
    from wagle.model.unlearn import Unlearn

    for notice in config.notices:
        say(f"note: {notice}", sys.stderr)
    unlearning = Unlearn(config, make_logger(config))
    print_results(unlearning.run(), unlearning.logger.folder)
    return 0
