"""How open-unlearning keeps results: ``…_EVAL.json`` and ``…_SUMMARY.json`` of any benchmark.

By the metric's name its value and, row by row, what that comes from (Dorna et al. 2025,
arXiv 2506.12618, and the logs published with it); a summary has the values alone::

    {"forget_Q_A_Prob": {"agg_value": 0.61,
                         "value_by_index": {"0": {"prob": 0.61, "avg_loss": 0.5}}}}
    {"forget_Q_A_Prob": 0.61}

What the metrics are is in :mod:`wagle.metrics.tofu_log` and :mod:`wagle.metrics.muse_files`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, cast

from wagle.metrics.privacy import AUCS
from wagle.metrics.text import rouge_1_recall, rouge_l_f1, rouge_l_recall

Log = dict[str, dict[str, Any]]
"""What an ``…_EVAL.json`` holds."""
ATTACKED = ("forget", "holdout")
"""Whose rows attacks score."""

# ------------------------------------------------------------------------------------- written


def summary(log: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What ``…_SUMMARY.json`` holds: the metrics of a log that have a value."""
    values = {name: metric["agg_value"] for name, metric in log.items()}
    return {name: value for name, value in values.items() if value is not None}


def logged(value: float | None, rows: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """A metric: its value, and its rows where it has any."""
    metric: dict[str, Any] = {"agg_value": value}
    if rows is not None:
        metric["value_by_index"] = {str(index): dict(row) for index, row in enumerate(rows)}
    return metric


def score_rows(values: Sequence[float | None]) -> list[dict[str, Any]]:
    """Rows that have one number each."""
    return [{"score": value} for value in values]


def answer_row(
    question: str | None, reference: str | None, generated: str | None, **known: float | None
) -> dict[str, Any]:
    """A greedy answer, with as much of it as there is.

    Args:
        known: those of its ROUGE scores that were measured; the others follow from the texts.
    """
    row: dict[str, Any] = dict(known)
    if question is not None and reference is not None and generated is not None:
        missing = [name for name in _ROUGE if name not in known]
        row |= {name: _ROUGE[name](reference, generated) for name in missing}
    texts = {"input": question, "ground_truth": reference, "generation": generated}
    return row | {key: text for key, text in texts.items() if text is not None}


_ROUGE = {
    "rouge1_recall": rouge_1_recall,
    "rougeL_f1": rouge_l_f1,
    "rougeL_recall": rouge_l_recall,
}


def attack_metrics(aucs: Mapping[str, float], attacked: Mapping[str, Any]) -> Log:
    """``mia_…``: AUCs of attacks against held-out rows, by the attacks' columns.

    Args:
        attacked: by ``forget`` and ``holdout`` rows with their scores, where they are known.
    """
    log = {}
    for column, metric in AUCS.items():
        if column in aucs:
            parts = {}
            for role in ATTACKED:
                if role in attacked:
                    values = [row[column] for row in attacked[role]["rows"]]
                    parts[role] = logged(statistics.fmean(values), score_rows(values))
            log[metric.key] = {**parts, "auc": aucs[column], "agg_value": aucs[column]}
    return log


# ---------------------------------------------------------------------------------------- read


def column(log: Mapping[str, Any], metric: str, key: str) -> list[Any]:
    """A value of each row of a metric, in order.

    Raises:
        KeyError: the log has none of that name.
    """
    rows = log[metric]["value_by_index"]
    return [rows[row][key] for row in sorted(rows, key=int)]


def column_if_there(log: Mapping[str, Any], metric: str, key: str) -> list[Any] | None:
    """The same, or ``None``."""
    try:
        return column(log, metric, key)
    except KeyError:
        return None


def attack_aucs(log: Mapping[str, Any]) -> dict[str, float]:
    """AUCs of the attacks that a log has, by the attacks' columns."""
    return {
        name: float(log[metric.key]["agg_value"])
        for name, metric in AUCS.items()
        if metric.key in log
    }


def attacked_rows(log: Mapping[str, Any]) -> dict[str, Any]:
    """What these attacks have scored, by ``forget`` and ``holdout``, as far as the log has it."""
    names = [name for name, metric in AUCS.items() if metric.key in log]
    found = {}
    for role in ATTACKED:
        scores = [column_if_there(log[AUCS[name].key], role, "score") for name in names]
        if scores and None not in scores:
            rows = zip(*cast("list[list[float]]", scores), strict=True)
            found[role] = {"rows": [dict(zip(names, row, strict=True)) for row in rows]}
    return found


def aggregate(log: Mapping[str, Any], metric: str) -> float | None:
    """The value of a metric, if the log has it."""
    found = log.get(metric, {}).get("agg_value")
    return None if found is None else float(found)
