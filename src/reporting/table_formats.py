"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from wagle.metrics.benchmark import Metric
from wagle.reporting.planned import TableRow
from wagle.reporting.tables import Form, Outcome, Table, TableLine
from wagle.terminal import plain

MISSING = "–"
LARGE = 1e6  # numbers from here on are written with an exponent
WIDE = 8  # columns of numbers that fit a page


def to_markdown(table: Table, command: str) -> str:
    """A pipe table with its caption and notes.

    Args:
        command: what made it, for whoever wants to make it again.
    """
    form = table.form
    heads = [*form.heads, *map(_heading, form.columns)]
    rows = [heads]
    for line in table.lines:
        cells = [
            f"**{text}**" if index in line.best else text
            for index, text in enumerate(_texts(form, line))
        ]
        leads = [in_markdown(text) for text in _leads(form, line.row)]
        rows.append([*leads, _seeds(line), *cells])
    pipes = pipe_table(rows)
    notes = [f"{number}. {in_markdown(note)}" for number, note in enumerate(table.notes, start=1)]
    parts = [f"{form.caption}. {_explanation(table)}", pipes]
    parts += [f"Not comparable: {warning}." for warning in table.warnings]
    parts += [f"{in_markdown(remark)}." for remark in table.remarks]
    parts += ["Failed:\n\n" + "\n".join(notes)] if notes else []
    return "\n\n".join([*parts, f"Made by `{command}`"]) + "\n"


def to_latex(table: Table, label: str) -> str:
    """A ``table`` environment; needs the packages booktabs and, for wide tables, graphicx."""
    form = table.form
    leads = len(form.heads)
    wide = len(form.columns) > WIDE
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(f'{form.caption}. {_explanation(table)}')}}}",
        rf"\label{{{label}}}",
        *([r"\resizebox{\linewidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{{'l' * leads}{'r' * len(form.columns)}}}",
        r"\toprule",
        *_latex_heads(form, leads),
    ]
    for _, block in itertools.groupby(table.lines, key=lambda line: line.row.method):
        lines.append(r"\midrule")
        for line in block:
            cells = [
                _latex_cell(text, index in line.best)
                for index, text in enumerate(_texts(form, line))
            ]
            leading = [escape(text) for text in (*_leads(form, line.row), _seeds(line))]
            lines.append(" & ".join([*leading, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else "")]
    if table.notes or table.warnings or table.remarks:
        lines += ["", r"\smallskip\footnotesize\raggedright"]
        lines += [rf"Not comparable: {escape(warning)}.\par" for warning in table.warnings]
        lines += [rf"{escape(remark)}.\par" for remark in table.remarks]
        for number, note in enumerate(table.notes, start=1):
            lines.append(rf"[{number}] {escape(note)}\par")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_csv(table: Table) -> str:
    """One line a row: mean and standard deviation in columns of their own, in full precision."""
    columns = table.form.columns
    names = [f"{column.name} {kind}" for column in columns for kind in ("mean", "std")]
    varied = _names(line.row for line in table.lines)
    rows: list[list[Any]] = [[*varied, "seeds", "failed", "pending", *names]]
    for line in table.lines:
        states = [outcome.status for outcome in line.outcomes]
        numbers = [number for cell in line.cells for number in (cell or (None, None))[:2]]
        counts = [line.finished, states.count("failed"), states.count("pending")]
        rows.append([*map(line.row.value, varied), *counts, *numbers])
    return _csv(rows)


def runs_to_csv(outcomes: Iterable[Outcome]) -> str:
    """One line a run, with all its numbers."""
    outcomes = list(outcomes)
    names = list(dict.fromkeys(name for o in outcomes for name in o.values or ()))
    varied = _names(outcome.row for outcome in outcomes)
    rows: list[list[Any]] = [[*varied, "seed", "status", "reason", "folder", *names]]
    for outcome in outcomes:
        values = outcome.values or {}
        about = [outcome.seed, outcome.status, outcome.failure, outcome.folder]
        rows.append(
            [*map(outcome.row.value, varied), *about, *(values.get(name) for name in names)]
        )
    return _csv(rows)


def _names(rows: Iterable[TableRow]) -> list[str]:
    """What rows may differ by, as columns."""
    settings = dict.fromkeys(name for row in rows for name, _ in row.settings)
    return ["method", "mask", "ratio", "mu", *settings]


def csv_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """One line a row; a row has nothing in the columns that only others have."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _csv([names, *([row.get(name) for name in names] for row in rows)])


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _heading(metric: Metric) -> str:
    return f"{metric.name}{_arrow(metric)}"


def _arrow(metric: Metric) -> str:
    return {1: " ↑", -1: " ↓", 0: ""}[metric.better]


def _explanation(table: Table) -> str:
    parts = ["Mean ± sample standard deviation over seeds"]
    if any(column.better for column in table.form.columns):
        shared = " and ρ" if "ratio" in table.form.block else ""
        over_questions = ", and the paired one over questions of what sets it apart does not hold 0"
        parts.append(
            f"bold: best of its method{shared}, where its 95 % confidence interval (Student's t "
            "over the seeds) overlaps no other's" + (over_questions if table.over_questions else "")
        )
    means = [cell.mean for line in table.lines for cell in line.cells if cell is not None]
    if any(map(math.isinf, means)):
        parts.append("inf: larger than a computer's numbers reach")
    if table.pending:
        parts.append(f"unfinished: {table.pending} runs are still to be done")
    return "; ".join(parts) + "."


def _leads(form: Form, row: TableRow) -> list[str]:
    """What a row is about, as text."""
    values = map(row.value, form.varied)
    return [
        (value or MISSING) if isinstance(value, str | None) else f"{value:g}" for value in values
    ]


def _seeds(line: TableLine) -> str:
    """How many runs the numbers are about, and of how many where some are missing."""
    planned = len(line.outcomes)
    text = str(planned) if line.finished == planned else f"{line.finished} of {planned}"
    return f"{text} [{', '.join(map(str, line.notes))}]" if line.notes else text


def _texts(form: Form, line: TableLine) -> Iterator[str]:
    for column, cell in zip(form.columns, line.cells, strict=True):
        if cell is not None:
            numbers = (cell.mean, cell.deviation)
            yield " ± ".join(_number(n, column.digits) for n in numbers if n is not None)
        elif line.finished:
            yield MISSING
        else:
            yield "failed" if line.notes else "pending"


def _number(value: float, digits: int) -> str:
    """The perplexity of a model that has forgotten too much has no end of digits."""
    return f"{value:.1e}" if LARGE <= abs(value) < math.inf else f"{value:.{digits}f}"


def _latex_heads(form: Form, leads: int) -> Iterator[str]:
    """A line of groups with rules below them, and a line of titles."""
    groups, rules, start = [], [], leads + 1
    for group, members in itertools.groupby(form.columns, key=lambda column: column.group):
        count = len(list(members))
        groups.append(rf"\multicolumn{{{count}}}{{c}}{{{escape(group)}}}")
        if group:
            rules.append(rf"\cmidrule(lr){{{start}-{start + count - 1}}}")
        start += count
    if rules:
        yield " & ".join([*[""] * leads, *groups]) + r" \\"
        yield "".join(rules)
    titles = [f"{column.heading}{_arrow(column)}" for column in form.columns]
    yield " & ".join(escape(text) for text in (*form.heads, *titles)) + r" \\"


def _latex_cell(text: str, best: bool) -> str:
    """The deviation is a subscript: tables of many columns have no room for more."""
    mean, _, spread = text.partition(" ± ")
    bold = rf"\textbf{{{escape(mean)}}}" if best else escape(mean)
    return rf"{bold}$_{{\pm {spread}}}$" if spread else bold


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "ρ": r"$\rho$", "μ": r"$\mu$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"},
    **{"–": "--", "−": "$-$", "<": "$<$", ">": "$>$", "|": "$|$"},
}
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


def escape(text: str) -> str:
    """Plain text as LaTeX shows it, on one line."""
    shown = _SPECIAL.sub(lambda match: _LATEX[match.group()], in_one_line(text))
    return f"{{}}{shown}" if shown.startswith("[") else shown  # else an argument of the line's end


def in_one_line(text: object) -> str:
    """Text without line ends or anything that a terminal would obey."""
    return " ".join(plain(text).split())


def in_markdown(text: object) -> str:
    """Text that is no Markdown or HTML, whatever it holds."""
    return re.sub(r"([\\`*\[\]<>])", r"\\\1", in_one_line(text))


def pipe_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; pipes are the only characters that would end a cell."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    heads, *body = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([heads, "| " + " | ".join(["---"] * len(rows[0])) + " |", *body])
