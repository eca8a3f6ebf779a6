"""The members of zip archives, and what is wrong with those that are made to do harm."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from pipeline.errors import DocumentTooLarge
from pipeline.sources.archives.unpacking import BROKEN, Budget, Counted, Member, clean_name

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}  # LZMA may ask for gigabytes of memory


def zip_members(file: IO[bytes], name: str, budget: Budget) -> Iterator[Member]:
    _count_entries(file, name, budget)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        _refuse_overlaps(entries, name)
        # Of several with one name, the last is the one that unpacking leaves.
        last = {clean_name(_name(entry)): entry for entry in entries}
        for entry in entries:
            path = clean_name(_name(entry))
            if entry.filename.endswith("/") or not path or last[path] is not entry or _is_special(entry):
                continue
            budget.member(name)
            if problem := _problem(entry, budget):
                yield Member(path, None, entry.file_size, problem)
                continue
            try:
                stream = archive.open(entry)
            except BROKEN as error:
                yield Member(path, None, entry.file_size, f"is damaged: {error}")
                continue
            with stream:
                yield Member(path, Counted(stream, budget, name), entry.file_size)


def _problem(entry: zipfile.ZipInfo, budget: Budget) -> str:
    if entry.flag_bits & 0x41:
        return "is encrypted; unpack the archive, and ingest what is in it"
    if entry.compress_type not in _METHODS:
        return f"is compressed by method {entry.compress_type}, which is not supported; pack it by deflate"
    if budget.is_bomb(entry.file_size, entry.compress_size):
        return (
            f"unpacks to {entry.file_size:,} bytes from {entry.compress_size:,}, as decompression bombs do; "
            "it was not read (MILLRACE_SOURCES__ARCHIVE_RATIO)"
        )
    return ""


def _name(entry: zipfile.ZipInfo) -> str:
    """The name as it was meant: many programs write UTF-8 without saying so; Windows' own may write backslashes."""
    name = entry.filename
    if not entry.flag_bits & 0x800 and not name.isascii():
        with suppress(UnicodeEncodeError, UnicodeDecodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/") if "/" not in name else name


def _is_special(entry: zipfile.ZipInfo) -> bool:
    """Whether the entry is a link, a device or a pipe, where a Unix system made it."""
    kind = entry.external_attr >> 28 if entry.create_system == 3 else 0
    return kind not in {0, 8}


def _refuse_overlaps(entries: list[zipfile.ZipInfo], name: str) -> None:
    """Members that share their bytes are how a small archive unpacks to petabytes; no honest program writes them."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise DocumentTooLarge(
                f"{name} has members that share their bytes, as decompression bombs do; none was read"
            )
        end = entry.header_offset + 30 + entry.compress_size


_END = struct.Struct("<4s4H2LH")
_END64_PLACE = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s24xHHH12x")


def _count_entries(file: IO[bytes], name: str, budget: Budget) -> None:
    """Counts the directory of a zip before it is read into memory. Raises DocumentTooLarge, BadZipFile."""
    length = file.seek(0, io.SEEK_END)
    start = max(0, length - (1 << 16) - _END.size)
    file.seek(start)
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + _END.size > len(tail):
        raise zipfile.BadZipFile("it has no directory at its end")
    *_, size, _offset, _ = _END.unpack_from(tail, place)
    end = start + place
    if size == 0xFFFFFFFF and end >= _END64_PLACE.size + _END64.size:
        file.seek(end - _END64_PLACE.size - _END64.size)
        found = _END64.unpack(file.read(_END64.size))
        if found[0] == b"PK\6\6":
            size, end = found[8], end - _END64_PLACE.size - _END64.size
    elif end >= _END64_PLACE.size and tail[place - _END64_PLACE.size : place].startswith(b"PK\6\7"):
        end -= _END64_PLACE.size + _END64.size
    file.seek(max(0, end - size))
    left = budget.settings.archive_members - budget.members
    while size >= _CENTRAL.size and (header := file.read(_CENTRAL.size)).startswith(b"PK\1\2"):
        _, *lengths = _CENTRAL.unpack(header)
        file.seek(sum(lengths), io.SEEK_CUR)
        size -= _CENTRAL.size + sum(lengths)
        left -= 1
        if left < 0:
            raise DocumentTooLarge(
                f"{name} has more than {budget.settings.archive_members:,} members; none was read "
                "(MILLRACE_SOURCES__ARCHIVE_MEMBERS)"
            )
    file.seek(0)
