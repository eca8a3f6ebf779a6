"""The members of archives (zip, tar) and of compressed files, one after the other; nothing is ever written to disk."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import IO

from pipeline.errors import ExtractionFailed
from pipeline.sources.archives.tars import tar_members
from pipeline.sources.archives.unpacking import BROKEN, Budget, Counted, Member, decompressed
from pipeline.sources.archives.zips import zip_members

SEPARATOR = "!/"

# Longest first; a name that ends like this is an archive. .jar, .whl, .docx, .epub and their like are none here.
_KINDS = (
    (".tar.gz", "tar", "gz"),
    (".tar.bz2", "tar", "bz2"),
    (".tar.xz", "tar", "xz"),
    (".tgz", "tar", "gz"),
    (".taz", "tar", "gz"),
    (".tbz2", "tar", "bz2"),
    (".tbz", "tar", "bz2"),
    (".txz", "tar", "xz"),
    (".tar", "tar", ""),
    (".zip", "zip", ""),
    (".gz", "single", "gz"),
    (".bz2", "single", "bz2"),
    (".xz", "single", "xz"),
)
MEDIA_TYPES = {
    "application/zip": ".zip",
    "application/x-zip-compressed": ".zip",
    "application/x-tar": ".tar",
    "application/x-gtar": ".tar",
    "application/gzip": ".gz",
    "application/x-gzip": ".gz",
    "application/x-bzip2": ".bz2",
    "application/x-xz": ".xz",
}
"""What the content of a file is called, and the ending of an archive of that kind."""


def archive_kind(name: str) -> tuple[str, str] | None:
    """How a file of this name is unpacked: (kind, compression); None where it is no archive."""
    lower = name.lower()
    return next(((kind, packing) for ending, kind, packing in _KINDS if lower.endswith(ending)), None)


def read_members(file: IO[bytes], name: str, budget: Budget) -> Iterator[Member]:
    """The files of an archive in its order; directories, links and devices are left out.

    Raises DocumentTooLarge where the budget is spent, ExtractionFailed where the archive is broken: what came before
    has been yielded then.
    """
    kind, compression = archive_kind(name) or ("zip", "")
    try:
        if kind == "zip":
            yield from zip_members(file, name, budget)
        elif kind == "tar":
            yield from tar_members(Counted(decompressed(file, compression), budget, name), name, budget)
        else:
            budget.member(name)
            inner = posixpath.basename(name)[: -len(compression) - 1] or "document"
            yield Member(inner, Counted(decompressed(file, compression), budget, name), 0)
    except BROKEN as error:
        raise ExtractionFailed(f"{name} is damaged or cut off: {error or type(error).__name__}") from None
