"""Workbooks as tables, read by calamine. It builds the whole grid of a sheet, so that is measured first."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from itertools import chain, islice
from typing import IO, Any

from pipeline.delimited import unique_names
from pipeline.errors import DocumentTooLarge, ExtractionFailed, InvalidRequest
from pipeline.sources.archives.unpacking import BROKEN
from pipeline.sources.rows import Row, Rows
from pipeline.sources.tables.table import SAMPLE_ROWS, Table

_MAX_CELLS = 5_000_000  # of a sheet's grid, empty ones among them; 32 bytes each
_STEP = 1 << 20
# The text of the cells is held in memory; what the parts unpack to is bounded by this times the limit of a document.
_UNPACKED = 8
_PLACE = re.compile(rb"""<(?:\w+:)?(?:c|row)\s[^<>]*?\br=["']([A-Z]{0,3})([0-9]{1,7})["']""")


def read_workbook(file: IO[bytes], name: str, rows: Rows, max_bytes: int) -> Table:
    """The rows of a sheet under its first row that is not blank, numbered as the program shows them.

    The sheet is held in memory. Raises InvalidRequest for a sheet that is not there, DocumentTooLarge,
    ExtractionFailed.
    """
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        _check_size(file, name, max_bytes)
        workbook = CalamineWorkbook.from_filelike(file)
        names = workbook.sheet_names
        if rows.sheet is not None and rows.sheet not in names:
            raise InvalidRequest(f"{name} has no sheet {rows.sheet!r}; it has: {', '.join(names)}")
        if not names:
            raise ExtractionFailed(f"{name} has no sheets")
        sheet = workbook.get_sheet_by_name(rows.sheet or names[0])
    except (CalamineError, *BROKEN) as error:
        raise ExtractionFailed(f"{name} cannot be read as a workbook: {error}") from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # calamine's, and no Exception
            raise
        raise ExtractionFailed(f"{name} cannot be read as a workbook: its reader gave up on it") from None
    first = (sheet.start[0] if sheet.start else 0) + 1
    cells = (
        (number, values)
        for number, values in enumerate(sheet.iter_rows(), first)
        if any(value != "" for value in values)
    )
    columns = unique_names(next(cells, (0, []))[1])
    if not columns:
        raise ExtractionFailed(f"{name} has nothing in its sheet {rows.sheet or names[0]!r}")
    first_rows = list(islice(cells, SAMPLE_ROWS))
    # A workbook has one kind of number: a column is one of integers where its first 1,000 numbers are.
    fractions = {
        column
        for _, values in first_rows
        for column, value in zip(columns, values, strict=False)
        if isinstance(value, float) and not value.is_integer()
    }
    return Table(columns, [], _rows(chain(first_rows, cells), columns, fractions))


def _rows(cells: Iterator[tuple[int, list[Any]]], columns: list[str], fractions: set[str]) -> Iterator[Row]:
    for number, values in cells:
        record = {column: value for column, value in zip(columns, values, strict=False) if value != ""}
        for column, value in record.items():
            if isinstance(value, float) and column not in fractions and value.is_integer():
                record[column] = int(value)
        yield Row(number, record)


def _check_size(file: IO[bytes], name: str, max_bytes: int) -> None:
    """Raises DocumentTooLarge where the parts unpack to too much, or a stray cell in a far corner makes a grid too big.

    Everything is unpacked for that, in pieces: what a zip says about itself need not be true.
    """
    left = max_bytes * _UNPACKED
    file.seek(0)
    with zipfile.ZipFile(file) as parts:
        for part in parts.infolist():
            places = _Places(name)
            with parts.open(part) as stream:
                while piece := stream.read(_STEP):
                    left -= len(piece)
                    if left < 0:
                        raise DocumentTooLarge(
                            f"{name} unpacks to more than {max_bytes * _UNPACKED:,} bytes ({_UNPACKED} times "
                            "MILLRACE_SOURCES__MAX_BYTES); save it as CSV, which is read as a stream"
                        )
                    if part.filename.startswith("xl/worksheets/"):
                        places.see(piece)
    file.seek(0)


class _Places:
    """How far the cells of a sheet reach, told from its XML without parsing it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""
        self._rows = 1
        self._columns = 1

    def see(self, piece: bytes) -> None:
        data = self._rest + piece
        if b"\0" in piece:
            raise ExtractionFailed(f"{self._name} cannot be read as a workbook: its sheets are not UTF-8; save it anew")
        for letters, number in _PLACE.findall(data):
            self._rows = max(self._rows, int(number))
            if letters:
                self._columns = max(self._columns, _column(letters))
        if self._rows * self._columns > _MAX_CELLS:
            raise DocumentTooLarge(
                f"{self._name} has a sheet of {self._rows:,} rows and {self._columns:,} columns, more than "
                f"{_MAX_CELLS:,} cells, empty ones among them; save it as CSV, which is read as a stream"
            )
        self._rest = data[max(data.rfind(b"<"), len(data) - 4096) :]


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - 64
    return number
