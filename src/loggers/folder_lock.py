"""A lock on a folder: one process at a time writes to it, and others are told so."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from wagle.errors import ConfigError

_PATIENCE = 2.0
"""Seconds to try for: :func:`in_use` holds the lock for an instant, which is no reason to fail."""


class FolderLock:
    """The lock of a folder: a file beside it, which frees itself when its process ends.

    Args:
        folder: need not be there yet.
        key: the configuration key that names another folder, for messages.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        self._lock = _lock(folder)

    def acquire(self) -> None:
        """Make the folder's parent and take the lock.

        Raises:
            ConfigError: another process has it, or nothing can be written there.
        """
        with self.writing():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if self.folder.is_symlink() and not self.folder.exists():
                raise ConfigError(f"{self.folder} is a link to nothing; remove it, {self._other}")
            if self.folder.exists() and not self.folder.is_dir():
                raise ConfigError(f"{self.folder} is a file, not a folder; {self._other}")
            with tempfile.TemporaryFile(dir=self.folder.parent) as trial:
                trial.write(bytes(4096))  # a full disk still makes empty files, such as the lock
            try:
                self._lock.acquire(timeout=_PATIENCE)
            except Timeout as error:
                raise ConfigError(
                    f"another process is writing to {self.folder}; wait for it, {self._other}"
                ) from error

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        self._lock.release()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the system says about an unusable folder into one message.

        Raises:
            ConfigError: in place of OSError.
        """
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"nothing can be written to {self.folder}: {error.strerror}; {self._other}"
            ) from error

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *failure: object) -> None:
        self.release()

    @property
    def _other(self) -> str:
        return f"or pass another --{self.key}"


def in_use(folder: Path) -> bool:
    """Whether a process is writing to the folder at this moment."""
    lock = _lock(folder)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f".{folder.name}.lock"))
