"""All scores of a run of TOFU's official protocol or of MUSE, or of another program's log.

python src/exec/score_tofu.py RUN [--retain_results RETAIN_RUN] [--export FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagle.cli import program
from wagle.errors import ConfigError, WagleError

if TYPE_CHECKING:
    from wagle.metrics.evaluation_log import Log
    from wagle.metrics.tofu_results import TofuResults

_FORMS = (
    "the folder of a run of TOFU or MUSE, a run's tofu.json, the TOFU authors' "
    "eval_log_aggregated.json, or open-unlearning's TOFU_EVAL.json or MUSE_EVAL.json"
)


def main(argv: Sequence[str]) -> int:
    """Print all scores of one model."""
    parser = argparse.ArgumentParser(
        prog=program("score"), description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("results", type=Path, help=_FORMS)
    parser.add_argument(
        "--retain_results",
        type=Path,
        metavar="FILE",
        help="the same, or MUSE's privleak.json, of the model that never saw what is to be "
        "forgotten; gives Forget Quality, or what MUSE's leakage is relative to",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="write them there as open-unlearning does: TOFU_EVAL.json and TOFU_SUMMARY.json, or "
        "those of MUSE",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    arguments = parser.parse_args(argv)
    for path in (arguments.results, arguments.retain_results):
        if path is not None and not path.exists():
            raise ConfigError(f"there is no file or folder {path}; give {_FORMS}")
    scores = _muse(arguments) if _is_of_muse(arguments.results) else _tofu(arguments)
    if arguments.json:
        print(json.dumps(scores, indent=2))
    else:
        for name, value in scores.items():
            shown = f"{value:.8g}" if isinstance(value, float) else value or "unknown"
            print(f"{name:27} {shown:>14}")
    return 0


def _is_of_muse(path: Path) -> bool:
    """Whether a file is a log of MUSE, or a folder of no run of TOFU."""
    from wagle.loggers.run_folder import read_result_file

    if path.is_dir():
        return not (path / "tofu.json").is_file()
    document = read_result_file(path)
    return isinstance(document, dict) and "forget_knowmem_ROUGE" in document


def _muse(arguments: argparse.Namespace) -> dict[str, Any]:
    from wagle.metrics.muse_files import evaluation_log, load_results, retained_aucs

    results, retained = load_results(arguments.results), None
    if arguments.retain_results is not None:
        retained = retained_aucs(arguments.retain_results, results.questions)
    if arguments.export is not None:
        if not results.stems:
            raise WagleError(
                f"--export: {arguments.results} has ROUGE of evaluation.rouge_stems false, and "
                "MUSE_EVAL.json holds that of stems; evaluate with --evaluation.rouge_stems true"
            )
        _write(arguments.export, "MUSE", evaluation_log(results, retained))
    return {metric.key: value for metric, value in results.numbers(retained).items()}


def _tofu(arguments: argparse.Namespace) -> dict[str, Any]:
    # numpy and scipy come after the command line has been found right
    from wagle.metrics.tofu_files import check_comparable, load_results
    from wagle.metrics.tofu_official import official_scores

    paths = [path for path in (arguments.results, arguments.retain_results) if path is not None]
    files = [path / "tofu.json" if path.is_dir() else path for path in paths]
    results, *retain = (load_results(path) for path in files)
    if results.missing:
        raise WagleError(
            f"{files[0]} lacks {results.missing}; what it has is enough of a retain-only "
            "model (--retain_results), not for the scores of one"
        )
    for retain_model in retain:
        check_comparable(retain_model, results, files[1])
    scores = {metric.key: value for metric, value in official_scores(results, *retain).items()}
    if results.protocol not in (None, "official"):
        print(
            f"evaluation.protocol {results.protocol}: other losses than the official ones, the "
            "scores are not comparable; evaluate with --evaluation.protocol official",
            file=sys.stderr,
        )
    if arguments.export is not None:
        _write(arguments.export, "TOFU", _tofu_log(files[0], results, *retain))
    return {"protocol": results.protocol, **scores}


def _tofu_log(path: Path, results: TofuResults, retain_model: TofuResults | None = None) -> Log:
    """What open-unlearning writes, with the attacks' scores that lie beside the results."""
    from wagle.loggers.run_folder import read_result_file
    from wagle.metrics.tofu_log import evaluation_log

    if results.protocol != "official":
        raise WagleError(
            f"--export: {path} has results of evaluation.protocol "
            f"{results.protocol or 'unknown'}, and TOFU_EVAL.json holds official ones; evaluate "
            "with --evaluation.protocol official"
        )
    attacked = None
    scores = path.with_name("privacy.json")
    if results.holdout and scores.is_file():
        attacked = read_result_file(scores)
        if not isinstance(attacked, dict) or attacked.get("AUC") != results.holdout:
            raise WagleError(f"{scores} is not of the evaluation of {path}")
    return evaluation_log(results, retain_model, attacked)


def _write(folder: Path, benchmark: str, log: Log) -> None:
    from wagle.loggers.files import write_json
    from wagle.metrics.evaluation_log import summary

    for name, content in (("EVAL", log), ("SUMMARY", summary(log))):
        path = folder / f"{benchmark}_{name}.json"
        write_json(path, content)
        print(f"written: {path}", file=sys.stderr)
