"""Zip containers of documents (office files, books): their parts, bounded, and nothing ever written to disk."""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from pipeline.errors import DocumentTooLarge, ExtractionFailed

MAX_UNPACKED = 256 * 1024 * 1024
"""Bytes of text parts that one document may unpack to: four times the largest document that is taken by default.

Pictures, sounds and fonts are never unpacked and do not count.
"""
_MAX_DIRECTORY = 8 * 1024 * 1024  # bytes of a zip's directory: some 60,000 entries, each of which costs memory
_PIECE = 64 * 1024
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})  # the others may ask for gigabytes to unpack a byte

_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
)


class Package:
    """The parts of one zip container by name; names are looked up as Word does, whatever their case and slashes."""

    def __init__(self, data: bytes, uri: str, noun: str) -> None:
        """Raises ExtractionFailed where the directory cannot be read; `noun` says what the file claims to be."""
        self.uri = uri
        self.noun = noun
        self._left = MAX_UNPACKED
        end = data.rfind(b"PK\x05\x06")
        if end >= 0 and int.from_bytes(data[end + 12 : end + 16], "little") > _MAX_DIRECTORY:
            raise DocumentTooLarge(f"{uri} has more parts than any {noun} has; it is not opened")
        with self._translating():
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        self._entries = {_folded(entry.filename): entry for entry in self._zip.infolist()}

    def names(self) -> list[str]:
        return [entry.filename.replace("\\", "/") for entry in self._entries.values()]

    def __contains__(self, name: str) -> bool:
        return _folded(name) in self._entries

    def read(self, name: str) -> bytes:
        """A whole part, b"" where there is none of this name; raises ExtractionFailed, DocumentTooLarge."""
        return b"".join(self.stream(name))

    def stream(self, name: str) -> Iterator[bytes]:
        """A part in pieces; what it really unpacks to is counted, whatever the directory claims."""
        entry = self._entries.get(_folded(name))
        if entry is None:
            return
        if entry.flag_bits & 0x1:
            raise ExtractionFailed(f"{self.uri} is encrypted; save it without a password and ingest it again")
        if entry.compress_type not in _METHODS:
            raise self.broken(f"{name} is compressed in a way that a {self.noun} never is")
        with self._translating(), self._zip.open(entry) as part:
            while piece := part.read(_PIECE):
                self._left -= len(piece)
                if self._left < 0:
                    raise DocumentTooLarge(
                        f"{self.uri} unpacks to more than {MAX_UNPACKED // 2**20} MiB of text; split it, or convert it"
                    )
                yield piece

    def broken(self, why: str) -> ExtractionFailed:
        return ExtractionFailed(f"{self.uri} is not a {self.noun} that can be read ({why}); open it and save it again")

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except _BROKEN as error:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise self.broken(f"broken or cut off: {said}") from error


def _folded(name: str) -> str:
    return name.replace("\\", "/").lstrip("/").lower()


def resolve(base: str, target: str) -> str:
    """The name of a part that the part `base` points to; a path that leads out of the container stays inside."""
    path = unquote(target.partition("#")[0]).replace("\\", "/")
    joined = path if path.startswith("/") else posixpath.join(posixpath.dirname(base), path)
    return posixpath.normpath("/" + joined).lstrip("/")
