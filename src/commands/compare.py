"""Compare finished runs: how sure is it that one forgets more, or keeps more?

python src/exec/compare.py RUN RUN [RUN ...] [--config_file CONFIG.json] [--compare.key value ...]

All are compared with the first, from the answers that the runs have kept; no model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from wagle.cli import program
from wagle.config import CompareConfig, load_config
from wagle.errors import ConfigError
from wagle.terminal import say, show_table


def main(argv: Sequence[str]) -> int:
    """Compare the runs that are named first."""
    words = list(argv)
    folders = []
    while words and not words[0].startswith("-"):
        folders.append(Path(words.pop(0)))
    name = program("compare")
    config = load_config(
        words,
        CompareConfig,
        prog=f"{name} RUN RUN [RUN ...]",
        description=__doc__.partition("\n")[0],
    )
    if len(folders) < 2:
        raise ConfigError(
            f"give run folders first: {name} RUN RUN [RUN ...] [--compare.key value ...]"
        )
    from wagle.loggers.files import write_figure, write_json
    from wagle.reporting.compared import Compared
    from wagle.reporting.compared_figures import draw_differences, draw_front

    section = config.compare
    compared = Compared.read(
        folders,
        original=Path(section.original) if section.original else None,
        retain=Path(section.retain) if section.retain else None,
        resamples=section.resamples,
        seed=section.seed,
    )
    headline = compared.headline(section.forgetting, section.utility)
    output = Path(section.output)
    document = {"compare": asdict(section), **compared.document(headline)}
    write_json(output / "compare.json", document)
    figures = {"differences": draw_differences(compared)}
    if headline is not None:
        figures["front"] = draw_front(compared, headline)
    paths = [path for n, figure in figures.items() for path in write_figure(output / n, figure)]
    for other in compared.runs[1:]:
        show_table(compared.table(other))
    say("*: the interval over questions, drawn together for both runs, does not hold 0")
    if without := document["numbers without rows"]:
        say(f"not compared, as no rows of it are kept: {', '.join(without)}")
    if headline is None:
        say("no front: compare.forgetting and compare.utility say which numbers it is of")
    say(f"written: {', '.join(map(str, [output / 'compare.json', *paths]))}")
    return 0
