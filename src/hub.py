"""The model hub, asked once whether it is there."""

from __future__ import annotations

import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import datasets
from huggingface_hub import constants

from wagle.errors import WagleError

_PATIENCE = 5.0  # seconds


@cache
def connect_to_hub() -> bool:
    """Whether the hub answers; where it does not, only what is cached is used from now on.

    Left alone, the hub's libraries try every single request several times with growing pauses:
    minutes of waiting, even where everything needed is in the cache.
    """
    if not constants.HF_HUB_OFFLINE and not _answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return not constants.HF_HUB_OFFLINE


def hub_options(name: str, cache_dir: Path) -> dict[str, str]:
    """What ``from_pretrained`` needs besides a name: nothing for a local folder, else the cache."""
    if Path(name).is_dir():
        return {}
    connect_to_hub()
    return {"cache_dir": str(cache_dir)}


@contextmanager
def loading(what: str, name: str, hint: str) -> Iterator[None]:
    """Turn what the libraries raise where something cannot be found or read into one message.

    Args:
        what: the kind of thing, such as ``model``.
        hint: how to give another.

    Raises:
        WagleError: in place of OSError and ValueError, and, where there are local files, of
            anything else: what is damaged in them shows as any kind of error.
    """
    try:
        yield
    except (WagleError, MemoryError):
        raise
    except Exception as error:
        reason = f"[{type(error).__name__}: {textwrap.shorten(str(error), 200, placeholder='…')}]"
        if Path(name).exists():
            raise WagleError(f"the {what} in {name} cannot be loaded. {reason}") from error
        if not isinstance(error, OSError | ValueError):
            raise
        raise WagleError(
            f"the {what} {name!r} cannot be loaded: it is no local folder, and the hub cannot be "
            f"reached or does not offer it. Give {hint}, or connect to the network. {reason}"
        ) from error


def _answers(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return True  # a refusal is an answer
    except OSError:
        return False
    return True
