"""TOFU's official scores from a run's tofu.json or from another program's evaluation log.

python src/exec/score_tofu.py RUN/tofu.json --retain_results RETAIN_RUN/tofu.json [--export FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wagle.cli import program
from wagle.errors import ConfigError, WagleError

if TYPE_CHECKING:
    from wagle.metrics.tofu_results import TofuResults

_FORMS = (
    "a run's tofu.json, the TOFU authors' eval_log_aggregated.json or open-unlearning's "
    "TOFU_EVAL.json"
)


def main(argv: Sequence[str]) -> int:
    """Print all scores of one file."""
    parser = argparse.ArgumentParser(
        prog=program("score"), description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("results", type=Path, help=_FORMS)
    parser.add_argument(
        "--retain_results",
        type=Path,
        metavar="FILE",
        help=f"{_FORMS}, of the model that never saw the forget set; gives Forget Quality",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="write them there as open-unlearning does: TOFU_EVAL.json and TOFU_SUMMARY.json",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    arguments = parser.parse_args(argv)
    paths = [path for path in (arguments.results, arguments.retain_results) if path is not None]
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"there is no file {path}; give {_FORMS}")
    # numpy and scipy come after the command line has been found right
    from wagle.metrics.tofu_files import check_comparable, load_results
    from wagle.metrics.tofu_official import official_scores

    results, *retain = (load_results(path) for path in paths)
    if results.missing:
        raise WagleError(
            f"{arguments.results} lacks {results.missing}; what it has is enough of a retain-only "
            "model (--retain_results), not for the scores of one"
        )
    for retain_model in retain:
        check_comparable(retain_model, results, arguments.retain_results)
    scores = {metric.key: value for metric, value in official_scores(results, *retain).items()}
    if results.protocol not in (None, "official"):
        print(
            f"evaluation.protocol {results.protocol}: other losses than the official ones, the "
            "scores are not comparable; evaluate with --evaluation.protocol official",
            file=sys.stderr,
        )
    if arguments.export is not None:
        _export(arguments, results, *retain)
    if arguments.json:
        print(json.dumps({"protocol": results.protocol, **scores}, indent=2))
    else:
        print(f"{'protocol':26} {results.protocol or 'unknown':>14}")
        for name, value in scores.items():
            print(f"{name:26} {value:14.8g}")
    return 0


def _export(
    arguments: argparse.Namespace, results: TofuResults, retain_model: TofuResults | None = None
) -> None:
    """Write both files of open-unlearning, with the attacks' scores that lie beside the results."""
    from wagle.loggers.files import write_json
    from wagle.loggers.run_folder import read_result_file
    from wagle.metrics.tofu_log import evaluation_log, summary

    if results.protocol != "official":
        raise WagleError(
            f"--export: {arguments.results} has results of evaluation.protocol "
            f"{results.protocol or 'unknown'}, and TOFU_EVAL.json holds official ones; evaluate "
            "with --evaluation.protocol official"
        )
    attacked = None
    scores = arguments.results.with_name("privacy.json")
    if results.holdout and scores.is_file():
        attacked = read_result_file(scores)
        if not isinstance(attacked, dict) or attacked.get("AUC") != results.holdout:
            raise WagleError(f"{scores} is not of the evaluation of {arguments.results}")
    log = evaluation_log(results, retain_model, attacked)
    for name, content in (("EVAL", log), ("SUMMARY", summary(log))):
        path = arguments.export / f"TOFU_{name}.json"
        write_json(path, content)
        print(f"written: {path}", file=sys.stderr)
