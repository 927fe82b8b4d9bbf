"""The report: one self-contained HTML page about one or several runs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from wagle.loggers.files import write_text
from wagle.loggers.run_folder import ATTACK, DEPTH
from wagle.metrics.benchmark import Headline, Metric
from wagle.metrics.benchmarks import find_metric
from wagle.reporting.answers import questions_of
from wagle.reporting.attack_figures import draw_attacks
from wagle.reporting.attacks import Q, R, attack_metric, report_numbers
from wagle.reporting.bootstrap import Drawn, draw_questions
from wagle.reporting.depth import UDS, depth_numbers
from wagle.reporting.depth_figures import draw_depth
from wagle.reporting.figures import draw_tradeoff
from wagle.reporting.groups import Group, group_runs
from wagle.reporting.mask_figures import draw_density
from wagle.reporting.runs import Run
from wagle.reporting.spread import Spread, clearly_best
from wagle.reporting.style import INK
from wagle.reporting.summary import (
    finding,
    mask_text,
    notes_on,
    number,
    shares,
    shown,
    summarize,
)
from wagle.reporting.training_figures import draw_evaluations, draw_training, measured_names
from wagle.terminal import plain

_FILES = Path(__file__).parent
_DARK_INK = "#e8e6e3"  # what the figures' ink becomes on a dark page
_NO_METRICS = ("task", "method", "mask", "density", "seed")


def write_report(runs: Sequence[Run], path: Path, original: Run | None = None) -> None:
    """Write the report as one HTML file that needs no network.

    Args:
        runs: in the order in which they appear, with distinct titles.
        path: of the page.
        original: the run of the model before unlearning; not given: the first such among ``runs``.

    Raises:
        WagleError: ``original`` was asked other questions than the runs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_report(runs, original))


def render_report(runs: Sequence[Run], original: Run | None = None) -> str:
    """The page that :func:`write_report` writes."""
    original = original or next((run for run in runs if run.is_original), None)
    groups = group_runs([*([original] if original else []), *(r for r in runs if r != original)])
    first = groups[0] if original else None
    unlearned = groups[1:] if original else groups
    everything = [run for group in groups for run in group.runs]
    benchmark = everything[0].benchmark
    asked = benchmark.answers
    drawn = _drawn(unlearned)
    lines = _lines(groups, first, drawn)
    found, notes = finding(unlearned, first, benchmark.headline, drawn), notes_on(everything)
    summaries = summarize(groups, benchmark)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        autoescape=True,
        finalize=_harmless,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Only this very script and style run; whatever a model wrote into the page cannot.
    style, script = ((_FILES / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return environment.get_template("report.html").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        runs=everything,
        groups=groups,
        original=original,
        unlearned=[group.first for group in unlearned],
        forget_sets=_distinct(unlearned, "dataset.forget_dataset_name"),
        models=_distinct(unlearned, "overall.model_name"),
        in_short=bool(found or notes or summaries),
        finding=found,
        headline=benchmark.headline,
        both_are_shares=benchmark.headline is not None and shares(benchmark.headline),
        notes=notes,
        summaries=summaries,
        main_lines=[line for line in lines if line.is_main],
        other_lines=[line for line in lines if not line.is_main],
        over_questions=bool(drawn),
        pictures=list(_pictures(groups, benchmark.headline)),
        questions=questions_of([group.first for group in unlearned], original, asked),
        sets=asked.sets,
        measures=asked.measures,
        settings=_settings(everything),
        environment=_side_by_side([_environment(run) for run in everything]),
    )


def _harmless(value: Any) -> Any:
    """What is put into the page, without control characters and marks that turn text around."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _distinct(groups: Sequence[Group], key: str) -> list[str]:
    return list(dict.fromkeys(str(group.first.config.get(key)) for group in groups))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ---------------------------------------------------------------------------------- numbers


class Line(NamedTuple):
    """A line of the table of numbers.

    Attributes:
        name: of the number.
        metric: what it is; ``None`` where nobody has explained it.
        cells: (text, whether it is clearly the best of the unlearned models), one for each group.
        references: what models have whose results the runs were given, by title.
        is_main: whether it is shown at once.
    """

    name: str
    metric: Metric | None
    cells: list[tuple[str, bool]]
    is_main: bool
    references: Mapping[str, str] = {}


_UPDATED = Metric("Weights updated", "Share of the weights that unlearning may change.", 0)
_TIME = Metric("Time", "Time to make the mask and to unlearn, without evaluation.", -1)


def _drawn(groups: Sequence[Group]) -> Drawn:
    """What is drawn to find out which of several groups is clearly the best."""
    runs = [run for group in groups for run in group.runs]
    names = {name: find_metric(run.benchmark, name) for run in runs for name in run.results}
    directed = {name for name, metric in names.items() if metric and metric.better}
    return draw_questions(runs, directed) if len(groups) > 1 else {}


def _lines(groups: Sequence[Group], original: Group | None, drawn: Drawn) -> list[Line]:
    columns = [
        [
            dict(_flat(run.results))
            | report_numbers(run.document(ATTACK))
            | depth_numbers(run.document(DEPTH))
            for run in group.runs
        ]
        for group in groups
    ]
    names = list(dict.fromkeys(name for column in columns for run in column for name in run))
    benchmarks = [group.first.benchmark for group in groups]
    columns_of_tables = {metric.key for b in benchmarks for metric in (*b.columns, R, Q, UDS)}
    main = [name for name in names if name in columns_of_tables] or names
    rivals = 1 if original else 0  # the original, which comes first, does not compete
    lines = []
    for name in names:
        found = (find_metric(benchmark, name) for benchmark in benchmarks)
        metric = next(
            (metric for metric in found if metric), attack_metric(name) or UDS.called(name)
        )
        spreads = [Spread.of([r[name] for r in column if name in r]) for column in columns]
        draws = [group.draws(name, drawn) for group in groups[rivals:]]
        best = clearly_best(spreads[rivals:], metric.better if metric else 0, draws)
        cells = [(shown(s), i - rivals == best) for i, s in enumerate(spreads)]
        lines.append(Line(name, metric, cells, name in main, _references(groups, name)))
    if any(run.trained for group in groups for run in group.runs):
        shares = [_of_trained(group, lambda run: run.results["density"]) for group in groups]
        seconds = [_of_trained(group, lambda run: run.unlearning_seconds) for group in groups]
        texts = ["–" if share is None else f"{share:.1%}" for share in shares]
        lines.append(Line(_UPDATED.key, _UPDATED, [(text, False) for text in texts], True))
        texts = ["–" if value is None else f"{value:,.0f} s" for value in seconds]
        lines.append(Line(_TIME.key, _TIME, [(text, False) for text in texts], True))
    return lines


def _references(groups: Sequence[Group], name: str) -> dict[str, str]:
    """What given models have of a number, where all runs that know it agree."""
    found: dict[str, set[str]] = {}
    for run in (run for group in groups for run in group.runs):
        for title, numbers in run.references.items():
            if name in numbers:
                found.setdefault(title, set()).add(number(numbers[name]))
    return {title: texts.pop() for title, texts in found.items() if len(texts) == 1}


def _of_trained(group: Group, value: Callable[[Run], float]) -> float | None:
    found = [value(run) for run in group.runs if run.trained]
    return statistics.fmean(found) if found else None


def _flat(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The metrics among the results, with those of nested groups."""
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif name not in _NO_METRICS and isinstance(value, int | float):
            yield prefix + name, value


# ---------------------------------------------------------------------------------- figures


class Picture(NamedTuple):
    """A figure for a light and for a dark page, as data URIs of SVG.

    Attributes:
        description: what it shows, for those who do not see it.
    """

    title: str
    description: str
    light: str
    dark: str
    width: float


def _pictures(groups: Sequence[Group], headline: Headline | None) -> Iterator[Picture]:
    measured = [g for g in groups if headline and all(g.spread(metric) for metric in headline)]
    if headline and len(measured) > 1:
        up = "down" if headline.forgetting.better < 0 else "up"
        right = "left" if headline.utility.better < 0 else "right"
        yield _picture(
            draw_tradeoff([group.point for group in measured], headline),
            "Forgetting against utility",
            f"Scatter plot, a point for each model; {up} and to the {right} is better. "
            "The numbers are in the tables above.",
        )
    runs = [run for group in groups for run in group.runs]
    logs = [(run.method, run.mask, run.log) for run in runs if run.log]
    if logs:
        yield _picture(
            draw_training(logs),
            "Training",
            "Curves of forget loss, retain loss, gradient norm and learning rate over the steps.",
        )
    entries = (entry for *_, log in logs for entry in log)
    columns = [metric.key for metric in groups[0].first.benchmark.columns]
    if names := measured_names(entries, columns):
        yield _picture(
            draw_evaluations(logs, names),
            "Measured during training",
            "Curves of what the models still knew, a panel for each number, over the steps.",
        )
    masks: dict[str, tuple[Any, list[str]]] = {}  # runs that share a mask share its picture
    for group in groups:
        mask = group.first.document("mask.json")
        if mask is not None:
            masks.setdefault(json.dumps(mask), (mask, []))[1].append(group.title)
    for mask, titles in masks.values():
        yield _picture(
            draw_density(mask["by layer and kind"], mask["density"]),
            f"What the mask selects: {', '.join(titles)}",
            "Heat map of the share of selected weights, layers downwards, kinds of weights "
            "across; the share is written in every cell.",
        )
    for run in runs:
        for name, figure in draw_attacks(run.document(ATTACK) or {"parts": {}}).items():
            kind, _, preset = name.partition("_")
            yield _picture(figure, f"{_ATTACKED[kind][0]}{preset}: {run.title}", _ATTACKED[kind][1])
    looked_into = [(run.method, run.mask, run.document(DEPTH) or {}) for run in runs]
    if looked_into := [found for found in looked_into if "blocks" in found[-1]]:
        yield _picture(
            draw_depth(looked_into),
            "Layer by layer",
            "Panels over the layers: what patching in the states of the retain-only and of the "
            "unlearned models costs, and where masks, scores and updates lie.",
        )


_ATTACKED = {
    "relearning": (
        "Relearning, ",
        "Curves of how probable the model finds the forget answers over the steps of relearning, "
        "with those of other models and of relearning within the mask, where there are any.",
    ),
    "bins": (
        "Few bits",
        "Steps: the share of the weights by how far they have moved, in widths of the bins that "
        "quantisation has.",
    ),
}


def _picture(figure: Figure, title: str, description: str) -> Picture:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):  # the same page every time
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    dark = svg.replace(INK, _DARK_INK)
    return Picture(title, description, _data_uri(svg), _data_uri(dark), figure.get_figwidth())


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


# ---------------------------------------------------------------------------- configuration


class Setting(NamedTuple):
    """A key with its value in each run."""

    key: str
    values: list[str]
    differs: bool


def _settings(runs: Sequence[Run]) -> list[Setting]:
    return _side_by_side([{k: _shown(v) for k, v in run.config.items()} for run in runs])


def _side_by_side(columns: Sequence[Mapping[str, str]]) -> list[Setting]:
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key, "–") for column in columns]
        rows.append(Setting(key, values, len(set(values)) > 1))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "not set" if value is None or value == [] else str(value)


def _environment(run: Run) -> dict[str, str]:
    """What a run ran on, from the manifest."""
    manifest = run.manifest
    memory = manifest["peak_memory_bytes"].items()
    seconds = manifest["seconds"].items()
    return {
        "run folder": str(run.folder),
        **({"mask made by": made} if (made := mask_text(run)) else {}),
        "commit": manifest["git_commit"] or "not known",
        "device": f"{manifest['device']}, {manifest['dtype']}",
        **{f"peak memory, {where}": f"{size / 2**30:.2f} GiB" for where, size in memory},
        **{f"time to {phase}": f"{value:,.1f} s" for phase, value in seconds},
        **{f"fingerprint of {what}": text for what, text in manifest["fingerprints"].items()},
        **{f"version of {name}": text for name, text in manifest["versions"].items()},
    }
