"""Writing files so that an interrupted run leaves nothing that looks finished.

What is being written has a name of its own beside its final one, so that processes that make the
same file do not meet: ``NAME.PID.HEX.partial``, where HEX starts with the host's. It takes the
final name when it is complete. What a killed process left is removed when a later one first writes
into that folder, or goes on with what lies there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from wagle.errors import WagleError
from wagle.terminal import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_FORMATS = ("png", "pdf")
DOTS_PER_INCH = 300  # of PNG pictures: what publishers ask for

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_PART = re.compile(r".+\.(?P<pid>\d+)\.(?P<host>[0-9a-f]{6})[0-9a-f]{8}\.partial", re.DOTALL)
_NAME_BYTES = 200  # of the final name in the temporary one: file systems take 255 altogether
_mine: set[Path] = set()  # parts that this process is writing
_swept: set[Path] = set()  # folders that this process has looked through


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A new empty file to be written; it takes the place of ``path`` when the block ends well.

    Otherwise it is removed. Missing folders are made. The file's mode is the umask's.

    Args:
        durable: the content is on the disk before it has its name, for what took long to make.

    Raises:
        WagleError: the system refuses to write, here or in the block.
    """
    with _writing(path):
        with _part(path) as part:
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # some libraries write files for their owner alone
            if durable:
                _sync(part)
            _give_name(part, path)
        if durable:
            _sync(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, durable, for a folder of files."""
    with _writing(path):
        with _part(path) as part:
            part.mkdir()
            yield part
            for file in part.rglob("*"):
                if file.is_file():
                    file.chmod(part.stat().st_mode & 0o666)
                _sync(file)
            _sync(part)
            _give_name(part, path)
        _sync(path.parent)


def _give_name(part: Path, path: Path) -> None:
    """Rename a part to what it is a part of, over what has that name.

    A folder that is not empty cannot be renamed over, and on some file systems (network shares)
    nothing can: what is there is moved aside then, and back where that did not help.
    """
    try:
        part.replace(path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        with _part(path) as old:
            try:
                path.rename(old)
                part.replace(path)
            except BaseException:  # also a signal in between
                if not os.path.lexists(path):
                    old.rename(path)
                raise


def check_room(folder: Path, size: int) -> None:
    """Make sure that ``size`` bytes fit on the disk, before they are computed.

    Raises:
        WagleError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise WagleError(
            f"{folder} has room for {free:,} bytes, and the model takes {size:,}: make room, or "
            "choose a folder on another disk"
        )


def is_part(path: Path) -> bool:
    """Whether the name is one that an unfinished file or folder of this program has."""
    return _PART.fullmatch(path.name) is not None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise WagleError(f"{path} cannot be written: {error.filename} is no folder") from error
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WagleError(f"{path} cannot be written: {reason}") from error


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """An unused temporary name for ``path``; whatever has it at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_dead_parts(path.parent)
    name = path.name.encode()[:_NAME_BYTES].decode(errors="ignore")
    part = path.with_name(f"{name}.{os.getpid()}.{_HOST}{uuid.uuid4().hex[:8]}.partial")
    _mine.add(part)
    try:
        yield part
    finally:
        _remove(part)
        _mine.discard(part)


def remove_dead_parts(folder: Path) -> None:
    """Remove the parts in a folder whose process on this host is gone, once for each process."""
    folder = folder.absolute()
    if folder in _swept or not folder.is_dir():
        return
    _swept.add(folder)
    for path in folder.iterdir():
        found = _PART.fullmatch(path.name)
        if found and found["host"] == _HOST and not _is_written(path, int(found["pid"])):
            _remove(path)


def _is_written(part: Path, pid: int) -> bool:
    if pid == os.getpid():  # in a container every start may have the same number
        return part in {mine.absolute() for mine in _mine}
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's process
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(path: Path, timeout: float | None = None) -> Iterator[None]:
    """Let one process at a time make what lies at a path; the others say that they wait.

    Args:
        timeout: seconds to wait; ``None`` sets no limit.

    Raises:
        WagleError: the time is over, or there can be no lock beside the path.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is making {path}: waiting for it ({_limit(timeout)})")
            try:
                lock.acquire(timeout=-1 if timeout is None else timeout)
            except Timeout as error:
                raise WagleError(
                    f"another process was still making {path} after {timeout:g} seconds "
                    "(unlearn.lock_timeout)"
                ) from error
    try:
        yield
    finally:
        lock.release()


def _limit(timeout: float | None) -> str:
    limit = "as long as it takes" if timeout is None else f"up to {timeout:g} seconds"
    return f"{limit}; unlearn.lock_timeout"


def bytes_fingerprint(path: Path) -> str:
    """XXH3-128, in hex, of a file's content."""
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def _sync(path: Path) -> None:
    """Have the system write a file or a folder's list of names to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(*([OSError] if path.is_dir() else [])):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any, *, durable: bool = False) -> None:
    """Write JSON that is complete or not there; ``durable`` as for :func:`replacing`.

    Raises:
        ValueError: the content holds NaN or an infinity, which JSON cannot express.
        WagleError: the system refuses to write.
    """
    write_text(path, to_json(content), durable=durable)


def to_json(content: Any) -> str:
    """JSON as people read it.

    Raises:
        ValueError: the content holds NaN or an infinity, which JSON cannot express.
    """
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_checksum(content: Any) -> str:
    """XXH3-128, in hex, of what a JSON file can hold, whatever the order of its keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        WagleError: it cannot be read, or is no JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WagleError(f"{path} cannot be read as JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        WagleError: it cannot be read, or holds something else; the message names it.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise WagleError(f"{path} holds no JSON object: remove it, or name another file")
    return content


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a UTF-8 text file that is complete or not there.

    Raises:
        WagleError: the system refuses to write.
    """
    with replacing(path, durable=durable) as part:
        part.write_text(text, encoding="utf-8")


def write_figure(name: Path, figure: Figure) -> list[Path]:
    """Write a picture as ``{name}.png`` and ``{name}.pdf``, each complete or not there.

    A name that ends in .png or .pdf stands for both as well.
    PDF files carry their fonts as TrueType: publishers refuse matplotlib's default, Type 3.
    """
    import matplotlib

    stem = name.stem if name.suffix[1:] in PICTURE_FORMATS else name.name
    paths = [name.with_name(f"{stem}.{form}") for form in PICTURE_FORMATS]
    for form, path in zip(PICTURE_FORMATS, paths, strict=True):
        with replacing(path) as part, matplotlib.rc_context({"pdf.fonttype": 42}):
            figure.savefig(part, format=form, dpi=DOTS_PER_INCH)
    return paths
