"""Fine-tune: make the model to be unlearned, or the retain-only model.

python src/exec/fine_tune.py --config_file configs/demo/fine_tune.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from src.config import FINE_TUNE_KEYS, load_config
from src.exec.entry import run_main
from src.terminal import say


def main(argv: Sequence[str]) -> int:
    """Run one fine-tuning configuration."""
    config = load_config(
        argv, keys=FINE_TUNE_KEYS, prog="fine_tune.py", description=__doc__.splitlines()[0]
    )
    from src.model.fine_tuning import fine_tune_from_config

    folder = fine_tune_from_config(config)
    say(f"saved the fine-tuned model to {folder}")
    return 0


if __name__ == "__main__":
    run_main(main)
