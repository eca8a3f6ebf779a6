"""Lines of a byte stream as text, one at a time, however long the stream and whatever its encoding."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import Protocol

from pipeline import media

SAMPLE_BYTES = 1 << 16
# What a line may have besides a text of the largest size: its metadata, quotes and escapes.
LINE_SLACK = 1 << 20


class Stream(Protocol):
    """Bytes to be read once, from front to back."""

    def read(self, size: int = -1, /) -> bytes: ...


class LineTooLong(Exception):
    """A line is longer than the limit; the next one can be read."""


class Lines:
    """The lines of a stream, with their ends. `sample`: the first 64 KiB as text.

    A byte order mark or the NULs of UTF-16 tell the encoding; anything else is read as UTF-8, and what is none of
    it, a field at a time, as Windows-1252 (see `repaired`). Raises LineTooLong for a line over `max_bytes` characters
    and some; iterating goes on with the next one.
    """

    def __init__(self, file: Stream, max_bytes: int) -> None:
        head = _read_exactly(file, SAMPLE_BYTES)
        encoding, skip = _encoding(head)
        errors = "surrogateescape" if encoding == "utf-8" else "replace"
        self.sample = codecs.getincrementaldecoder(encoding)(errors).decode(head[skip:])
        whole = io.BufferedReader(_Rejoined(head[skip:], file), SAMPLE_BYTES)
        self._text = io.TextIOWrapper(whole, encoding, errors, newline="")
        self._limit = max_bytes + LINE_SLACK

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._limit)
        if not line:
            raise StopIteration
        if len(line) < self._limit or line.endswith(("\n", "\r")):
            return line
        while (rest := self._text.readline(SAMPLE_BYTES)) and not rest.endswith(("\n", "\r")):
            pass
        raise LineTooLong(f"the line is longer than {self._limit:,} characters (MILLRACE_SOURCES__MAX_BYTES)")

    def read(self, size: int) -> str:
        """Up to `size` characters, less at the end only."""
        return self._text.read(size)


def repaired(text: str) -> str:
    """A field with what was no UTF-8 in it read as Windows-1252 (Latin-1 where that fails too)."""
    if text.isascii() or not any("\udc80" <= char <= "\udcff" for char in text):
        return text
    data = text.encode("utf-8", "surrogateescape")
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _encoding(head: bytes) -> tuple[str, int]:
    """The encoding, and how many bytes its mark has."""
    for mark, encoding in media.BOMS:
        if head.startswith(mark):
            return encoding, len(mark)
    pairs = len(head) // 2
    even, odd = head[0 : 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    if pairs >= 2 and max(even, odd) >= 0.4 * pairs and min(even, odd) <= 0.05 * pairs:
        return ("utf-16-le" if odd > even else "utf-16-be"), 0
    return "utf-8", 0


def _read_exactly(file: Stream, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class _Rejoined(io.RawIOBase):
    """A stream with what was read of it put back in front: it need not be seekable."""

    def __init__(self, head: bytes, file: Stream) -> None:
        self._head = head
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        part = self._head[: len(view)] or self._file.read(len(view))
        self._head = self._head[len(view) :]
        view[: len(part)] = part
        return len(part)
