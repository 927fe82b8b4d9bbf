"""How far work on many rows has come, kept while a model is evaluated: the next attempt goes on.

Answers to 800 questions and likelihoods of 2,000 texts take long. What is done of them is written
down now and then, to a file that is named after all that was asked::

    with keeping(model, folder, origin, print):
        generate_greedy(model, prompts, …)  # killed after 256 of 800 rows

the next time begins with the other 544, and comes to what it would have come to at once. Nothing is
kept of what other models are asked in between. Of several processes that have dealt out rows each
keeps its own, which serves as many processes again.

A signal that asks the program to end is obeyed where work can go on, after a batch, and what is
done by then is written down. Work that is not kept ends at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from wagle import ranks, shards
from wagle.errors import WagleError
from wagle.loggers.files import json_checksum, read_json, write_json
from wagle.pace import Pace
from wagle.stopping import StopRequest, deferring
from wagle.terminal import say

SECONDS_BETWEEN = 60.0
MOST_TIME = 0.02  # of the work, for writing


@dataclass(frozen=True)
class _Place:
    """Where a model's work is kept.

    Attributes:
        earlier: the files that another attempt has left.
        on_resume: told after what some work went on.
    """

    folder: Path
    origin: Mapping[str, Any]
    earlier: frozenset[Path]
    on_resume: Callable[[str], None]


_places: WeakKeyDictionary[PreTrainedModel, _Place] = WeakKeyDictionary()


@contextmanager
def keeping(
    model: PreTrainedModel,
    folder: Path | None,
    origin: Mapping[str, Any],
    on_resume: Callable[[str], None],
) -> Iterator[None]:
    """Within, it is kept how far work with this model has come.

    Args:
        folder: of the files; ``None``: nothing is kept.
        origin: all that decides results beside what is asked, as JSON: weights, versions, …
        on_resume: told after what some work went on, such as ``256 of 800 rows: answers``.
    """
    if folder is not None:
        earlier = frozenset(folder.iterdir()) if folder.is_dir() else frozenset()
        _places[model] = _Place(folder, dict(origin), earlier, on_resume)
    try:
        yield
    finally:
        _places.pop(model, None)


class PartialWork:
    """How far one piece of work has come; a context manager around the work itself.

    Args:
        model: that works; unless it is being kept (:func:`keeping`), nothing is done here.
        description: of the work, such as ``answering questions``.
        total: units of work; ``None`` where that is not known.
        asked: all that decides what they come to, beside the origin, as JSON.
        unit: what is counted, in the singular.
        until: what is brought to its end before a signal is obeyed.

    Attributes:
        found: what an earlier attempt has noted last, for the work to go on from; else ``None``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        description: str,
        total: int | None,
        asked: Callable[[], Any],
        unit: str = "row",
        until: str = "this batch",
    ) -> None:
        self.found: Any = None
        self._request = StopRequest(until)
        of_all = "" if total is None else f"of {total} "
        self._what = f"{of_all}{unit}s: {description}"
        self._place = _places.get(model)
        self._deferring = nullcontext(self._request) if self._place is None else deferring(until)
        if self._place is None:
            return
        # Where all processes do the same together, the first one alone reads and writes.
        self._together = not shards.runs_alone(model)
        self._path = self._place.folder / f"{json_checksum([description, asked()])}.json"
        self._pace = Pace(SECONDS_BETWEEN, MOST_TIME)
        done, self.found = ranks.first(self._kept) if self._together else self._kept()
        if done:
            say(f"going on after {done} {self._what}")
            self._place.on_resume(f"{done} {self._what}")

    def __enter__(self) -> Self:
        self._request = self._deferring.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._deferring.__exit__(kind, failure, traceback)

    def _kept(self) -> tuple[int, Any]:
        """What the file says; nothing where it is missing, damaged or of another origin."""
        assert self._place is not None
        if self._path in self._place.earlier:
            with suppress(WagleError, KeyError, TypeError):
                file = read_json(self._path)
                whole = file["checksum"] == json_checksum([file["done"], file["content"]])
                if whole and file["origin"] == self._place.origin:
                    return file["done"], file["content"]
        return 0, None

    def note(self, done: int, content: Callable[[], Any]) -> None:
        """Write down how far it is if it is time to, or the last time: then the program ends.

        Args:
            done: units of work.
            content: makes what the work can go on from, as JSON.

        Raises:
            KeyboardInterrupt: a signal has asked for it.
        """
        if self._place is None:
            return
        asked = self._request.kind is not None
        if self._together:
            asked = ranks.any_of(asked)
        writes = not self._together or ranks.is_first()
        if writes and (asked or self._pace.due()):
            self._write(done, content(), asked=asked)
        if asked:
            self._request.end()

    def _write(self, done: int, content: Any, *, asked: bool) -> None:
        """Write it down; what keeps it from being written is only said."""
        assert self._place is not None
        with self._pace.writing():
            file = {
                "origin": self._place.origin,
                "checksum": json_checksum([done, content]),
                "done": done,
                "content": content,
            }
            try:
                write_json(self._path, file, durable=True)
            except (WagleError, ValueError) as error:
                say(f"warning: {done} {self._what} are done and not kept: {error}")
            else:
                if asked:
                    say(f"the same command goes on after {done} {self._what}")
