"""Plant the forget set in known weights, and judge every score by whether it finds them.

python src/exec/plant.py --config_file configs/demo/plant.json [--plant.key value ...]

overall.model_name is a model that never saw the forget set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wagle.cli import program
from wagle.config import PlantConfig, load_config


def main(argv: Sequence[str]) -> int:
    """Plant and judge what has not been judged yet."""
    config = load_config(
        argv, PlantConfig, prog=program("plant"), description=__doc__.partition("\n")[0]
    )
    # Everything heavy comes after the configuration has been found right.
    from wagle.commands.showing import print_table, write_figure
    from wagle.model.plant import Plant
    from wagle.reporting.plant import kinds_of, plant_tables, shown
    from wagle.reporting.plant_figures import draw_plant

    found = Plant(config).make()
    for title, lines in plant_tables(found).items():
        print_table(title, kinds_of(found), lines, shown)
    for picture, figure in draw_plant(found).items():
        write_figure(Path(config.plant.output_dir) / "images" / picture, figure)
    return 0
