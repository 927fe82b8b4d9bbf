"""Attack finished runs: few bits, relearning; what they find is kept in each run folder.

python src/exec/attack.py RUN [RUN ...] [--config_file CONFIG.json] [--attack.key value ...]

RUN is the folder of a run that kept its model, or of an evaluation without training (origin).
"""

from __future__ import annotations

from collections.abc import Sequence

from wagle.commands.finished_runs import read_command_line
from wagle.config import AttackConfig
from wagle.terminal import say

COLUMNS = ("before", "after", "retain-only", "original", "Q", "R", "gap")
"""Knowledge before and after an attack, after it also of the other models; what follows from it."""


def main(argv: Sequence[str]) -> int:
    """Attack one run after the other."""
    folders, config = read_command_line(argv, "attack", AttackConfig, __doc__.partition("\n")[0])
    # Everything heavy comes after the configuration has been found right.
    from wagle.commands.showing import print_table, write_figure
    from wagle.model.attack import Attack
    from wagle.model.finished import finished_run
    from wagle.model.quantization import QUANTIZERS
    from wagle.model.relearning import PRESETS
    from wagle.reporting.attack_figures import draw_attacks
    from wagle.reporting.attacks import attack_lines

    for folder in folders:
        finished_run(folder)  # the last is looked at before work on the first begins
    for folder in folders:
        found = Attack(folder, config).make()
        lines = attack_lines(found)
        for title, kinds in ("few bits", [*QUANTIZERS]), ("relearning", [*PRESETS]):
            rows = {name: line for name, line in lines.items() if name.split()[0] in kinds}
            if rows:
                print_table(f"{folder}: {title}", COLUMNS, rows, "{:.3f}".format)
        say(f"knowledge is the {found['metric']}")
        for picture, figure in draw_attacks(found).items():
            write_figure(folder / "images" / picture, figure)
    return 0
