"""Compare finished runs: how sure is it that one forgets more, or keeps more?

python src/exec/compare.py RUN [RUN ...] [--config_file CONFIG.json] [--compare.key value ...]

All are compared with the first, from the answers that the runs have kept. With equal_utility their
models are mixed with the original and compared anew, with null_masks each run is repeated with
random masks; both are kept in run folders below the output, and go on after an interruption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wagle.commands.finished_runs import read_command_line
from wagle.config import CompareConfig
from wagle.errors import ConfigError
from wagle.terminal import say, show_table

if TYPE_CHECKING:
    from wagle.config.compare_keys import CompareSection
    from wagle.metrics.benchmark import Headline
    from wagle.model.equal_utility import Search
    from wagle.reporting.compared import Compared
    from wagle.reporting.runs import Run


def main(argv: Sequence[str]) -> int:
    """Compare the runs that are named first."""
    folders, config = read_command_line(argv, "compare", CompareConfig, __doc__.partition("\n")[0])
    from wagle.loggers.files import write_json
    from wagle.reporting.compared_figures import draw_compared

    section, output = config.compare, Path(config.compare.output)
    compared = _read(folders, section)
    headline = compared.headline(section.forgetting, section.utility)
    document = {"compare": asdict(section), **compared.document(headline)}
    _show(compared, headline, document)
    paths = draw_compared(compared, headline, output)
    write_json(output / "compare.json", document)
    mixed = None
    if section.equal_utility is not None:
        mixed, document["equal utility"], more = _at_equal_utility(compared, headline, section)
        write_json(output / "compare.json", document)
        paths += more
    if section.null_masks:
        document["null masks"], more = _against_null(compared, mixed, headline, section)
        write_json(output / "compare.json", document)
        paths += more
    say(f"written: {', '.join(map(str, [output / 'compare.json', *paths]))}")
    return 0


def _read(folders: Sequence[Path], section: CompareSection, titles: Sequence[str] = ()) -> Compared:
    from wagle.reporting.compared import Compared

    return Compared.read(
        folders,
        titles=titles,
        original=Path(section.original) if section.original else None,
        retain=Path(section.retain) if section.retain else None,
        resamples=section.resamples,
        seed=section.seed,
    )


def _show(compared: Compared, headline: Headline | None, document: Mapping[str, Any]) -> None:
    for grid in compared.tables():
        show_table(grid)
    if len(compared.runs) > 1:
        say("*: the interval over questions, drawn together for both runs, does not hold 0")
    if without := document["numbers without rows"]:
        say(f"not compared, as no rows of it are kept: {', '.join(without)}")
    if headline is None:
        say("no front: compare.forgetting and compare.utility say which numbers it is of")


def _named(headline: Headline | None, key: str) -> Headline:
    if headline is None:
        raise ConfigError(
            f"compare.{key} asks about forgetting and utility, and the benchmark does not say what "
            "these are; give compare.forgetting and compare.utility"
        )
    return headline


def _at_equal_utility(
    compared: Compared, headline: Headline | None, section: CompareSection
) -> tuple[Compared, dict[str, Any], list[Path]]:
    """The runs' models mixed with the original, searched, shown and drawn."""
    from wagle.reporting.compared_figures import draw_compared

    output = Path(section.output) / "equal_utility"
    found = {
        part.run.title: _search(part.run, output / _place(part.run), compared, headline, section)
        for part in compared.runs
    }
    mixed = _read(
        [search.chosen.folder for search in found.values()],
        section,
        [f"{title}, λ = {search.chosen.share:.3g}" for title, search in found.items()],
    )
    document = mixed.document(headline)
    _show(mixed, headline, document)
    searches = {title: search.as_dict() for title, search in found.items()}
    return mixed, {"searches": searches, **document}, draw_compared(mixed, headline, output)


def _search(
    run: Run,
    output: Path,
    compared: Compared,
    headline: Headline | None,
    section: CompareSection,
) -> Search:
    """The mixture of a run's model with the original that is as useful as asked for."""
    from wagle.model.equal_utility import search_equal_utility
    from wagle.reporting.planned import ORIGINAL

    assert section.equal_utility is not None
    original = compared.references.get(ORIGINAL)
    found = search_equal_utility(
        run,
        _named(headline, "equal_utility"),
        output,
        share=section.equal_utility,
        evaluations=section.evaluations,
        original=original.run if original else None,
    )
    say(f"{run.title}: {found.describe()}")
    return found


def _against_null(
    compared: Compared,
    mixed: Compared | None,
    headline: Headline | None,
    section: CompareSection,
) -> tuple[dict[str, Any], list[Path]]:
    """Each run against random masks, shown and drawn; at equal utility, too, where it is mixed."""
    from wagle.loggers.files import write_figure
    from wagle.model.null_masks import run_null_masks
    from wagle.reporting.null_distribution import (
        draw_null,
        draw_strips,
        null_document,
        null_table,
    )
    from wagle.reporting.runs import read_run

    output = Path(section.output) / "null_masks"
    references = {title: part.run for title, part in compared.references.items()}
    documents: dict[str, Any] = {}
    paths, among = [], []
    for number, part in enumerate(compared.runs):
        place = output / _place(part.run)
        folders = run_null_masks(part.run, section.null_masks, place, save_models=mixed is not None)
        null = [read_run(folder) for folder in folders]
        documents[part.run.title] = null_document(part.run, null)
        show_table(null_table(part.run, null))
        among.append((part, null))
        if headline is not None:
            figure = draw_null(part.run, null, references, headline)
            paths += write_figure(place / "null", figure)
        if mixed is not None:
            searches = [
                _search(run, place / "equal_utility" / run.folder.name, compared, headline, section)
                for run in null
            ]
            null = [read_run(search.chosen.folder) for search in searches]
            at_equal = null_document(mixed.runs[number].run, null)
            shares = [search.chosen.share for search in searches]
            documents[part.run.title]["at equal utility"] = {"shares": shares, **at_equal}
            show_table(null_table(mixed.runs[number].run, null))
            among.append((mixed.runs[number], null))
    if headline is not None:
        paths += write_figure(output / "null", draw_strips(among, references, headline))
    return documents, paths


def _place(run: Run) -> str:
    """A folder's name that no other run of the same name has."""
    return f"{run.folder.resolve().name}-{run.manifest['fingerprint'][:8]}"
