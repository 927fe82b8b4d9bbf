"""The data sets by name, from the hub or from local files; docs/data.md lists them.

To add one: write a loader that returns rows with the columns ``question`` and ``answer`` (or
``text``) and register it in ``SOURCES``, with its name in ``src/config/keys.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from wagle.dataset.chunks import PROMPT_LENGTHS
from wagle.dataset.encoding import Encoded, encode_answer, encode_text
from wagle.dataset.json_lines import FLAG, TEXT, TEXTS, read_json_lines
from wagle.dataset.reading import Request, Role
from wagle.dataset.templates import Template
from wagle.errors import WagleError
from wagle.shipped import here_or_shipped, shipped


@dataclass(frozen=True)
class Source:
    """A data set, or a family of them.

    Attributes:
        load: how to load its rows.
        max_length: how long its examples may become (tokens).
        subsets: what may follow the underscore of its name; ``None``: the loader finds out.
    """

    load: Callable[[Request], datasets.Dataset]
    max_length: int
    subsets: tuple[str, ...] | None = ("",)


# --------------------------------------------------------------------- questions with answers


def _tofu_columns(subset: str) -> dict[str, str]:
    columns = {"question": TEXT, "answer": TEXT}
    if subset.endswith("_perturbed"):
        columns["perturbed_answer"] = TEXTS
        if subset.startswith(("forget", "retain")):
            columns |= {"paraphrased_question": TEXT, "paraphrased_answer": TEXT}
    return columns


def _tofu(request: Request) -> datasets.Dataset:
    subset = request.subset
    columns = _tofu_columns(subset)
    return request.rows(f"TOFU/{subset}.json", "locuslab/TOFU", subset, columns=columns)


def _demo(request: Request) -> datasets.Dataset:
    folder = (request.data_dir or shipped("files/data")) / "demo"
    columns = {"text": TEXT} if request.subset == "dialogues" else _tofu_columns(request.subset)
    return read_json_lines(folder / f"{request.subset}.json", columns)


def _copyright(request: Request) -> datasets.Dataset:
    """Chunks of a text that the user owns; a subset ``train_300`` is one of the evaluation sets."""
    folder = (
        here_or_shipped("files/data/hp") if request.data_dir is None else request.data_dir / "HP"
    )
    part, _, length = request.subset.partition("_")
    path = folder / (f"hp_{part}_qa_{length}.jsonl" if part else "hp_qa.jsonl")
    if not path.is_file():
        raise WagleError(
            f"there is no data file {path}; make it from a text that you own: "
            f"python src/exec/prepare_copyright.py TEXT --tokenizer NAME --output_dir {folder}"
        )
    rows = read_json_lines(path, {"prompt": TEXT, "response": TEXT})
    # Chunks begin and end within sentences; the template puts a space of its own at the seams.
    questions, answers = ([text.lstrip() for text in rows[name]] for name in ("prompt", "response"))
    return datasets.Dataset.from_dict({"question": questions, "answer": answers})


_PKU_REVISION = "ff7ba91063016c78a225b0f74e1c0860bb18230f"
_PKU_ANSWERS = {f"response_{i}": f"is_response_{i}_safe" for i in (0, 1)}


def _safe_pku(request: Request) -> datasets.Dataset:
    """Every unsafe response with its prompt; as ``test`` the prompts of the test part, once each.

    Ji et al. 2023, arXiv 2307.04657.
    """
    split = request.subset or "train"
    flags = dict.fromkeys(_PKU_ANSWERS.values(), FLAG)
    rows = request.rows(
        f"SafePku/{split}.jsonl",
        "PKU-Alignment/PKU-SafeRLHF",
        columns={"prompt": TEXT, **dict.fromkeys(_PKU_ANSWERS, TEXT), **flags},
        split=split,
        revision=_PKU_REVISION,
    )
    if split == "test":
        return datasets.Dataset.from_dict({"question": list(dict.fromkeys(rows["prompt"]))})
    return rows.map(_unsafe_responses, batched=True, remove_columns=rows.column_names)


def _unsafe_responses(batch: Mapping[str, list[Any]]) -> dict[str, list[str]]:
    pairs = [
        (prompt, batch[response][row])
        for row, prompt in enumerate(batch["prompt"])
        for response, is_safe in _PKU_ANSWERS.items()
        if not batch[is_safe][row] and batch[response][row].strip()
    ]
    return {"question": [q for q, _ in pairs], "answer": [a for _, a in pairs]}


def _truthful_qa(request: Request) -> datasets.Dataset:
    """Lin et al. 2022, arXiv 2109.07958; its only part is called validation."""
    rows = request.rows(
        "TruthfulQA/generation.jsonl",
        "truthfulqa/truthful_qa",
        "generation",
        columns={"question": TEXT, "best_answer": TEXT},
        split="validation",
    )
    return rows.select_columns(["question", "best_answer"]).rename_column("best_answer", "answer")


def _real_toxicity_prompts(request: Request) -> datasets.Dataset:
    """Gehman et al. 2020, arXiv 2009.11462; prompts alone."""
    rows = request.rows(
        "RealToxicityPrompts/prompts.jsonl",
        "allenai/real-toxicity-prompts",
        columns={"prompt.text": TEXT},
    )
    return rows.select_columns(["prompt.text"]).rename_column("prompt.text", "question")


# ------------------------------------------------------------------------------- running text


def _without_blanks(rows: datasets.Dataset) -> datasets.Dataset:
    """The column ``text`` of the rows that have any."""
    written = [row for row, text in enumerate(rows["text"]) if text.strip()]
    return rows.select_columns(["text"]).select(written)


def _wmdp(parts: tuple[str, ...], request: Request) -> datasets.Dataset:
    """The corpora to forget or to retain (Li et al. 2024, arXiv 2403.03218)."""
    return datasets.concatenate_datasets([_wmdp_corpus(part, request) for part in parts])


def _wmdp_corpus(part: str, request: Request) -> datasets.Dataset:
    columns = {"text": TEXT}
    corpus = f"{part}-{request.role}-corpus"
    if corpus == "bio-forget-corpus":  # its authors give access on request only
        name = "bio_remove_dataset.jsonl"
        path = (
            here_or_shipped(f"files/data/{name}")
            if request.data_dir is None
            else request.data_dir / "WMDP" / name
        )
        if not path.is_file():
            raise WagleError(
                f"there is no data file {path}: WMDP's biology corpus to be forgotten is not on "
                "the hub. Ask its authors for access (https://www.wmdp.ai) and put the file "
                "there, or use WMDPCyber"
            )
        return _without_blanks(read_json_lines(path, columns))
    local = f"WMDP/{corpus}.jsonl"
    return _without_blanks(request.rows(local, "cais/wmdp-corpora", corpus, columns=columns))


_C4_FILES = {
    "train": "en/c4-train.00001-of-01024.json.gz",
    "validation": "en/c4-validation.00000-of-00008.json.gz",
}


def _c4(request: Request) -> datasets.Dataset:
    """One file of C4 (Raffel et al. 2020, arXiv 1910.10683), which has a thousand of them."""
    split = request.subset or "train"
    rows = request.rows(
        f"C4/{split}.jsonl",
        "allenai/c4",
        columns={"text": TEXT},
        split=split,
        data_files={split: _C4_FILES[split]},
    )
    return _without_blanks(rows)


def _wikitext(request: Request) -> datasets.Dataset:
    """Merity et al. 2016, arXiv 1609.07843; a row is a line of an article."""
    rows = request.rows(
        "wikitext/train.jsonl", "Salesforce/wikitext", "wikitext-2-raw-v1", columns={"text": TEXT}
    )
    return _without_blanks(rows)


# ----------------------------------------------------------------------------------- registry

SOURCES: dict[str, Source] = {
    "Tofu": Source(_tofu, max_length=512, subsets=None),
    "Demo": Source(_demo, max_length=512, subsets=None),
    "WMDPCyber": Source(partial(_wmdp, ("cyber",)), max_length=1024),
    "WMDPBio": Source(partial(_wmdp, ("bio",)), max_length=1024),
    "WMDPALL": Source(partial(_wmdp, ("cyber", "bio")), max_length=1024),
    "HP": Source(
        _copyright,
        max_length=1024,
        subsets=("", *(f"{part}_{n}" for part in ("train", "test") for n in PROMPT_LENGTHS)),
    ),
    "SafePku": Source(_safe_pku, max_length=512, subsets=("", "test")),
    "C4": Source(_c4, max_length=512, subsets=("", "validation")),
    "wikitext": Source(_wikitext, max_length=512),
    "TruthfulQA": Source(_truthful_qa, max_length=512),
    "RealToxicityPrompts": Source(_real_toxicity_prompts, max_length=512),
}
"""By the part of the name before the underscore."""


def find_source(name: str) -> Source:
    """The source of the data set called ``name``.

    Raises:
        WagleError: there is none.
    """
    family, _, subset = name.partition("_")
    source = SOURCES.get(family)
    if source is None or (source.subsets is not None and subset not in source.subsets):
        raise WagleError(f"there is no data set {name}; there are {', '.join(_names())}")
    return source


def _names() -> list[str]:
    names = []
    for family, source in SOURCES.items():
        subsets = ("SUBSET",) if source.subsets is None else source.subsets
        names += [f"{family}_{subset}".removesuffix("_") for subset in subsets]
    return names


def load_rows(
    name: str, *, data_dir: Path | None, cache_dir: Path, role: Role = "forget"
) -> datasets.Dataset:
    """Rows of a data set, with the columns ``question`` and ``answer``, or ``text``.

    Args:
        name: as in ``dataset.forget_dataset_name``, for example ``Tofu_forget10``. Some are for
            evaluation alone: ``HP_train_300``, ``HP_test_300`` (and 50, 100, 200),
            ``C4_validation``, and, without an answer, ``SafePku_test``, ``RealToxicityPrompts``.
        data_dir: read local files below this folder instead of the hub.
        cache_dir: the hub's cache.
        role: whether the rows are to be forgotten or retained.

    Raises:
        WagleError: the hub cannot be reached, or a local file is missing or malformed.
    """
    subset = name.partition("_")[2]
    rows = find_source(name).load(Request(subset, role, data_dir, cache_dir))
    if len(rows) == 0:
        raise WagleError(
            f"no row of {name} can be used: its texts are blank, or its responses are all safe"
        )
    return rows


def row_encoder(
    name: str, tokenizer: PreTrainedTokenizerBase, template: Template, *, eos: bool = True
) -> Callable[[Mapping[str, str]], Encoded]:
    """A function from a row of the data set to ids and labels, which can be sent to processes.

    Rows with a question are encoded in the template and labelled on the answer part; running text
    is labelled throughout. It raises a ``WagleError`` for a row of which no token is predicted.
    """
    max_length = find_source(name).max_length
    return partial(_encode_row, tokenizer, template, max_length, eos)


def _encode_row(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
    eos: bool,
    row: Mapping[str, str],
) -> Encoded:
    if "text" in row:
        encoded = encode_text(tokenizer, row["text"], max_length=max_length)
        if len(encoded.input_ids) < 2:
            raise WagleError(
                f"the text {row['text'][:80]!r} is a single token, so nothing of it is predicted"
            )
        return encoded
    return encode_answer(
        tokenizer, template, row["question"], row["answer"], max_length=max_length, eos=eos
    )


def refusal_encoder(
    name: str, tokenizer: PreTrainedTokenizerBase, template: Template
) -> Callable[[Mapping[str, str], str], Encoded]:
    """A function from a row of the data set and a refusal to ids and labels; as above."""
    return partial(_encode_refusal, row_encoder(name, tokenizer, template))


def _encode_refusal(
    encode: Callable[[Mapping[str, str]], Encoded], row: Mapping[str, str], refusal: str
) -> Encoded:
    return encode({"question": row["question"], "answer": refusal})
