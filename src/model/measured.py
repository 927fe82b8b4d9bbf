"""What an evaluation has measured so far: kept at once, and not measured twice."""

from __future__ import annotations

import hashlib
import json
import shutil
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from wagle import ranks
from wagle.errors import WagleError
from wagle.loggers.files import read_json, write_json
from wagle.terminal import say

Value = TypeVar("Value")


def place_in_cache(cache_dir: Path, kind: str, origin: Mapping[str, Any]) -> Path:
    """Where the cache keeps what follows from ``origin`` alone: a path without a suffix.

    Args:
        cache_dir: ``overall.cache_dir``.
        kind: the folder in it.
        origin: everything that decides what is kept, as JSON.
    """
    name = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
    return cache_dir / "wagle" / kind / name[:16]


class Measured:
    """Numbers by name, kept in a file until the run has finished.

    Args:
        path: the file; ``None``: nothing is kept.
        pieces: the folder of what is only partly measured; goes with the file.
        origin: what they depend on, as JSON; numbers of another origin are not used.

    Attributes:
        origin, pieces: as given.
        earlier: names of what an earlier attempt has measured.
        failures: messages of what could not be measured, by name.
    """

    def __init__(
        self, path: Path | None, origin: Mapping[str, Any], pieces: Path | None = None
    ) -> None:
        self.pieces = pieces
        self.origin = json.loads(json.dumps(origin))  # as it is read: a list for a tuple
        self._path = path
        self._values = ranks.first(self._kept)
        self.earlier = list(self._values)
        self.failures: dict[str, str] = {}

    def _kept(self) -> dict[str, Any]:
        """What the file holds; nothing where it is missing, damaged or of another origin."""
        if self._path is None or not self._path.is_file():
            return {}
        with suppress(WagleError):
            content = read_json(self._path)
            if isinstance(content, dict) and content.get("origin") == self.origin:
                return content.get("measured", {})
        return {}

    def get(
        self,
        name: str,
        measure: Callable[[], Value],
        *,
        write: Callable[[Value], Any] = lambda value: value,
        read: Callable[[Any], Value] = lambda value: value,
    ) -> Value:
        """What is called ``name``, measured unless it is there already.

        Args:
            write, read: to and from what a JSON file can hold.
        """
        if name in self._values:
            return read(self._values[name])
        value = measure()
        self._values[name] = write(value)
        if self._path is not None and ranks.is_first():
            content = {"origin": self.origin, "measured": self._values}
            try:
                write_json(self._path, content, durable=True)
            except WagleError as error:
                say(f"warning: {name} has been measured and is not kept: {error}")
        return value

    def attempt(self, name: str, measure: Callable[[], Value]) -> Value | None:
        """As :meth:`get`; a failure is noted, and does not keep others from being measured."""
        try:
            return self.get(name, measure)
        except WagleError as error:
            self.failures[name] = str(error)
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()  # a mistake of ours, or a library's: where it happened matters
            self.failures[name] = f"{type(error).__name__}: {error}"
        return None

    def check(self) -> None:
        """Raise what could not be measured.

        Raises:
            WagleError: the message names all that failed.
        """
        if not self.failures:
            return
        kept = ""
        if self._path is not None and self._values:
            kept = (
                f"\nWhat has been measured ({', '.join(self._values)}) is kept in {self._path}; "
                "the same command measures the rest"
            )
        reasons = "".join(f"\n{name}: {reason}" for name, reason in self.failures.items())
        raise WagleError(f"not everything could be evaluated{reasons}{kept}")

    def remove(self) -> None:
        """Remove the file, the pieces, and the folders of the cache that are then empty."""
        if self.pieces is not None and ranks.is_first():
            shutil.rmtree(self.pieces, ignore_errors=True)
        if self._path is not None and ranks.is_first():
            with suppress(OSError):
                self._path.unlink()
                for folder in list(self._path.parents)[:3]:
                    folder.rmdir()
