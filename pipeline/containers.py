"""What is in a container: office files and books are zip archives, legacy office files are OLE files.

Told by the names inside, read without unpacking anything: sources ask for every file, on the application's machine.
"""

from __future__ import annotations

import struct

ZIP = "application/zip"
OLE = "application/x-ole-storage"
OOXML = "application/vnd.openxmlformats-officedocument"
DOCX = f"{OOXML}.wordprocessingml.document"
PPTX = f"{OOXML}.presentationml.presentation"
XLSX = f"{OOXML}.spreadsheetml.sheet"
XLSB = "application/vnd.ms-excel.sheet.binary.macroenabled.12"
XLS = "application/vnd.ms-excel"
DOC = "application/msword"
PPT = "application/vnd.ms-powerpoint"
EPUB = "application/epub+zip"
ODF = "application/vnd.oasis.opendocument"

_MAX_NAMES = 4096  # of a zip archive that are looked at; an office file has its main part among the first
_CENTRAL = struct.Struct("<4s 24x HHH 12x")  # a header of the central directory, as far as it is needed


def in_zip(data: bytes) -> str:
    """What a zip archive holds, told by the names in its directory: an office file, a book, or just files."""
    names = _zip_names(data)
    length = int.from_bytes(data[26:28], "little")
    if data[30 : 30 + length] == b"mimetype":
        start = 30 + length + int.from_bytes(data[28:30], "little")
        written = data[start : start + 100]
        for kind in (EPUB, f"{ODF}.text", f"{ODF}.presentation", f"{ODF}.spreadsheet"):
            if written.startswith((kind + "PK").encode()) or written.startswith((kind + "-template").encode()):
                return kind
    if "[Content_Types].xml" in names:
        for name in names:
            folder = name.replace("\\", "/").partition("/")[0].lower()
            if folder in {"word", "ppt", "xl"}:
                return {"word": DOCX, "ppt": PPTX, "xl": XLSB if "xl/workbook.bin" in names else XLSX}[folder]
    return EPUB if "META-INF/container.xml" in names else ZIP


def _zip_names(data: bytes) -> list[str]:
    """The names in a zip archive's directory; [] where its end was cut off."""
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - 65_557))
    if end < 0 or end + 22 > len(data):
        return []
    position = end - int.from_bytes(
        data[end + 12 : end + 16], "little"
    )  # where it is, whatever was put before the archive
    names: list[str] = []
    while position >= 0 and position + 46 <= end and len(names) < _MAX_NAMES:
        signature, name, extra, comment = _CENTRAL.unpack_from(data, position)
        if signature != b"PK\x01\x02":
            break
        names.append(data[position + 46 : position + 46 + name].decode("utf-8", "replace"))
        position += 46 + name + extra + comment
    return names


def is_cut(data: bytes) -> bool:
    """Whether a zip archive has no directory that can be read: then its content says nothing about its kind."""
    return not _zip_names(data)


# Names of the streams in an OLE file, as its directory writes them, and what a file with one of them is.
_OLE_STREAMS = tuple(
    (name.encode("utf-16-le"), kind)
    for name, kind in (
        ("EncryptedPackage", DOC),  # an encrypted office file; the reader of legacy files says so
        ("WordDocument", DOC),
        ("PowerPoint Document", PPT),
        ("Workbook\0", XLS),
        ("Book\0", XLS),
    )
)


def in_ole(data: bytes) -> str:
    """What an OLE file is, by the names of its streams: a legacy office file, or an encrypted one of today."""
    return next((kind for name, kind in _OLE_STREAMS if name in data), OLE)
