"""The members of tar archives, read as a stream.

Read by hand: the standard library takes a cut archive for a complete one, and holds headers of any length in memory.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

from pipeline.sources.archives.unpacking import Budget, Member, clean_name
from pipeline.sources.lines import Stream

_BLOCK = 512
_MAX_HEADER = 1 << 20  # bytes of one extended header (long names); they are held in memory
_STEP = 1 << 16
_LONG_NAMES = {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_EXTENDED = {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}
_REGULAR = {*tarfile.REGULAR_TYPES, tarfile.GNUTYPE_SPARSE}


def tar_members(stream: Stream, name: str, budget: Budget) -> Iterator[Member]:
    """The files, in order; of links, devices and directories nothing. Raises what BROKEN says, and DocumentTooLarge."""
    given: dict[str, str] = {}
    while (block := _exactly(stream, _BLOCK)).strip(b"\0"):
        budget.member(name)  # headers of names too, so that a chain of them ends
        header = _header(block)
        if header.type in _LONG_NAMES | _EXTENDED:
            given |= _extension(stream, header)
            continue
        size = int(given.get("size", header.size))
        path = clean_name(given.get("path", header.name))
        sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in given)
        given = {}
        if header.type == tarfile.GNUTYPE_SPARSE and block[482]:
            while _exactly(stream, _BLOCK)[504]:
                pass
        if header.type in tarfile.SUPPORTED_TYPES and header.type not in _REGULAR:
            continue  # links, directories and devices have no content, whatever they say
        content = _Part(stream, size)
        if header.type in _REGULAR and path:
            if sparse:
                yield Member(path, None, size, "is a sparse file, which is not supported; pack it without --sparse")
            else:
                yield Member(path, content, size)
        content.skip()
        _exactly(stream, -size % _BLOCK)


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise ValueError(f"a header cannot be read ({error})") from None
    if header.size < 0:
        raise ValueError("a header gives a negative size")
    return header


def _extension(stream: Stream, header: tarfile.TarInfo) -> dict[str, str]:
    """What an extra header says about the member after it."""
    if header.size > _MAX_HEADER:
        raise ValueError(f"a header says that it has {header.size:,} bytes")
    data = _exactly(stream, header.size + -header.size % _BLOCK)[: header.size]
    if header.type in _EXTENDED:
        return _pax(data)
    return (
        {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
        if header.type == tarfile.GNUTYPE_LONGNAME
        else {}
    )


def _pax(data: bytes) -> dict[str, str]:
    """The records of an extended header: `LENGTH KEY=VALUE` and a newline, each."""
    found: dict[str, str] = {}
    while data.strip(b"\0"):
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(data):
            raise ValueError("an extended header cannot be read")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    if "size" in found and not found["size"].isdigit():
        raise ValueError("an extended header gives a size that is no number")
    return found


def _exactly(stream: Stream, size: int) -> bytes:
    data = stream.read(size) if size else b""
    if len(data) < size:
        raise EOFError("it ends in the middle")
    return data


class _Part(io.RawIOBase):
    """The next `size` bytes of a stream."""

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = _exactly(self._stream, wanted)
        self._left -= len(data)
        return data

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        part = self.read(min(len(view), _STEP))
        view[: len(part)] = part
        return len(part)

    def skip(self) -> None:
        """Reads what is left of it, to come to the next header."""
        while self._left:
            self.read(_STEP)
