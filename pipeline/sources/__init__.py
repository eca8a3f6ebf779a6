"""Where documents come from. `open_source` turns what a person types into a `Source`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InvalidRequest
from pipeline.settings import SourceSettings
from pipeline.sources.base import Rejected, Source
from pipeline.sources.directory import DirectorySource
from pipeline.sources.files import FileSource, file_path, file_uri
from pipeline.sources.inline import InlineSource, check_document, check_metadata, check_uri, to_document

__all__ = [
    "DirectorySource",
    "FileSource",
    "InlineSource",
    "Rejected",
    "Source",
    "check_document",
    "check_metadata",
    "check_uri",
    "file_path",
    "file_uri",
    "open_source",
    "to_document",
]

_GLOB = frozenset("*?[")


def open_source(
    spec: str | Path,
    settings: SourceSettings,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Source:
    """The source that a path, a glob (`docs/**/*.md`) or a URL names.

    include, exclude: gitignore patterns for the files of a directory. Nothing is read yet, but a path must exist.
    Raises InvalidRequest for what names nothing, SourceRefused for what a guard does not allow.
    """
    text = os.fspath(spec)
    if not text.strip() or "\0" in text:
        raise InvalidRequest(f"{text!r} names no source; give a file, a directory, a glob or an http(s) URL")
    if text == "-":
        raise InvalidRequest("'-' (standard input) is not a source; write it to a file, or hand it to Client.ingest")
    if isinstance(spec, str):
        scheme, separator, _ = text.partition("://")
        if separator and scheme.isalnum():
            return _open_url(text, scheme.lower(), settings, include, exclude)
    return _open_path(text, settings, include, exclude)


def _open_url(
    url: str, scheme: str, settings: SourceSettings, include: Sequence[str], exclude: Sequence[str]
) -> Source:
    if scheme in {"http", "https"}:
        from pipeline.sources.web import WebSource  # httpx costs a tenth of a second to import

        return WebSource([url], settings)
    if scheme == "file":
        return _open_path(str(file_path(url)), settings, include, exclude)
    raise InvalidRequest(f"{url}: {scheme}:// is not a source; give a file, a directory, a glob or an http(s) URL")


def _open_path(path: str, settings: SourceSettings, include: Sequence[str], exclude: Sequence[str]) -> Source:
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        return DirectorySource(expanded, settings, include=include, exclude=exclude)
    if os.path.lexists(expanded):
        return FileSource(expanded, settings)
    if _GLOB & set(path):
        root, pattern = _split_glob(expanded)
        if os.path.isdir(root):
            return DirectorySource(root, settings, include=(*include, "/" + pattern), exclude=exclude)
    raise InvalidRequest(f"{path} does not exist (looked for {os.path.abspath(expanded)})")


def _split_glob(path: str) -> tuple[str, str]:
    """The directory before the first part with a wildcard, and the rest."""
    parts = path.split("/")
    first = next(number for number, part in enumerate(parts) if _GLOB & set(part))
    return "/".join(parts[:first]) or ("/" if path.startswith("/") else "."), "/".join(parts[first:])
