"""WMDP's corpora, to forget and to retain."""

from __future__ import annotations

import datasets

from wagle.dataset.columns import TEXT
from wagle.dataset.json_lines import read_json_lines
from wagle.dataset.reading import RowsRequest
from wagle.dataset.sources.text import without_blanks
from wagle.errors import WagleError
from wagle.shipped import here_or_shipped


def load_cyber(request: RowsRequest) -> datasets.Dataset:
    """The corpus on cybersecurity, to forget or to retain (Li et al. 2024, arXiv 2403.03218)."""
    return _wmdp_corpus("cyber", request)


def load_bio(request: RowsRequest) -> datasets.Dataset:
    """The same on biology."""
    return _wmdp_corpus("bio", request)


def load_all(request: RowsRequest) -> datasets.Dataset:
    """Both."""
    return datasets.concatenate_datasets([load_cyber(request), load_bio(request)])


def _wmdp_corpus(part: str, request: RowsRequest) -> datasets.Dataset:
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
        return without_blanks(read_json_lines(path, columns))
    local = f"WMDP/{corpus}.jsonl"
    return without_blanks(request.rows(local, "cais/wmdp-corpora", corpus, columns=columns))
