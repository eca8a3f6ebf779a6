"""Excel workbooks as one document: every sheet that is shown a table under its name, values as a person sees them.

.xlsx is read by our own reader, in pieces: others build the whole grid, also where one stray cell stands in its last
corner. .xls, .xlsb and .ods are read by calamine.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, time, timedelta
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element

from pipeline.containers import XLSX, in_zip
from pipeline.errors import ExtractionFailed, InvalidDocument
from pipeline.extract.blocks import Blocks
from pipeline.extract.found import Found
from pipeline.extract.office.number_format import BUILT_IN, Shape, shape_of, show, show_moment
from pipeline.extract.office.ooxml import Office
from pipeline.extract.office.package import Package
from pipeline.extract.office.sheets import Row, write_sheet

_GENERAL = Shape("number", None)
_REFERENCE = re.compile("([A-Z]{1,3})[0-9]{1,7}$")
_HIDDEN = frozenset({"hidden", "veryHidden"})


def read_workbook(data: bytes, uri: str) -> Found:
    """The sheets in order, hidden ones left out. Raises ExtractionFailed, DocumentTooLarge."""
    if data.startswith(b"PK") and in_zip(data) == XLSX:
        return _read_xlsx(data, uri)
    return _read_others(data, uri)


def _read_xlsx(data: bytes, uri: str) -> Found:
    office = Office(Package(data, uri, "workbook"))
    name = office.main("xl/workbook.xml")
    related = office.related(name)
    parts = {target.kind: target.name for target in related.values()}
    grid = _Grid(office, parts, name)
    blocks = Blocks()
    for sheet in office.children(name, "s-sheets"):
        target = related.get(sheet.get("r-id", ""))
        if target is None or target.kind != "worksheet" or sheet.get("state") in _HIDDEN:
            continue
        write_sheet(sheet.get("name", ""), grid.rows(target.name), blocks, uri)
    title, metadata = office.properties()
    return Found(blocks.text(), title, metadata)


class _Grid:
    """Cells to text, with the strings and the number formats that all sheets share."""

    def __init__(self, office: Office, parts: dict[str, str], name: str) -> None:
        self._office = office
        self._strings = [_string(entry) for entry in office.children(parts.get("sharedStrings", ""), "s-sst")]
        self._shapes = list(_shapes(office.root(parts.get("styles", ""))))
        workbook = office.root(name)
        properties = None if workbook is None else workbook.find("s-workbookPr")
        self._from_1904 = properties is not None and properties.get("date1904") in {"1", "true"}

    def rows(self, name: str) -> Iterator[Row]:
        for row in self._office.children(name, "s-sheetData"):
            found: dict[int, str] = {}
            column = -1
            for cell in row.iterfind("s-c"):
                match = _REFERENCE.match(cell.get("r", ""))
                column = _column(match[1]) if match else column + 1
                if text := self._text(cell):
                    found[column] = text
            yield found

    def _text(self, cell: Element) -> str:
        kind = cell.get("t", "n")
        value = _string(cell.find("s-is")) if kind == "inlineStr" else cell.findtext("s-v") or ""
        if kind == "s":
            index = int(value) if value.isdecimal() and len(value) < 10 else -1
            value = self._strings[index] if 0 <= index < len(self._strings) else ""
        elif kind == "b" and value:
            value = "TRUE" if value == "1" else "FALSE"
        elif kind == "e":
            value = ""  # #N/A and its like: the lack of a value
        elif kind == "d":
            value = value.removesuffix("T00:00:00").replace("T", " ")
        elif kind == "n" and value:
            with suppress(ValueError, OverflowError):
                value = show(float(value), self._shape(cell.get("s", "0")), self._from_1904)
        return value

    def _shape(self, style: str) -> Shape:
        index = int(style) if style.isdecimal() and len(style) < 7 else 0
        return self._shapes[index] if index < len(self._shapes) else _GENERAL


def _string(entry: Element | None) -> str:
    """The text of a string with or without formats, without the reading aids of Japanese."""
    if entry is None:
        return ""
    return "".join(
        (part.text or "") if part.tag == "s-t" else part.findtext("s-t") or ""
        for part in entry
        if part.tag in {"s-t", "s-r"}
    )


def _shapes(styles: Element | None) -> Iterator[Shape]:
    if styles is None:
        return
    codes = {entry.get("numFmtId", ""): entry.get("formatCode", "") for entry in styles.iter("s-numFmt")}
    for entry in styles.iterfind("s-cellXfs/s-xf"):
        key = entry.get("numFmtId", "0")
        code = codes.get(key) or (BUILT_IN.get(int(key), "") if key.isdecimal() and len(key) < 6 else "")
        yield shape_of(code)


@lru_cache(maxsize=16_384)
def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def _read_others(data: bytes, uri: str) -> Found:
    import python_calamine as calamine

    blocks = Blocks()
    try:
        book = calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        for sheet in book.sheets_metadata:
            if sheet.visible == calamine.SheetVisibleEnum.Visible and sheet.typ == calamine.SheetTypeEnum.WorkSheet:
                write_sheet(sheet.name, _rows(book.get_sheet_by_name(sheet.name)), blocks, uri)
    except InvalidDocument:
        raise
    except BaseException as error:
        if (translated := translate(error, uri)) is None:
            raise
        raise translated from error
    return Found(blocks.text(), "", {})


def _rows(sheet: Any) -> Iterator[Row]:
    for row in sheet.iter_rows():
        yield {column: _shown(value) for column, value in enumerate(row) if value != ""}


def _shown(value: Any) -> str:
    match value:
        case bool():
            text = "TRUE" if value else "FALSE"
        case int() | float():
            text = show(value, _GENERAL)
        case datetime():
            text = show_moment(value)
        case time():
            text = value.isoformat("seconds")
        case timedelta():
            text = show(value.total_seconds() / 86_400, Shape("elapsed", None))
        case _:
            text = str(value)
    return text


def translate(error: BaseException, uri: str) -> InvalidDocument | None:
    """What an error of calamine's means for the document; None for an error that is not calamine's.

    A panic in its Rust core reaches Python as a BaseException of the module pyo3_runtime.
    """
    said = " ".join(str(error).split())[:300]
    module = type(error).__module__.partition(".")[0]
    if module == "pyo3_runtime":
        return ExtractionFailed(f"{uri} cannot be read: the workbook reader broke down on it ({said})")
    if module != "python_calamine" and not isinstance(error, OSError | ValueError | MemoryError | RuntimeError):
        return None
    if type(error).__name__ == "PasswordError" or re.search("password|encrypt", said, re.IGNORECASE):
        return ExtractionFailed(f"{uri} is encrypted; save it without a password and ingest it again")
    return ExtractionFailed(
        f"{uri} is not a workbook that can be read ({said or type(error).__name__}); open it and save it as .xlsx"
    )
