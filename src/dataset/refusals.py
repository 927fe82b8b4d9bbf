"""Refusal answers: what the model should say instead of the answer to be forgotten."""

from __future__ import annotations

from wagle.dataset.sources import find_source
from wagle.errors import WagleError
from wagle.shipped import shipped

FOLDER = shipped("files/data/polite_refusal_responses")


def load_refusals(dataset_name: str) -> list[str]:
    """Refusal sentences that suit a data set: TOFU-like, copyrighted text, or general.

    Raises:
        WagleError: there is no such data set, or the file of refusals is missing or empty.
    """
    kind = find_source(dataset_name).refusals
    suffix = f"_{kind}" if kind else ""
    path = FOLDER / f"polite_refusal_responses{suffix}.csv"
    if not path.is_file():
        raise WagleError(f"the refusal answers {path} are missing: one sentence per line")
    refusals = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    refusals = [line for line in refusals if line]
    if not refusals:
        raise WagleError(f"{path} holds no refusal: one sentence per line")
    return refusals
