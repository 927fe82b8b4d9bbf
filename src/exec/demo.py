"""The main job on the embedded benchmark: fine-tune, unlearn, compare.

python src/exec/demo.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from src.config import FINE_TUNE_KEYS, load_config
from src.exec.entry import run_main

CONFIGS = ROOT / "configs" / "demo"
RESULTS = ROOT / "files" / "results" / "unlearn_demo"
METHODS = ("GradDiff", "GradDiff+WAGLE", "NPO", "NPO+WAGLE", "PO", "PO+WAGLE")


def main(argv: Sequence[str]) -> int:
    """Run the demo; finished parts are kept, so an interrupted one goes on where it stopped."""
    if argv:
        print(__doc__)
        return 0 if argv[0] in ("-h", "--help") else 2
    import os

    os.chdir(ROOT)
    from src.loggers import JsonLogger
    from src.model.fine_tuning import fine_tune_from_config
    from src.model.unlearn import Unlearn
    from src.reporting.comparison import comparison_table, save_figures
    from src.reporting.page import write_report
    from src.reporting.runs import read_run

    config = load_config(
        ["-C", str(CONFIGS / "fine_tune.json")], keys=FINE_TUNE_KEYS, prog="demo", description=""
    )
    print("1. the model to be unlearned")
    fine_tune_from_config(config)
    runs = []
    for number, name in enumerate(("Original", *METHODS), start=2):
        print(f"{number}. {name}")
        options = ["-C", str(CONFIGS / f"{METHODS[0] if name == 'Original' else name}.json")]
        if name == "Original":
            options += ["--unlearn.unlearn_method", "origin"]
        folder = RESULTS / name
        config = load_config(options, prog="demo", description="")
        Unlearn(config, JsonLogger(folder)).run()
        runs.append(read_run(folder, name))
    comparison_table(runs, RESULTS / "table.md")
    save_figures(runs, RESULTS / "figures")
    write_report(runs, RESULTS / "report.html")
    print(f"report: {RESULTS / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_main(main)
