"""Weights as they are in the files: none made up, none left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging as library_logging

from wagle.errors import WagleError
from wagle.terminal import say


def load_whole(kind: type[Any], name: str, **options: Any) -> PreTrainedModel:
    """A model all of whose weights come from its files, and all of whose files' weights it has.

    transformers fills in random numbers for what is missing, and leaves out what it has no place
    for.

    Args:
        kind: one of the library's classes with ``from_pretrained``.
        name, options: for that.

    Raises:
        WagleError: the message lists names of weights that are missing, left over or of another
            shape.
    """

    def load(**further: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        with _quiet_library():
            return kind.from_pretrained(
                name, **options, **further, output_loading_info=True, ignore_mismatched_sizes=True
            )

    model, found = load()
    wrapped = {key for key in found["unexpected_keys"] if _unwrapped(key) in found["missing_keys"]}
    if wrapped:
        say(
            f"note: names of weights in {name} carry a wrapper's prefix, such as {min(wrapped)}; "
            "it is left out"
        )
        model, found = load(key_mapping={_WRAPPERS: ""})
    problems = {
        "missing": found["missing_keys"],
        "not of this architecture": [
            key for key in found["unexpected_keys"] if not re.search(BUFFERS, key)
        ],
        "of another shape": [key for key, *_ in found["mismatched_keys"]],
    }
    lists = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if lists:
        raise WagleError(
            f"the weights of the model {name} do not fit its config.json; {'; '.join(lists)}"
        )
    return model


_WRAPPERS = r"(?:^|(?<=\.))(?:module\.|_orig_mod\.)+"
"""What DistributedDataParallel and torch.compile put into the names of weights."""

BUFFERS = r"(attn|attention)\.(masked_)?bias$|inv_freq$|position_ids$|decoder\.version$"
"""Constants, no weights, that older versions of the library saved with GPT-2, NeoX, Llama, …"""


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without the library's own table of what is missing and left over."""
    before = library_logging.get_verbosity()
    library_logging.set_verbosity_error()
    try:
        yield
    finally:
        library_logging.set_verbosity(before)


def _unwrapped(name: str) -> str:
    return re.sub(_WRAPPERS, "", name)


def _some(names: Iterable[str], limit: int = 5) -> str:
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
