"""Sample other answers to the forget questions from the model, once, for the method AltPO.

python src/exec/alternates.py --config_file CONFIG.json --unlearn.AltPO+FT.alternates FILE.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wagle.cli import program
from wagle.config import load_config
from wagle.errors import ConfigError
from wagle.terminal import say


def main(argv: Sequence[str]) -> int:
    """Write one file of alternates; an interrupted one is gone on with."""
    config = load_config(argv, prog=program("alternates"), description=__doc__.splitlines()[0])
    path = config["unlearn.AltPO+FT.alternates"]
    if path is None:
        raise ConfigError("unlearn.AltPO+FT.alternates: say which file the alternates go to")
    from wagle.dataset.checking import check_questions
    from wagle.dataset.pairing import ALTERNATE
    from wagle.model.alternates import write_alternates
    from wagle.model.environment import rows_fingerprint
    from wagle.model.opened import OpenedRun

    run = OpenedRun(config)
    rows = run.data.forget_rows()
    named = (config.dataset.forget_dataset_name, rows)
    check_questions("alternates", (ALTERNATE,), named, named)
    run.load()
    origin = {
        "model": run.fingerprints["model"],
        "rows": rows_fingerprint(rows),
        "template": run.template.record(),
    }
    write_alternates(
        Path(path),
        run.model,
        run.tokenizer,
        run.template,
        [{"question": row["question"], "answer": row["answer"]} for row in rows],
        origin=origin,
        seed=config.overall.seed,
        batch_size=config.evaluation.batch_size,
    )
    say(f"wrote {path}")
    return 0
