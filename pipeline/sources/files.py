"""Files as sources, and how they are named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

from pipeline import media
from pipeline.document import Document
from pipeline.errors import InvalidDocument, InvalidRequest, MillraceError
from pipeline.settings import SourceSettings
from pipeline.sources import guards
from pipeline.sources.base import Rejected
from pipeline.sources.names import MAX_URI_BYTES, escaped

SCHEME = "file://"


def file_uri(path: str | Path) -> str:
    """The uri of a file: `file://` and its absolute path, readable (`file:///home/ann/My notes.md`).

    Only what a uri cannot hold is percent-encoded, so that `file_path` finds the file again, whatever its name.
    """
    return SCHEME + escaped(os.path.abspath(path), "#?")


def file_path(uri: str) -> Path:
    """The path of a `file://` uri; raises InvalidRequest for another uri."""
    rest = uri.removeprefix(SCHEME).removeprefix("localhost")
    if not uri.startswith(SCHEME) or not rest.startswith("/"):
        raise InvalidRequest(f"{uri!r} is not the uri of a local file; such a uri looks like file:///srv/notes/a.md")
    return Path(os.fsdecode(unquote_to_bytes(rest.encode("utf-8", "surrogateescape"))))


def reason(error: OSError) -> str:
    """What the operating system says, in its words and without the path (the message names it already)."""
    return error.strerror or str(error)


def why(error: OSError | MillraceError, path: str) -> str:
    """What a person is told about a file that could not be read; names the path."""
    return f"{path} cannot be read: {reason(error)}" if isinstance(error, OSError) else str(error)


class FileSource:
    """One file, named by a person: a link is followed to where it leads, an unknown format is rejected."""

    scope = None

    def __init__(self, path: str | Path, settings: SourceSettings) -> None:
        """Raises SourceRefused where the file lies outside the allowed roots."""
        self._path = os.path.abspath(path)
        self._settings = settings
        self._ended = False
        guards.check_root(self._path, settings.roots)

    @property
    def complete(self) -> bool:
        return self._ended

    @property
    def unreadable(self) -> tuple[str, ...]:
        return () if self._ended else (file_uri(self._path),)

    def __iter__(self) -> Iterator[Document | Rejected]:
        self._ended = False
        yield self._read()
        self._ended = True

    def _read(self) -> Document | Rejected:
        uri = file_uri(self._path)
        try:
            resolved = guards.check_root(self._path, self._settings.roots)
            descriptor = guards.open_regular(resolved)
            try:
                data = guards.read_regular(descriptor, self._settings.max_bytes, self._path)
            finally:
                os.close(descriptor)
            return document(uri, os.path.basename(self._path), data)
        except (OSError, MillraceError) as error:
            return Rejected(uri, why(error, self._path))


def document(uri: str, relative: str, data: bytes) -> Document:
    """The document of a file; raises UnsupportedFormat where no extractor knows it, InvalidDocument for its uri.

    Nothing that changes without the content is in the metadata (no times): it would make the document look changed.
    """
    if len(uri.encode("utf-8", "surrogatepass")) > MAX_URI_BYTES:
        raise InvalidDocument(
            f"{uri[:80]}... is a uri of more than {MAX_URI_BYTES} bytes; give the file a shorter path"
        )
    kind = media.detect(relative, data)
    if media.format_of(kind) is None:
        raise media.unsupported(uri, kind)
    return Document(uri, data, kind, {"source": "file", "path": _printable(relative)})


def _printable(path: str) -> str:
    return file_uri("/" + path).removeprefix(SCHEME + "/")
