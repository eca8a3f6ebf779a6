"""What unpacking may cost, and streams of unpacked bytes that are counted as they are read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import posixpath
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, NamedTuple, cast

from pipeline.errors import DocumentTooLarge
from pipeline.settings import SourceSettings
from pipeline.sources.lines import Stream

BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    struct.error,
    RuntimeError,  # of zipfile: encrypted, or a version or method it does not know
)
"""What the readers of the standard library raise for an archive that is damaged or cut off."""

# Less than this is never called a bomb: ten pages of zeros are just ten pages of zeros.
FREE_BYTES = 16 * 1024 * 1024
_XZ_MEMORY = 128 * 1024 * 1024  # `xz -9` needs 65 MiB; a header may ask for gigabytes
_STEP = 1 << 16


@dataclass
class Budget:
    """What an archive, and those inside it, may unpack to together.

    packed: bytes of the outermost archive, as it is stored.
    """

    settings: SourceSettings
    packed: int
    unpacked: int = 0
    members: int = 0

    def member(self, name: str) -> None:
        """One more member of the archive `name`. Raises DocumentTooLarge."""
        self.members += 1
        if self.members > self.settings.archive_members:
            raise DocumentTooLarge(
                f"{name} has more than {self.settings.archive_members:,} members; nothing beyond them was read "
                "(MILLRACE_SOURCES__ARCHIVE_MEMBERS)"
            )

    def spend(self, size: int, name: str) -> None:
        """`size` more bytes were unpacked from the archive `name`. Raises DocumentTooLarge."""
        self.unpacked += size
        if self.unpacked > self.settings.archive_bytes:
            raise DocumentTooLarge(
                f"{name} unpacks to more than {self.settings.archive_bytes:,} bytes; nothing beyond them was read "
                "(MILLRACE_SOURCES__ARCHIVE_BYTES)"
            )
        if self.is_bomb(self.unpacked, self.packed):
            raise DocumentTooLarge(
                f"{name} unpacks to more than {self.settings.archive_ratio} times its size, as decompression bombs do; "
                "nothing beyond that was read (MILLRACE_SOURCES__ARCHIVE_RATIO)"
            )

    def is_bomb(self, unpacked: int, packed: int) -> bool:
        return unpacked > FREE_BYTES and unpacked > packed * self.settings.archive_ratio


class Member(NamedTuple):
    """A file in an archive. name: a clean relative path. stream: its content, to be read before the next member is
    asked for; None where `problem` says why it cannot be read. size: as the archive says.
    """

    name: str
    stream: Stream | None
    size: int
    problem: str = ""


def clean_name(name: str) -> str:
    """A member's name as a path below its archive, whatever it says: no root, no `..`, no empty parts."""
    path = posixpath.normpath("/" + name.replace("\0", "")).lstrip("/")
    return "" if path == "." else path


class Counted(io.RawIOBase):
    """A stream of unpacked bytes that spends its archive's budget."""

    def __init__(self, stream: Stream, budget: Budget, name: str) -> None:
        self._stream = stream
        self._budget = budget
        self._name = name

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, less at the end only. Raises DocumentTooLarge, and what the stream raises."""
        parts: list[bytes] = []
        left = size if size >= 0 else self._budget.settings.max_bytes + 1
        while left > 0 and (part := self._stream.read(min(left, _STEP))):
            self._budget.spend(len(part), self._name)
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        part = self.read(min(len(view), _STEP))
        view[: len(part)] = part
        return len(part)


def decompressed(file: Stream, compression: str) -> Stream:
    """The stream inside a file compressed by "gz", "bz2" or "xz"; the file itself for ""."""
    if compression == "gz":
        return gzip.GzipFile(fileobj=cast(IO[bytes], file), mode="rb")
    if compression == "bz2":
        return bz2.BZ2File(cast(IO[bytes], file), "rb")
    return io.BufferedReader(_Xz(file), _STEP) if compression == "xz" else file


class _Xz(io.RawIOBase):
    """An xz stream within a limit of memory, which `lzma.open` does not have. Raises lzma.LZMAError, EOFError."""

    def __init__(self, file: Stream) -> None:
        self._file = file
        self._decoder = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while True:
            data = b""
            if self._decoder.eof:
                data = self._decoder.unused_data.lstrip(b"\0") or self._file.read(_STEP).lstrip(b"\0")
                if not data:
                    return 0
                self._decoder = self._new()
            elif self._decoder.needs_input:
                data = self._file.read(_STEP)
                if not data:
                    raise EOFError("the compressed file ends before its end was marked")
            part = self._decoder.decompress(data, len(view))
            if part:
                view[: len(part)] = part
                return len(part)
