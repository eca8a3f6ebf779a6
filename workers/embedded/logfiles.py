"""The logs of a stack's parts as lines with times: what a rotation moved away first, then what there is, then what
comes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.monitoring.lines import read_line

_BLOCK = 1 << 20
# Where the other programs' lines have their times: Postgres in UTC, Redis in the time of the machine.
_POSTGRES = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) (?:UTC|GMT)")
_REDIS = re.compile(r"\d+:[A-Z] (\d\d \w{3} \d{4} \d\d:\d\d:\d\d\.\d+)")
_NO_TIME = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a part's log. fields: where one of our programs wrote it. at: UTC; of a line that says none, that of
    the line before it."""

    part: str
    at: datetime
    text: str
    fields: dict[str, Any] | None = None


# Told a line's text before it is taken apart: False where it need not be.
Glance = Callable[[str], bool]


@dataclass(slots=True)
class LogFile:
    """A part's log, read from its beginning; `new` reads what was written since, and over a rotation (`part.rotate`:
    the file is copied to NAME.log.1 and cut to nothing)."""

    path: Path
    _at: datetime = _NO_TIME
    _offset: int = 0
    _rest: bytes = field(default=b"", repr=False)
    _rotated: tuple[int, int] | None = None

    @property
    def part(self) -> str:
        return self.path.name.removesuffix(".log")

    @property
    def earlier(self) -> Path:
        return self.path.with_name(f"{self.path.name}.1")

    def lines(self, glance: Glance | None = None) -> Iterator[Line]:
        """What was kept of before the last rotation, and all that there is."""
        self._rotated = self._stamp()
        if self._rotated is not None:
            yield from self._read(self.earlier, 0, glance)
            self._rest = b""
        self._offset = 0
        yield from self.new(glance)

    def new(self, glance: Glance | None = None) -> Iterator[Line]:
        """Whole lines that were written since the last call."""
        stamp = self._stamp()
        size = self.path.stat().st_size if self.path.exists() else 0
        if stamp != self._rotated or size < self._offset:
            if stamp is not None and stamp != self._rotated:
                yield from self._read(self.earlier, self._offset, glance)
            self._rotated = stamp
            self._offset, self._rest = 0, b""
        yield from self._read(self.path, self._offset, glance)

    def skip(self) -> None:
        """To the end: only what comes from now on is new."""
        self._rotated = self._stamp()
        self._offset = self.path.stat().st_size if self.path.exists() else 0

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self.earlier.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size

    def _read(self, path: Path, start: int, glance: Glance | None) -> Iterator[Line]:
        try:
            with path.open("rb") as file:
                file.seek(start)
                while block := file.read(_BLOCK):
                    if path == self.path:
                        self._offset += len(block)
                    complete, newline, rest = (self._rest + block).rpartition(b"\n")
                    self._rest = rest
                    for line in complete.split(b"\n") if newline else ():
                        if (found := self._line(line.decode("utf-8", "replace"), glance)) is not None:
                            yield found
        except FileNotFoundError:
            return

    def _line(self, text: str, glance: Glance | None) -> Line | None:
        if glance is not None and not glance(text):
            return None
        fields = read_line(text)
        at = _time(fields, text)
        # Lines of one file stay in its order, whatever its clock did.
        self._at = max(self._at, at or self._at)
        return Line(self.part, self._at, text, fields)


def _time(fields: dict[str, Any] | None, text: str) -> datetime | None:
    try:
        if fields is not None:
            return datetime.fromisoformat(str(fields["time"]))
        if found := _POSTGRES.match(text):
            return datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
        if found := _REDIS.match(text):
            return datetime.strptime(found[1], "%d %b %Y %H:%M:%S.%f").astimezone(UTC)
    except ValueError:
        return None
    return None
