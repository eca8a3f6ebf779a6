"""Records: JSON Lines, JSON arrays, and lists inside JSON objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import DocumentTooLarge, ExtractionFailed, InvalidRequest
from pipeline.sources.lines import Lines, LineTooLong, Stream
from pipeline.sources.rows import ABSENT, Row, Rows, lookup
from pipeline.sources.tables.table import Table, sampled

SAMPLE_RECORDS = 100  # records in which a column is looked for before anything is staged
_STEP = 1 << 16  # characters
_LIST_DEPTH = 4  # of an object, in which lists are looked for to name them
_SPACE = re.compile(r"[ \t\n\r]*")


def _no_number(_: str) -> None:
    """NaN and Infinity, which Python and pandas write, are no JSON: no value."""


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def read_json_lines(file: Stream, name: str, rows: Rows, max_bytes: int) -> Table:
    """A record a line; a row's number is its line's. Blank lines are passed over."""
    return sampled((), _line_rows(Lines(file, max_bytes)), SAMPLE_RECORDS)


def _line_rows(lines: Lines) -> Iterator[Row]:
    number = 0
    while True:
        number += 1
        try:
            line = next(lines)
        except StopIteration:
            return
        except LineTooLong as error:
            yield Row(number, error=str(error))
            continue
        if line.isspace():
            continue
        try:
            value = _DECODER.decode(line.encode("utf-8", "surrogateescape").decode("utf-8"))
        except UnicodeDecodeError:
            yield Row(number, error="it is not UTF-8, as JSON must be")
        except json.JSONDecodeError as error:
            yield Row(number, error=f"it is not valid JSON: {error.msg} at character {error.colno}")
        except RecursionError:
            yield Row(number, error="its JSON is nested too deep")
        else:
            yield _record(number, value)


def _record(number: int, value: Any) -> Row:
    if isinstance(value, Mapping):
        return Row(number, value)
    return Row(number, error=f"it is {_kind(value)}, not an object with fields")


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return "null" if value is None else kinds.get(type(value), "a number")


def read_json(file: Stream, name: str, rows: Rows, max_bytes: int) -> Table:
    """The objects of an array, as a stream; or, held in memory and so within `max_bytes`, those of a list inside an
    object (`rows.records`). An object by itself is one record. Records count from 1.

    Raises InvalidRequest where there is no such list, DocumentTooLarge, ExtractionFailed.
    """
    lines = Lines(file, max_bytes)
    start = lines.sample.lstrip(" \t\r\n")
    if start.startswith("[") and rows.records is None:
        return sampled((), _array_rows(_Elements(lines, name, max_bytes)), SAMPLE_RECORDS)
    text = lines.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise DocumentTooLarge(
            f"{name} has more than {max_bytes:,} bytes, and a JSON object is held in memory as a whole (raise "
            "MILLRACE_SOURCES__MAX_BYTES, or write it as JSON Lines or as an array, which are read as streams)"
        )
    value = _whole(text, name)
    if rows.records is not None:
        value = _list_at(value, rows.records, name)
    elif isinstance(value, Mapping):
        lists = list(_lists(value))
        if lists and any(lookup(value, column) is ABSENT for column in rows.named):
            raise InvalidRequest(
                f"{name} is an object without {' and '.join(map(repr, rows.named))}; there are lists of objects at: "
                f"{', '.join(lists[:20])} (--records says which one)"
            )
        value = [value]
    if not isinstance(value, list):
        raise ExtractionFailed(f"{name} holds {_kind(value)}, and no list of objects")
    return sampled((), (_record(number, item) for number, item in enumerate(value, 1)), SAMPLE_RECORDS)


def _whole(text: str, name: str) -> Any:
    try:
        return _DECODER.decode(text.encode("utf-8", "surrogateescape").decode("utf-8"))
    except UnicodeDecodeError:
        raise ExtractionFailed(f"{name} is not UTF-8, as JSON must be") from None
    except json.JSONDecodeError as error:
        raise ExtractionFailed(
            f"{name} is not valid JSON: {error.msg} in line {error.lineno}, character {error.colno}"
        ) from None
    except RecursionError:
        raise ExtractionFailed(f"{name} is JSON that is nested too deep") from None


def _list_at(value: Any, path: str, name: str) -> list[Any]:
    found = lookup(value, path) if isinstance(value, Mapping) else None
    if isinstance(found, list):
        return found
    lists = list(_lists(value))
    has = f"there are lists at: {', '.join(lists[:20])}" if lists else f"it holds {_kind(value)}"
    raise InvalidRequest(f"{name} has no list at {path!r}; {has}")


def _lists(value: Any, above: str = "", depth: int = 0) -> Iterator[str]:
    """The paths of the lists of objects in an object."""
    if isinstance(value, Mapping) and depth < _LIST_DEPTH:
        for key, item in value.items():
            if isinstance(item, list) and any(isinstance(entry, Mapping) for entry in item[:10]):
                yield above + key
            else:
                yield from _lists(item, f"{above}{key}.", depth + 1)


class _Elements:
    """The elements of a JSON array, each held in memory alone."""

    def __init__(self, lines: Lines, name: str, limit: int) -> None:
        self._lines = lines
        self._name = name
        self._limit = limit
        self._buffer = ""
        self._position = 0
        self._ended = False
        self.number = 0

    def __iter__(self) -> Iterator[Any]:
        self._expect("[")
        if self._peek() == "]":
            self._position += 1
            return self._finish()
        while True:
            self.number += 1
            yield self._element()
            if self._expect(",]") == "]":
                return self._finish()

    def _finish(self) -> None:
        if self._peek():
            raise self._wrong("there is more after the end of the list")

    def _peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            self._position = _SPACE.match(self._buffer, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._buffer) or not self._more(_STEP):
                return self._buffer[self._position : self._position + 1]

    def _expect(self, characters: str) -> str:
        found = self._peek()
        if not found or found not in characters:
            wanted = " or ".join(characters)
            raise self._wrong(f"{wanted} is missing" + (f", there is {found!r}" if found else ": it breaks off"))
        self._position += 1
        return found

    def _element(self) -> Any:
        step = _STEP
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                problem = error.msg
            except RecursionError:
                raise self._wrong("it is nested too deep") from None
            else:
                # A number may go on in what is not read yet.
                if end < len(self._buffer) or not self._more(step):
                    self._position = end
                    return value
                continue
            # Perhaps only cut: read on, twice as much each time, so that what is read again stays in proportion.
            if len(self._buffer) - self._position > self._limit:
                raise self._wrong(f"{problem}, or it is longer than {self._limit:,} characters")
            if not self._more(step):
                raise self._wrong(problem)
            step *= 2

    def _more(self, size: int) -> bool:
        if self._ended:
            return False
        part = self._lines.read(size)
        self._ended = not part
        self._buffer = self._buffer[self._position :] + part
        self._position = 0
        return bool(part)

    def _wrong(self, problem: str) -> ExtractionFailed:
        return ExtractionFailed(f"{self._name} is not valid JSON at item {max(self.number, 1)}: {problem}")


def _array_rows(elements: _Elements) -> Iterator[Row]:
    for value in elements:
        yield _record(elements.number, value)
