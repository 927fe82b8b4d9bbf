"""Sums of gradients so far, kept beside the file that is to hold them: an attribution goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from wagle import ranks
from wagle.errors import WagleError
from wagle.pace import Pace
from wagle.terminal import say
from wagle.training.checkpoint import resumption
from wagle.unlearn.mask.sums import GradientSums
from wagle.unlearn.mask.tensor_file import TensorFile, filling, unfinished

SECONDS_BETWEEN = 300.0
MOST_TIME = 0.02  # of an attribution, for writing
SPEED = 5e8  # bytes a second that a disk is taken to write, until it has shown what it does


class PartialSums:
    """The sums over the first rows, on the disk while those of further rows are added.

    A file of its own, a copy of what is in memory or in a file that is being added to: a process
    that is killed in the middle of an addition leaves the copy whole. It is complete, checked and
    on the disk before it has its name, and gone when the sums are.

    Adding goes on in the order in which it would have gone on, so that on a CPU the sums are those
    of an undisturbed attribution bit for bit.

    Args:
        path: final name of the sums.
        fingerprint: of everything that they depend on.
        rows: that are summed in all.
        on_resume: told of every time when an attempt went on, as manifests list it.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        rows: int,
        on_resume: Callable[[dict[str, str]], None],
    ) -> None:
        self._path = unfinished(path)
        self._what = path.name.removesuffix(".safetensors")
        self._fingerprint = fingerprint
        self._rows = rows
        self._on_resume = on_resume
        self._resumed: list[dict[str, str]] = []
        self._pace = Pace(SECONDS_BETWEEN, MOST_TIME)

    def restore(self, sums: GradientSums) -> int:
        """Put the kept sums in place, if there are some and they are of these very rows.

        Args:
            sums: all zero so far.

        Returns:
            How many rows are in the sums; 0 where nothing can be used, which is said.
        """
        values = sum(shape.numel() for shape in sums.shapes.values())
        self._pace = Pace(SECONDS_BETWEEN, MOST_TIME, values * sums.dtype.itemsize / SPEED)
        done, self._resumed = ranks.first(lambda: self._kept(sums))
        if done:
            sums.read(TensorFile(self._path))
            self._resumed.append(resumption(f"{done} rows of {self._what}"))
        for entry in self._resumed:
            self._on_resume(entry)
        return done

    def _kept(self, sums: GradientSums) -> tuple[int, list[dict[str, str]]]:
        """How many rows are in the kept sums, 0 if they cannot be used, and when they went on."""
        if not self._path.exists():
            return 0, []
        try:
            file = TensorFile(self._path)
            if file.metadata.get("fingerprint") != self._fingerprint:
                raise WagleError(f"{self._path} belongs to another model, data or settings")
            file.verify()
            done, resumed = _progress(file)
            if not (
                0 < done <= self._rows and file.shapes == sums.shapes and file.holds(sums.dtype)
            ):
                raise WagleError(f"{self._path} holds other sums than it should")
        except WagleError as error:
            say(f"{error}: beginning with the first row")
            return 0, []
        say(f"going on after {done} of {self._rows} rows, from {self._path}")
        return done, resumed

    def after(self, done: int, sums: GradientSums, *, asked: bool) -> None:
        """Write the sums down if it is time to; what keeps them from being written is only said.

        Args:
            done: rows that are in them.
            asked: write them in any case.
        """
        if not (asked or ranks.first(self._pace.due)):
            return
        metadata = {
            "fingerprint": self._fingerprint,
            "rows": str(done),
            "resumed": json.dumps(self._resumed),
        }
        try:
            with (
                self._pace.writing(),
                filling(self._path, sums.shapes, sums.dtype, metadata) as file,
            ):
                sums.write(file)
        except WagleError as error:
            say(f"warning: the sums so far are not kept: {error}")
        else:
            if asked:
                say(f"the same command goes on after {done} of {self._rows} rows: {self._path}")


def _progress(file: TensorFile) -> tuple[int, list[dict[str, str]]]:
    """How many rows are in the sums, and when earlier attempts went on.

    Raises:
        WagleError: the file does not say.
    """
    try:
        return int(file.metadata["rows"]), json.loads(file.metadata["resumed"])
    except (KeyError, ValueError, RecursionError) as error:
        raise WagleError(f"{file.path} does not say how far it is") from error
