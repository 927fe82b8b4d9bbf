"""Attack finished runs: few bits, relearning; what they find is kept in each run folder.

python src/exec/attack.py RUN [RUN ...] [--config_file CONFIG.json] [--attack.key value ...]

RUN is the folder of a run that kept its model, or of an evaluation without training (origin).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from wagle.cli import program
from wagle.config import AttackConfig, load_config
from wagle.errors import ConfigError
from wagle.terminal import say

COLUMNS = ("before", "after", "retain-only", "original", "Q", "R", "gap")
"""Knowledge before and after an attack, after it also of the other models; what follows from it."""


def main(argv: Sequence[str]) -> int:
    """Attack one run after the other."""
    words = list(argv)
    folders = []
    while words and not words[0].startswith("-"):
        folders.append(Path(words.pop(0)))
    name = program("attack")
    config = load_config(
        words, AttackConfig, prog=f"{name} RUN [RUN ...]", description=__doc__.partition("\n")[0]
    )
    if not folders:
        raise ConfigError(f"give run folders first: {name} RUN [RUN ...] [--attack.key value ...]")
    # Everything heavy comes after the configuration has been found right.
    from wagle.commands.mask import print_table
    from wagle.loggers.files import write_figure
    from wagle.model.attack import Attack
    from wagle.reporting.attack_figures import draw_attacks
    from wagle.reporting.attacks import attack_lines

    for folder in folders:
        found = Attack(folder, config).make()
        print_table(str(folder), COLUMNS, attack_lines(found), "{:.3f}".format)
        say(f"knowledge is the {found['metric']}")
        for picture, figure in draw_attacks(found).items():
            for path in write_figure(folder / "images" / picture, figure):
                say(f"wrote {path}", sys.stderr)
    return 0
