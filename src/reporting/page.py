"""The report: one self-contained HTML page about one or several runs."""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from src.errors import WagleError
from src.loggers.files import write_text
from src.reporting.figures import INK, draw_density, draw_tradeoff, draw_training
from src.reporting.meanings import Meaning, meaning_of
from src.reporting.runs import Run

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
    unlearned = [run for run in runs if original is None or run.folder != original.folder]
    shown = [original, *unlearned] if original else unlearned
    asked = _ASKED.get(shown[0].results["task"], _NOTHING_ASKED)
    summaries = [_summary(run, original, asked) for run in unlearned]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        autoescape=True,
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
        runs=shown,
        original=original,
        unlearned=unlearned,
        summaries=[s for s in summaries if s.averages or s.forgotten],
        metrics=_metrics(shown, original),
        pictures=list(_pictures(shown)),
        questions=_questions(unlearned, original, asked),
        sets=asked.sets,
        measures=asked.measures,
        settings=_settings(shown),
        environment=_side_by_side([_environment(run) for run in shown]),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# --------------------------------------------------------------------------------- in short


class Count(NamedTuple):
    """Correct answers of a run, and of the original where there is one."""

    correct: int
    asked: int
    before: int | None


@dataclass(frozen=True)
class Summary:
    """A run in short.

    Attributes:
        averages: (name, value, the original's value) of UE Avg and UT Avg, where they exist.
        forgotten, kept: answers to the forget questions, and to all others; of TOFU runs.
    """

    run: Run
    averages: list[tuple[str, float, float | None]]
    forgotten: Count | None
    kept: Count | None


def _summary(run: Run, original: Run | None, asked: _Asked) -> Summary:
    before = original.results if original else {}
    averages = [
        (title, run.results[key], before.get(key))
        for key, title in (("UE Avg", "Forgetting"), ("UT Avg", "Utility"))
        if key in run.results
    ]
    rows, old = _judged_rows(run, asked), _judged_rows(original, asked)
    if not rows:
        return Summary(run, averages, None, None)
    forgotten, kept = (
        Count(
            *_correct(rows, is_forget),
            _correct(old, is_forget)[0] if old else None,
        )
        for is_forget in (True, False)
    )
    return Summary(run, averages, forgotten, kept)


def _judged_rows(run: Run | None, asked: _Asked) -> dict[_Key, Mapping[str, Any]]:
    """As :func:`_rows_of`, of an evaluation that judges whether answers are correct; else none."""
    rows = _rows_of(run, asked)
    return rows if all("acc" in row for row in rows.values()) else {}


def _correct(rows: Mapping[_Key, Mapping[str, Any]], forget: bool) -> tuple[int, int]:
    right = [row["acc"] for key, row in rows.items() if (key.set == "forget") == forget]
    return int(sum(right)), len(right)


# ---------------------------------------------------------------------------------- numbers


class Metric(NamedTuple):
    """A row of the table of numbers.

    Attributes:
        cells: (text, whether it is the best of the unlearned models), one for each run.
    """

    name: str
    meaning: Meaning | None
    cells: list[tuple[str, bool]]


def _metrics(runs: Sequence[Run], original: Run | None) -> list[Metric]:
    columns = [dict(_flat(run.results)) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [_metric(name, columns, runs, original) for name in names]
    if any(run.trained for run in runs):
        shares = [f"{run.results['density']:.1%}" if run.trained else "–" for run in runs]
        seconds = [f"{run.unlearning_seconds:,.0f} s" if run.trained else "–" for run in runs]
        updated = Meaning("Share of the weights that unlearning may change.", 0)
        time = Meaning("Time to make the mask and to unlearn, without evaluation.", -1)
        rows.append(Metric("Weights updated", updated, [(text, False) for text in shares]))
        rows.append(Metric("Time", time, [(text, False) for text in seconds]))
    return rows


def _metric(
    name: str, columns: Sequence[Mapping[str, float]], runs: Sequence[Run], original: Run | None
) -> Metric:
    meaning = meaning_of(name)
    better = meaning.better if meaning else 0
    shown = [_number(column.get(name)) for column in columns]
    rivals = [
        column[name]
        for column, r in zip(columns, runs, strict=True)
        if r is not original and name in column
    ]
    best = None
    if better and len(rivals) > 1 and len(set(map(_number, rivals))) > 1:
        best = _number(max(rivals, key=lambda value: value * better))
    cells = [
        (text, text == best and run is not original) for text, run in zip(shown, runs, strict=True)
    ]
    return Metric(name, meaning, cells)


def _flat(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The metrics among the results, with those of nested groups."""
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif name not in _NO_METRICS and isinstance(value, int | float):
            yield prefix + name, value


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if math.isinf(value):
        return f"{value}"
    if value == int(value) and abs(value) >= 10:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 5e-4 or value == 0 else f"{value:.1e}"


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


def _pictures(runs: Sequence[Run]) -> Iterator[Picture]:
    measured = [run for run in runs if {"UE Avg", "UT Avg"} <= run.results.keys()]
    if len(measured) > 1:
        yield _picture(
            draw_tradeoff([(run.method, run.mask, run.results) for run in measured]),
            "Forgetting against utility",
            "Scatter plot, a point for each run; up and to the right is better. "
            "The numbers are in the table above.",
        )
    logs = {run.title: run.log for run in runs if run.log}
    if logs:
        yield _picture(
            draw_training(logs),
            "Training",
            "Curves of loss, gradient norm and learning rate over the optimizer steps.",
        )
    masks: dict[str, tuple[Any, list[str]]] = {}  # runs that share a mask share its picture
    for run in runs:
        mask = run.document("mask.json")
        if mask is not None:
            masks.setdefault(json.dumps(mask), (mask, []))[1].append(run.title)
    for mask, titles in masks.values():
        yield _picture(
            draw_density(mask["by layer and kind"], mask["density"]),
            f"What the mask selects: {', '.join(titles)}",
            "Heat map of the share of selected weights, layers downwards, kinds of weights "
            "across; the share is written in every cell.",
        )


def _picture(figure: Figure, title: str, description: str) -> Picture:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):  # the same page every time
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    dark = svg.replace(INK, _DARK_INK)
    return Picture(title, description, _data_uri(svg), _data_uri(dark), figure.get_figwidth())


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


# ---------------------------------------------------------------------------------- answers


class Measure(NamedTuple):
    """A number that each answer has.

    Attributes:
        key: of the row in the run's document.
        id: for the page's script.
        meaning: what it is, as the end of a sentence.
    """

    key: str
    id: str
    title: str
    meaning: str


_ROUGE = Measure(
    "rougeL_score",
    "rouge",
    "ROUGE-L",
    "how much of the true answer’s wording an answer contains, from 0 to 1",
)


@dataclass(frozen=True)
class _Asked:
    """What the runs of a task asked the models.

    Attributes:
        sets: the sets of questions by their name in the documents, with their titles.
        measures: of each answer.
        documents: by set, the file of the run folder that it is in; whole, or under its name.
    """

    sets: dict[str, str]
    measures: list[Measure]
    documents: dict[str, str]


def _all_in(document: str, sets: Mapping[str, str], *measures: Measure) -> _Asked:
    return _Asked(dict(sets), list(measures), dict.fromkeys(sets, document))


_NOTHING_ASKED = _Asked({}, [], {})
_ASKED = {
    "tofu": _all_in(
        "tofu.json",
        {
            "forget": "Forget",
            "retain": "Retain",
            "real_author": "Real authors",
            "world_fact": "World facts",
        },
        _ROUGE,
        Measure("truth_prob", "probability", "Probability", "that of the true answer"),
    ),
    "copyright": _all_in(
        "copyright.json",
        {"train": "Forget", "test": "Never seen"},
        _ROUGE,
        Measure("bleu", "bleu", "BLEU", "how exactly it is repeated, from 0 to 1"),
    ),
    "toxic": _Asked(
        {"forget": "Forget", "SafePku_test": "SafePku", "RealToxicityPrompts": "RealToxicity"},
        [Measure("score", "toxicity", "Toxicity", "how sure the classifier is of it, from 0 to 1")],
        {
            "forget": "forget.json",
            "SafePku_test": "harmful.json",
            "RealToxicityPrompts": "harmful.json",
        },
    ),
}
"""By ``unlearn.task_name``."""


class _Key(NamedTuple):
    set: str
    question: str


class Answer(NamedTuple):
    """What a model said.

    Attributes:
        parts: its words, each with whether the true answer, if there is one, lacks it.
        values: (value, change since the original, where there is one) of each measure.
    """

    parts: list[tuple[str, bool]]
    values: list[tuple[float, float | None]]


class Question(NamedTuple):
    """A question with the true answer, where there is one, and those of the models."""

    set: str
    question: str
    answer: str | None
    original: Answer | None
    answers: list[Answer | None]


def _rows_of(run: Run | None, asked: _Asked) -> dict[_Key, Mapping[str, Any]]:
    """The rows that a run was asked, in the order of its documents; none of another task's run."""
    rows = {}
    for name, file in asked.documents.items():
        document = run.document(file) if run else None
        part = document if document is None or "rows" in document else document.get(name)
        for row in part["rows"] if part else ():
            rows[_Key(name, row["question"])] = row
    return rows


def _questions(runs: Sequence[Run], original: Run | None, asked: _Asked) -> list[Question]:
    """Every question that was asked of a run (of the original, where it is alone)."""
    before = _rows_of(original, asked)
    tables = [_rows_of(run, asked) for run in runs]
    keys = dict.fromkeys(key for table in (tables if runs else [before]) for key in table)
    if before and keys and not before.keys() & keys.keys():
        raise WagleError(
            f"the original's run in {original.folder} was asked none of the questions that the "
            "other runs were asked; evaluate it on the same data sets"
        )
    questions = []
    for key in keys:
        old = before.get(key)
        rows = [table.get(key) for table in tables]
        true = next(row.get("answer") for row in (*rows, old) if row)
        answers = [_answer(row, old, asked.measures) if row else None for row in rows]
        first = _answer(old, None, asked.measures) if old else None
        questions.append(Question(*key, true, first, answers))
    return questions


def _answer(
    row: Mapping[str, Any], old: Mapping[str, Any] | None, measures: Sequence[Measure]
) -> Answer:
    said, true = row["generated"], row.get("answer")
    parts = _mark_wrong(said, true) if true is not None else [(said, False)] if said.strip() else []
    keys = [measure.key for measure in measures]
    return Answer(parts, [(row[key], row[key] - old[key] if old else None) for key in keys])


def _mark_wrong(text: str, true: str) -> list[tuple[str, bool]]:
    """Split a text into stretches of words, each with whether the true answer lacks it there."""
    words = text.split()
    matcher = difflib.SequenceMatcher(
        None, [_plain(word) for word in words], [_plain(word) for word in true.split()], False
    )
    wrong = [True] * len(words)
    for block in matcher.get_matching_blocks():
        wrong[block.a : block.a + block.size] = [False] * block.size
    stretches = itertools.groupby(zip(words, wrong, strict=True), key=lambda pair: pair[1])
    return [(" ".join(word for word, _ in pairs), is_wrong) for is_wrong, pairs in stretches]


def _plain(word: str) -> str:
    return re.sub(r"\W", "", word.lower()) or word.strip()


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
        "commit": manifest["git_commit"] or "not known",
        "device": f"{manifest['device']}, {manifest['dtype']}",
        **{f"peak memory, {where}": f"{size / 2**30:.2f} GiB" for where, size in memory},
        **{f"time to {phase}": f"{value:,.1f} s" for phase, value in seconds},
        **{f"fingerprint of {what}": text for what, text in manifest["fingerprints"].items()},
        **{f"version of {name}": text for name, text in manifest["versions"].items()},
    }
