"""Look into finished runs: where do the mask, the update and the knowledge sit?

python src/exec/depth.py RUN [RUN ...] --depth.retain_model MODEL [--depth.key value ...]

RUN is the folder of a run that kept its model, or of an evaluation without training (origin).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wagle.commands.finished_runs import read_command_line
from wagle.config import DepthConfig
from wagle.terminal import say


def main(argv: Sequence[str]) -> int:
    """Look into one run after the other."""
    folders, config = read_command_line(argv, "depth", DepthConfig, __doc__.partition("\n")[0])
    # Everything heavy comes after the configuration has been found right.
    from wagle.commands.showing import print_table, write_figure
    from wagle.model.depth import Depth
    from wagle.model.finished import finished_run
    from wagle.reporting.depth import COLUMNS, depth_lines
    from wagle.reporting.depth_figures import draw_depth
    from wagle.reporting.runs import read_run

    for folder in folders:
        finished_run(folder)  # the last is looked at before work on the first begins
    runs = []
    for folder in folders:
        run, found = read_run(folder), Depth(folder, config).make()
        runs.append((run.method, run.mask, found))
        print_table(str(folder), COLUMNS, depth_lines(found), "{:.3g}".format)
        told, asked = found["UDS rows"]
        score = f"UDS {found['UDS']:.3f}" if "UDS" in found else "no UDS"
        say(f"{score}: {told} of {asked} rows are known by some block")
        write_figure(folder / "images" / "depth", draw_depth(runs[-1:]))
    if config.depth.figure is not None:
        write_figure(Path(config.depth.figure), draw_depth(runs))
    return 0
