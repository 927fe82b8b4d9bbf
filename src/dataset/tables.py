"""Rows of CSV, TSV and Parquet files, read as they are written: no cache, no guessed types."""

from __future__ import annotations

import csv
import io
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

from wagle.dataset.columns import PlacedRow
from wagle.dataset.json_lines import not_utf8, open_plain
from wagle.errors import WagleError

_LONGEST_FIELD = 1 << 30  # characters; the csv module's own limit is 131,072
_SEPARATORS = {"csv": (",", "commas"), "tsv": ("\t", "tabs")}


def separated_rows(path: Path, form: str) -> Iterator[PlacedRow]:
    """The rows of a table whose first line names its columns, each with its place in the file.

    Every value is the text that stands there: ``5`` and ``None`` are texts too. Blank lines are no
    rows. Quoted values may hold separators and line ends (RFC 4180).

    Args:
        form: ``csv``, separated by commas, or ``tsv``, by tabs.

    Raises:
        WagleError: the file is no UTF-8 text or no such table; the message names the line.
    """
    separator, separators = _SEPARATORS[form]
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise WagleError(
                f"{path}, {place}, cannot be read as {form.upper()}: {error}; values are separated "
                f"by {separators}, and one that holds such or a quote is quoted"
            ) from error
        if not values:
            continue
        if header is None:
            header = values
            _check_header(path, header)
        elif len(values) != len(header):
            raise WagleError(
                f"{path}, {place}: {_count(len(values), 'value')} for the "
                f"{_count(len(header), 'column')} {', '.join(header)}; values are separated by "
                f"{separators}, and one that holds such is quoted"
            )
        else:
            yield place, dict(zip(header, values, strict=True))


def _text(path: Path) -> str:
    """The whole file, without a byte-order mark."""
    try:
        with open_plain(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise not_utf8(path, f"line {line}", error) from error
    except (OSError, EOFError, zlib.error) as error:
        raise WagleError(f"{path} cannot be read: {error}") from error


def _check_header(path: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise WagleError(
            f"{path}: the column {twice[0]!r} is there {Counter(names)[twice[0]]} times; the first "
            "line should name each column once"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def read_parquet(path: Path) -> datasets.Dataset:
    """The whole table, in memory.

    Raises:
        WagleError: the file is no Parquet file, or names a column twice.
    """
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        table.validate(full=True)  # texts are UTF-8
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise WagleError(f"{path} cannot be read as Parquet: {reason}") from error
    _check_header(path, table.column_names)
    return datasets.Dataset(pyarrow.table([_plain(c) for c in table.columns], table.column_names))


def _plain(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Texts that the file keeps as numbers of a dictionary, or as views, as texts."""
    kept = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    is_text = pyarrow.types.is_string(kept) or pyarrow.types.is_string_view(kept)
    return column.cast(pyarrow.string()) if is_text else column
