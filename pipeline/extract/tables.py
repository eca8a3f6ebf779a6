"""Tables as one document: a paragraph for each row, its values under the names of their columns.

So a chunk from the middle of a long table still says what its values are. Rows as documents of their own are made by
the sources (docs/sources.md).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from typing import TYPE_CHECKING, Any

from pipeline.delimited import sniff_delimiter, unique_names
from pipeline.errors import DocumentTooLarge, ExtractionFailed

if TYPE_CHECKING:
    import pyarrow as pa

# Of the text that is written: column names are repeated in each row, and Parquet is compressed.
_MAX_CHARACTERS = 64 * 1024 * 1024
_SAMPLE = 1 << 16  # characters
_CHECKED_ROWS = 100
_REGULAR_SHARE = 0.9
_BATCH_ROWS = 256


def write_csv(text: str, uri: str) -> str:
    """The rows of a CSV text, blank values left out. What is no table under a header comes back as it is: most rows
    must have as many fields as the first. Raises DocumentTooLarge."""
    limit = csv.field_size_limit(len(text) + 1)
    try:
        delimiter = sniff_delimiter(text[:_SAMPLE], uri)
        header, regular = _look(text, delimiter)
        if len(header) < 2 or not regular:
            return text
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        next(row for row in reader if any(row))
        return _paragraphs(_named(reader, unique_names(header)), uri)
    except csv.Error:
        return text
    finally:
        csv.field_size_limit(limit)


def _look(text: str, delimiter: str) -> tuple[list[str], bool]:
    """The header, and whether what follows looks like its rows."""
    rows: list[list[str]] = []
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
        if any(row):
            rows.append(row)
        if len(rows) > _CHECKED_ROWS:
            break
    if len(rows) < 2:
        return [], False
    header, body = rows[0], rows[1:]
    return header, sum(len(row) == len(header) for row in body) >= _REGULAR_SHARE * len(body)


def _named(rows: Iterable[Sequence[str]], columns: Sequence[str]) -> Iterator[Iterator[tuple[str, str]]]:
    for row in rows:
        extra = [f"column_{number}" for number in range(len(columns) + 1, len(row) + 1)]
        yield zip([*columns, *extra], row, strict=False)


def write_parquet(data: bytes, uri: str) -> str:
    """The rows of a Parquet file. Raises ExtractionFailed, DocumentTooLarge."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _paragraphs(_rows(pq.ParquetFile(io.BytesIO(data), pre_buffer=False)), uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ExtractionFailed(f"{uri} cannot be read as Parquet: {error}") from None


def _rows(file: Any) -> Iterator[Iterator[tuple[str, str]]]:
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
        columns = [_texts(column) for column in batch.columns]
        for number in range(batch.num_rows):
            yield zip(batch.schema.names, (column[number] for column in columns), strict=True)


def _texts(column: pa.Array) -> list[str]:
    import pyarrow as pa

    try:
        return [_text(value) for value in column.to_pylist()]
    except (pa.ArrowException, ValueError, OverflowError):  # nanoseconds, years after 9999
        return [value or "" for value in column.cast(pa.string()).to_pylist()]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bytes) or value != value:  # noqa: PLR0124  NaN
        return ""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {text}" for key, item in value.items() if (text := _text(item)))
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(_text, value)))
    return str(value)


def _paragraphs(rows: Iterable[Iterable[tuple[str, str]]], uri: str) -> str:
    parts: list[str] = []
    left = _MAX_CHARACTERS
    for row in rows:
        lines = [f"{column}: {value}" for column, text in row if (value := text.strip())]
        if not lines:
            continue
        paragraph = "\n".join(lines)
        left -= len(paragraph) + 2
        if left < 0:
            raise DocumentTooLarge(
                f"{uri} has more than {_MAX_CHARACTERS:,} characters when its columns are named in every row; make a "
                "document of each row (--id-column), or split it"
            )
        parts.append(paragraph)
    return "\n\n".join(parts)
