"""Office files of before 2007 and encrypted ones: both are OLE files, and neither is read."""

from __future__ import annotations

from typing import NoReturn

from pipeline import media
from pipeline.containers import DOC, PPT
from pipeline.errors import ExtractionFailed, UnsupportedFormat

_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_REMEDIES = {
    DOC: "is a Word document of before 2007; save it as .docx",
    PPT: "is a PowerPoint file of before 2007; save it as .pptx",
}


def refuse(data: bytes, kind: str, uri: str) -> NoReturn:
    """Raises what says why this file is not read and what to do."""
    if _ENCRYPTED in data:
        raise ExtractionFailed(f"{uri} is encrypted; save it without a password and ingest it again")
    told = media.from_content(data)
    if told in _REMEDIES:
        raise UnsupportedFormat(f"{uri} {_REMEDIES[told]} and ingest that")
    raise ExtractionFailed(
        f"{uri} is not a file that {media.essence(kind)} can be: it is broken, cut off, or something else"
    )
