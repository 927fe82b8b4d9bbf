"""TOFU's official scores from a run's tofu.json or from an official evaluation log.

python src/exec/score_tofu.py RUN/tofu.json --retain_results RETAIN_RUN/tofu.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from src.errors import ConfigError
from src.exec.entry import run_main


def main(argv: Sequence[str]) -> int:
    """Print all scores of one file."""
    parser = argparse.ArgumentParser(
        prog="score_tofu.py", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    form = "a run's tofu.json or an official eval_log_aggregated.json"
    parser.add_argument("results", type=Path, help=form)
    parser.add_argument(
        "--retain_results",
        type=Path,
        metavar="FILE",
        help=f"{form}, of the model that never saw the forget set; gives Forget Quality",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    arguments = parser.parse_args(argv)
    paths = [path for path in (arguments.results, arguments.retain_results) if path is not None]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"there is no file {path}; give {form}")
    # scipy comes after the command line has been found right
    from src.metrics.tofu_official import load_losses, official_scores

    scores = official_scores(*(load_losses(path) for path in paths))
    if arguments.json:
        print(json.dumps(scores, indent=2))
    else:
        for name, value in scores.items():
            print(f"{name:26} {value:14.8g}")
    return 0


if __name__ == "__main__":
    run_main(main)
