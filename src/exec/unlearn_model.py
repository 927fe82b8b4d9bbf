"""Unlearn: load, build data, make or load the mask, train, save, evaluate.

python src/exec/unlearn_model.py --config_file configs/tofu/GradDiff+WAGLE.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from src.config import load_config
from src.exec.entry import run_main
from src.terminal import say


def main(argv: Sequence[str]) -> int:
    """Run one configuration."""
    config = load_config(argv, prog="unlearn_model.py", description=__doc__.splitlines()[0])
    # Everything heavy comes after the configuration has been found right.
    from src.exec.reporting import make_logger, print_results
    from src.model.unlearn import Unlearn

    for notice in config.notices:
        say(f"note: {notice}", sys.stderr)
    logger = make_logger(config)
    results = Unlearn(config, logger).run()
    print_results(results, logger.folder)
    return 0


if __name__ == "__main__":
    run_main(main)
