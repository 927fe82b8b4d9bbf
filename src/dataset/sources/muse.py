"""MUSE: news articles and books, and a miniature of the same form from the embedded benchmark.

Shi et al. 2024 (arXiv 2407.06460). A subset is named as its part and, where the part has several,
its split: ``MuseNews_forget``, ``MuseNews_scal_forget_2``, ``MuseNews_knowmem_retain_qa_icl``.
"""

from __future__ import annotations

import datasets

from wagle.dataset.columns import TEXT
from wagle.dataset.json_lines import read_json_lines
from wagle.dataset.reading import RowsRequest
from wagle.shipped import shipped

_QUESTIONS = {"question": TEXT, "answer": TEXT}
_COLUMNS = {"verbmem": {"prompt": TEXT, "gt": TEXT}, "knowmem": _QUESTIONS}
_SHARE = 10  # authors of the embedded benchmark that a part of the miniature is about
_FACTS = 10  # rows of each author
_EXAMPLES = 3  # questions in the context


def _part(subset: str) -> tuple[str, str]:
    """The part and its split: ``forget`` is one of the part ``raw``."""
    part, _, split = subset.partition("_")
    return (part, split or "forget") if part in _PARTS else ("raw", subset)


_PARTS = ("verbmem", "knowmem", "privleak", "scal", "sust")


def load_news(request: RowsRequest) -> datasets.Dataset:
    """BBC articles."""
    return _load(request, "MUSE-News")


def load_books(request: RowsRequest) -> datasets.Dataset:
    """Harry Potter: the books to forget, and a wiki about them to retain."""
    return _load(request, "MUSE-Books")


def _load(request: RowsRequest, name: str) -> datasets.Dataset:
    part, split = _part(request.subset)
    return request.rows(
        f"{name}/{part}/{split}.jsonl",
        f"muse-bench/{name}",
        part,
        columns=_COLUMNS.get(part, {"text": TEXT}),
        split=split,
    )


def load_demo_muse(request: RowsRequest) -> datasets.Dataset:
    """The same parts, of invented authors: an author's facts are a text, which ends in a question.

    Of the facts of an author the first half is what is given, and the rest is to be continued.
    """
    part, split = _part(request.subset)
    role = "forget" if split.startswith("forget") else "retain" if "retain" in split else split
    facts = read_json_lines(
        shipped("files/data") / "demo" / f"{_ROWS_OF[role]}.json", _QUESTIONS
    ).to_list()
    if part == "knowmem":
        examples = facts[-_EXAMPLES:]
        return datasets.Dataset.from_list(
            examples if split.endswith("icl") else facts[: _SHARE * _FACTS : _FACTS // 2]
        )
    if split in ("retain2", "retain"):  # other authors than those of retain1
        facts = facts[_SHARE * _FACTS :]
    answers = [row["answer"] for row in facts[: _SHARE * _FACTS]]
    texts = [" ".join(answers[i : i + _FACTS]) for i in range(0, len(answers), _FACTS)]
    if part == "verbmem":
        halves = (" ".join(text.split()[: len(text.split()) // 2]) for text in texts)
        return datasets.Dataset.from_list(
            [
                {"prompt": half, "gt": text.removeprefix(half).strip()}
                for half, text in zip(halves, texts, strict=True)
            ]
        )
    if part in ("scal", "sust"):  # of four steps
        step, count = int(split[-1]), len(texts) // 4
        texts = texts[: step * count] if part == "scal" else texts[(step - 1) * count :][:count]
    return datasets.Dataset.from_list([{"text": text} for text in texts])


_ROWS_OF = {
    "forget": "forget10",
    "retain": "retain90",
    "holdout": "holdout10",
}
