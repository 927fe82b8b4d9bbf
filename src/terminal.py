"""What the program says: lines and progress, on a terminal and in a log file.

On a terminal progress is a bar. Elsewhere it is a line now and then, so that a log file tells how
far a run has come without filling up. Nothing that happens to the output decides over a run: text
that cannot be written is lost, and the run goes on.
"""

from __future__ import annotations

import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from rich.table import Table

LINE_SECONDS = 15.0
"""Between two lines about progress, where there is no terminal."""

Item = TypeVar("Item")

# Control characters but line feed and tab, marks that reverse the order of text, lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

_last_line = time.monotonic()
_silent = False


def fall_silent() -> None:
    """Say nothing from now on but why this process fails: another one speaks for it."""
    global _silent  # noqa: PLW0603, the terminal is one for all
    _silent = True
    warnings.simplefilter("ignore")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # read when the library is imported


def plain(text: object) -> str:
    r"""Text as it may be shown: an escape character, say, becomes ``\x1b``.

    Names and values come from files and command lines, and a terminal would obey what is in them.
    """
    return _UNPRINTABLE.sub(lambda m: m.group().encode("unicode_escape").decode(), str(text))


def say(text: object, file: TextIO | None = None) -> None:
    """Print a line, to standard output unless told otherwise, without tearing a bar apart."""
    if not _silent:
        tqdm.write(plain(text), file=file or sys.stdout)


def show_table(table: Table) -> None:
    """Print a table of rich's; what stands in square brackets is text, not markup."""
    if _silent:
        return
    from rich.console import Console

    Console(markup=False, emoji=False, highlight=False).print(table)


def say_phase(name: str) -> None:
    """In a log file, that a new phase of the run begins; on a terminal its bars show that."""
    if not sys.stderr.isatty():
        _say_now(f"[{time.strftime('%H:%M:%S')}] {name}")


class Progress:
    """How far some work has come: a bar on a terminal, elsewhere a line now and then.

    Used as a context manager with :meth:`update`, or around what is iterated over, :meth:`over`.

    Args:
        description: what is done, such as ``training``.
        total: of how many units; ``None`` where that is not known.
        unit: what is counted, in the singular.
        scale: show large counts as ``1.2M``.
    """

    def __init__(
        self, description: str, total: int | None, unit: str = "row", *, scale: bool = False
    ) -> None:
        self.count = 0
        self._total = total
        self._said = False
        self._start = time.monotonic()
        self._form = {"unit": unit, "unit_scale": scale}
        self._description = plain(description)
        self._values: dict[str, Any] = {}
        self._bar = tqdm(desc=self._description, total=total, disable=_silent or None, **self._form)

    def update(self, count: int = 1, **values: float) -> None:
        """Say that ``count`` more units are done; values such as ``loss=1.2`` are shown along."""
        self.count += count
        self._values.update(values)
        if not self._bar.disable:
            if values:
                self._bar.set_postfix(self._values, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - _last_line >= LINE_SECONDS:
            self._line()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; each counts as a unit when the next one is asked for."""
        with self:
            for item in items:
                yield item
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._said and self._bar.disable and failure[0] is None:
            self._line()  # work that had lines so far has one about its end
        self._bar.close()

    def _line(self) -> None:
        self._said = True
        shown = ", ".join(f"{name}={value:.4g}" for name, value in self._values.items())
        elapsed = time.monotonic() - self._start
        text = tqdm.format_meter(
            self.count,
            self._total,
            elapsed,
            ncols=0,  # no bar
            prefix=self._description,
            postfix=shown,
            **self._form,
        )
        _say_now(text)


def _say_now(text: str) -> None:
    global _last_line  # noqa: PLW0603
    _last_line = time.monotonic()
    if not _silent:
        print(plain(text), file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------ streams


def secure_streams() -> tuple[UnfailingStream, UnfailingStream]:
    """Make standard output and standard error never raise, whatever they are connected to.

    A descriptor that is closed is opened on the null device: otherwise the next file that is opened
    would get its number, and what libraries print would end up in that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
            os.set_inheritable(opened, True)
    sys.stdout = output = _secured(sys.stdout)
    sys.stderr = errors = _secured(sys.stderr)
    return output, errors


def _secured(stream: TextIO | None) -> UnfailingStream:
    if stream is None:
        stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115, it stays open
    elif isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return UnfailingStream(stream)


class UnfailingStream:
    """A text stream whose writing never raises.

    Args:
        stream: where the text goes; everything else that is asked for is asked of it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def close_quietly(self) -> None:
        """Flush for the last time; what cannot be written is not tried again, nor complained of."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._forget()

    def _drop(self, error: Exception) -> None:
        # A full disk may have room again later; a reader that has gone does not come back.
        if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
            self._forget()

    def _forget(self) -> None:
        """Send what is buffered, and all that follows, to the null device."""
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except (OSError, ValueError):  # closed, or no file at all
            self._stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
