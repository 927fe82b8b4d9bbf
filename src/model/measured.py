"""What an evaluation has measured so far: kept at once, and not measured twice."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from wagle.errors import WagleError
from wagle.loggers import Logger
from wagle.loggers.run_folder import PARTIAL_RESULTS

Value = TypeVar("Value")


class Measured:
    """Numbers by name, in the run folder's ``results.partial.json`` until the run has finished.

    Args:
        logger: keeps them, and has what an earlier attempt kept.
        origin: what they depend on; numbers of another origin are not used.

    Attributes:
        failures: messages of what could not be measured, by name.
    """

    def __init__(self, logger: Logger, origin: Mapping[str, Any]) -> None:
        self._logger = logger
        self._origin = dict(origin)
        self.failures: dict[str, str] = {}
        earlier = logger.load(PARTIAL_RESULTS) or {}
        self._values = earlier.get("measured", {}) if earlier.get("origin") == self._origin else {}

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
        content = {"origin": self._origin, "measured": self._values}
        self._logger.save(PARTIAL_RESULTS, content)
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
        if self._logger.folder is not None and self._values:
            kept = (
                f"\nWhat has been measured ({', '.join(self._values)}) is kept in "
                f"{self._logger.folder / PARTIAL_RESULTS}; the same command measures the rest"
            )
        reasons = "".join(f"\n{name}: {reason}" for name, reason in self.failures.items())
        raise WagleError(f"not everything could be evaluated{reasons}{kept}")
