"""Tables: CSV and its relatives as a stream, workbooks and Parquet by their own readers."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline.delimited import sniff_delimiter, unique_names
from pipeline.errors import InvalidDocument
from pipeline.sources.lines import LINE_SLACK, Lines, LineTooLong, Stream, repaired
from pipeline.sources.rows import Row, Rows

SAMPLE_ROWS = 1000  # rows from which the type of a CSV column is told
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?(?:[eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class Table:
    """An open table: its columns, its first records (to look into nested values), and all its rows."""

    columns: Sequence[str]
    sample: Sequence[Mapping[str, Any]]
    rows: Iterator[Row]


def look_ahead(rows: Iterator[Row], size: int) -> tuple[list[Row], Iterator[Row]]:
    """The first rows, and all of them. What breaks while the first are read is raised after them."""
    first: list[Row] = []
    trouble: Exception | None = None
    try:
        first.extend(islice(rows, size))  # keeps what came before an error
    except Exception as error:  # noqa: BLE001  it is raised below, in its place
        trouble = error

    def everything() -> Iterator[Row]:
        yield from first
        if trouble is not None:
            raise trouble
        yield from rows

    return first, everything()


def sampled(columns: Sequence[str], rows: Iterator[Row], size: int) -> Table:
    """A table whose first rows have been looked at; without columns of its own it has those of its first records."""
    first, everything = look_ahead(rows, size)
    sample = [row.record for row in first if not row.error]
    found = columns or list(dict.fromkeys(name for record in sample for name in record))
    return Table(found, sample, everything)


def read_csv(file: Stream, name: str, rows: Rows, max_bytes: int) -> Table:
    """The rows under a header row. The header is row 1; blank rows are passed over.

    Types: a column whose first 1,000 values are all numbers, or all true and false, has numbers, or truth values;
    the columns of text and id stay as they are written. Raises InvalidDocument where there is no header.
    """
    csv.field_size_limit(max_bytes + LINE_SLACK)  # of the whole process; Millrace is the only one that reads CSV in it
    lines = Lines(file, max_bytes)
    delimiter = rows.delimiter or sniff_delimiter(lines.sample, name)
    found = _csv_rows(lines, delimiter)
    header = next(found, None)
    if header is None or header.error:
        raise InvalidDocument(f"{name} has no header row" + (f": {header.error}" if header and header.error else ""))
    columns = unique_names(header.record["fields"])
    first, body = look_ahead(_as_records(found, columns), SAMPLE_ROWS)
    types = _column_types([row.record for row in first if not row.error], columns, rows.as_text)
    return Table(columns, [], (_typed(row, types) for row in body))


def _csv_rows(lines: Lines, delimiter: str) -> Iterator[Row]:
    """The rows that are not blank, their fields under `fields`; a row that cannot be read is one with an error."""
    reader = csv.reader(lines, delimiter=delimiter)
    number = 0
    while True:
        number += 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (csv.Error, LineTooLong) as error:
            yield Row(number, error=str(error))
            continue
        if any(field and not field.isspace() for field in fields):
            yield Row(number, {"fields": [repaired(field) for field in fields]})


def _as_records(rows: Iterator[Row], columns: Sequence[str]) -> Iterator[Row]:
    width = len(columns)
    for row in rows:
        if row.error:
            yield row
            continue
        fields = row.record["fields"]
        if len(fields) > width and not any(fields[width:]):
            fields = fields[:width]  # a delimiter too many at the end
        if len(fields) != width:
            yield Row(row.number, error=f"it has {len(fields)} fields, the header has {width}")
        else:
            yield Row(row.number, dict(zip(columns, fields, strict=True)))


def _column_types(
    sample: Sequence[Mapping[str, str]], columns: Sequence[str], as_text: frozenset[str]
) -> dict[str, type]:
    types: dict[str, type] = {}
    for column in columns:
        values = [value for record in sample if (value := record[column].strip())]
        if column in as_text or not values:
            continue
        if all(_INTEGER.fullmatch(value) for value in values):
            types[column] = int
        elif all(_NUMBER.fullmatch(value) for value in values):
            types[column] = float
        elif all(value.lower() in {"true", "false"} for value in values):
            types[column] = bool
    return types


def _typed(row: Row, types: Mapping[str, type]) -> Row:
    if row.error or not types:
        return row
    record = dict(row.record)
    for column, kind in types.items():
        record[column] = _converted(record[column].strip(), kind)
    return Row(row.number, record)


def _converted(value: str, kind: type) -> Any:
    """The value as a number or truth value; as it is written where it is none, after all."""
    if kind is int:
        return int(value) if _INTEGER.fullmatch(value) else value
    if kind is float:
        return float(value) if _NUMBER.fullmatch(value) else value
    return value.lower() == "true" if value.lower() in {"true", "false"} else value
