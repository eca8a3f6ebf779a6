"""How the rows of a table, or the records of a list, become documents."""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from pipeline.document import Document, Metadata, encodable
from pipeline.errors import InvalidDocument, InvalidRequest, MillraceError
from pipeline.sources.inline import check_document
from pipeline.sources.names import escaped

_MAX_INTEGER = 2**63  # Qdrant's integers have 64 bits
_MAX_TEXT_VALUE = 200  # characters of metadata, where all columns are text as well
TITLE = "title"
# Plain text that says so: the name of the table must not tell what the text of a row is.
ROW_TYPE = "text/x-row"


class Row(NamedTuple):
    """One row: its number as a person counts it, and its values by column, or what is wrong with it."""

    number: int
    record: Mapping[str, Any] = {}
    error: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """How a row becomes a document: its uri is that of the file, `#` and the id.

    id_column: the value that names the row; None: its number (`#row=17`).
    text_columns: the text, in this order; none: all columns but the id.
    title_column: the title; None: the column `title`, where there is one.
    metadata_columns: the metadata; None: every column that is not text.
    records: where in a JSON object the list is, such as `result.items`; None: the document is the list.
    sheet: the sheet of a workbook; None: the first one. delimiter: of a CSV file; None: told from its first lines.
    Columns of JSON and Parquet may be dotted paths into nested values (`author.name`, `tags.0`).
    """

    id_column: str | None = None
    text_columns: tuple[str, ...] = ()
    title_column: str | None = None
    metadata_columns: tuple[str, ...] | None = None
    records: str | None = None
    sheet: str | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequest for a column without a name, and for a delimiter of several characters."""
        if any(not isinstance(name, str) or not name for name in self.named):
            raise InvalidRequest(f"a column is named by its text in the header, not by {list(self.named)!r}")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise InvalidRequest(f"the delimiter of a CSV file is one character, such as ';', not {self.delimiter!r}")

    @property
    def named(self) -> tuple[str, ...]:
        """Every column that is named, once."""
        singles = [name for name in (self.id_column, self.title_column) if name is not None]
        return tuple(dict.fromkeys([*singles, *self.text_columns, *(self.metadata_columns or ())]))

    @property
    def as_text(self) -> frozenset[str]:
        """Columns whose values are taken as they are written: `007` and `1.10` are no numbers there."""
        return frozenset(name for name in (self.id_column, self.title_column, *self.text_columns) if name)

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` makes the same of them again."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises InvalidRequest for unknown names."""
        if unknown := set(value) - set(cls.__dataclass_fields__):
            raise InvalidRequest(f"rows have no {', '.join(sorted(unknown))}; see docs/sources.md, Tables and records")
        given: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        return cls(**given)


def check_columns(rows: Rows, columns: Sequence[str], sample: Iterable[Mapping[str, Any]], name: str) -> None:
    """Raises InvalidRequest naming the file, a column that no record of the sample has, and those that there are."""
    records = list(sample)
    if not columns and not records:
        return  # no record could be read; what is wrong with them is told one by one
    missing = [
        column
        for column in rows.named
        if column not in columns and not any(lookup(record, column) is not ABSENT for record in records)
    ]
    if missing:
        words = " and no ".join(f"column {column!r}" for column in missing)
        there = ", ".join(columns[:50]) + (f" and {len(columns) - 50} more" if len(columns) > 50 else "")
        raise InvalidRequest(f"{name} has no {words}; it has: {there or 'no columns at all'}")


ABSENT = object()


def lookup(record: Mapping[str, Any], column: str) -> Any:
    """The value of a column: by its name, or by the dotted path into nested values; `ABSENT` where there is none."""
    if column in record:
        return record[column]
    value: Any = record
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return ABSENT
    return value


class RowMaker:
    """Makes documents of the rows of one file. `uri`: the file's. `name`: what messages call it."""

    def __init__(self, rows: Rows, uri: str, name: str, base: Metadata, max_bytes: int) -> None:
        self._rows = rows
        self._uri = uri
        self._name = name
        self._base = base
        self._max_bytes = max_bytes
        self._taken = {name for name in (*rows.text_columns, rows.id_column) if name}

    def uri(self, row: Row) -> str:
        """The uri of a row; that of its number where it has no id."""
        value = None if self._rows.id_column is None else _id_text(lookup(row.record, self._rows.id_column))
        return self.place(row.number) if value is None else f"{self._uri}#{escaped(value, '#')}"

    def place(self, number: int) -> str:
        """The uri of a row by its number, as RFC 7111 writes it."""
        return f"{self._uri}#row={number}"

    def has_id(self, row: Row) -> bool:
        column = self._rows.id_column
        return column is None or _id_text(lookup(row.record, column)) is not None

    def document(self, row: Row) -> Document:
        """Raises InvalidDocument, InvalidRequest or DocumentTooLarge, naming the row and what is wrong with it."""
        where = f"{self._name} row {row.number}"
        if not self.has_id(row):
            value = lookup(row.record, self._rows.id_column or "")
            wrong = "is empty" if value in (None, "", ABSENT) else "is no text or number"
            raise InvalidDocument(f"{where}: the id, column {self._rows.id_column!r}, {wrong}")
        text = self._text(row.record)
        if not text.strip():
            columns = ", ".join(map(repr, self._rows.text_columns)) or "any column"
            raise InvalidDocument(f"{where}: there is no text in {columns}")
        document = Document(self.uri(row), text, ROW_TYPE, self._metadata(row.record))
        try:
            check_document(document, self._max_bytes)
        except MillraceError as error:
            raise InvalidDocument(f"{where}: {error}") from None
        return document

    def _text(self, record: Mapping[str, Any]) -> str:
        """One column as it is; of several a paragraph each, labelled where there are more than title and body."""
        columns = self._rows.text_columns or [name for name in record if name != self._rows.id_column]
        found = [(name, _as_text(lookup(record, name))) for name in columns]
        found = [(name, text) for name, text in found if text.strip()]
        if len(columns) == 1:
            return found[0][1] if found else ""
        plain = {self._title_name(record)} if self._rows.text_columns else set()
        if self._rows.text_columns and len(set(columns) - plain) == 1:
            plain.update(columns)
        separator = "\n\n" if self._rows.text_columns else "\n"
        return separator.join(text if name in plain else f"{name}: {text}" for name, text in found)

    def _title_name(self, record: Mapping[str, Any]) -> str:
        if self._rows.title_column is not None:
            return self._rows.title_column
        return next((name for name in record if name.lower() == TITLE), TITLE)

    def _metadata(self, record: Mapping[str, Any]) -> dict[str, Any]:
        rows = self._rows
        found: dict[str, Any] = dict(self._base)
        if rows.metadata_columns is not None:
            chosen = {name: lookup(record, name) for name in rows.metadata_columns}
        else:
            chosen = without(record, self._taken)
        if rows.id_column is not None:
            chosen[rows.id_column] = lookup(record, rows.id_column)
        longest = None if rows.text_columns or rows.metadata_columns is not None else _MAX_TEXT_VALUE
        for name, value in chosen.items():
            if longest is not None and isinstance(value, str) and len(value) > longest:
                continue  # it is in the text
            if (kept := plain_value(value)) is not None:
                found[_key(name)] = kept
        title = _as_text(lookup(record, self._title_name(record)))
        if title.strip():
            found[TITLE] = " ".join(title.split())
        return found


def without(record: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """The record without these columns; of a nested value only what the dotted path leads to is left out."""
    left = dict(record)
    for column in columns:
        if column in left:
            del left[column]
            continue
        first, _, rest = column.partition(".")
        if rest and isinstance(inner := left.get(first), Mapping):
            left[first] = without(inner, [rest])
    return left


def plain_value(value: Any) -> Any:
    """The value as JSON: dates as ISO text, decimals as numbers; None where there is nothing to keep (bytes, too)."""
    kept: Any = None
    if isinstance(value, str):
        kept = encodable(value).replace("\0", "") or None
    elif isinstance(value, bool):
        kept = value
    elif isinstance(value, int | float | decimal.Decimal):
        kept = _plain_number(value)
    elif isinstance(value, datetime.date | datetime.time):
        kept = value.isoformat()
    elif isinstance(value, Mapping):
        items = {_key(key): plain_value(item) for key, item in value.items()}
        kept = {key: item for key, item in items.items() if item is not None} or None
    elif isinstance(value, list | tuple):
        kept = [item for item in map(plain_value, value) if item is not None] or None
    elif value is not None and value is not ABSENT and not isinstance(value, bytes | bytearray | memoryview):
        kept = str(value)
    return kept


def _plain_number(value: int | float | decimal.Decimal) -> int | float | str | None:
    """A number that JSON and Qdrant have; an integer of more than 64 bits as text."""
    if not isinstance(value, int) and not math.isfinite(value):
        return None
    if isinstance(value, decimal.Decimal):
        # By its scale, so that a column of prices has one type, also where one of them is even.
        value = float(value) if int(value.as_tuple().exponent) < 0 else int(value)
    return value if isinstance(value, float) or -_MAX_INTEGER <= value < _MAX_INTEGER else str(value)


def _key(name: object) -> str:
    return encodable(str(name)).replace("\0", "")


def _id_text(value: Any) -> str | None:
    """The id as text, None where it is none: `17.0`, which a spreadsheet makes of 17, is `17`."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, str):
        return encodable(value).replace("\0", "").strip() or None
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal | datetime.date | uuid.UUID):
        return None
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


def _as_text(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").replace("\0", "")
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    plain = plain_value(value)
    if isinstance(plain, list):
        return ", ".join(filter(None, map(_as_text, plain)))
    if isinstance(plain, dict):
        return "; ".join(f"{key}: {text}" for key, item in plain.items() if (text := _as_text(item)))
    return "" if plain is None else str(plain).lower() if isinstance(plain, bool) else str(plain)
