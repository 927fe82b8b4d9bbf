"""Fine-tune: make the model to be unlearned, or the retain-only model.

python src/exec/fine_tune.py --config_file configs/demo/fine_tune.json
"""

from __future__ import annotations

from collections.abc import Sequence

from wagle.cli import program
from wagle.config import FineTuneConfig, load_config
from wagle.planning.flag import split_plan
from wagle.terminal import say


def main(argv: Sequence[str]) -> int:
    """Run one fine-tuning configuration."""
    plan, argv = split_plan(argv)
    config = load_config(
        argv, FineTuneConfig, prog=program("fine-tune"), description=__doc__.splitlines()[0]
    )
    if plan is not None:
        from wagle.planning.report import show_plan

        show_plan(config, plan)
        return 0
    from wagle.model.fine_tuning import fine_tune_from_config

    folder = fine_tune_from_config(config)
    say(f"saved the fine-tuned model to {folder}")
    return 0
