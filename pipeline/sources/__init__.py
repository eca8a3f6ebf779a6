"""Where documents come from. `open_source` turns what a person types into a `Source`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InvalidRequest
from pipeline.settings import SourceSettings, mask_url
from pipeline.sources.base import Item, Known, Rejected, Source, Unchanged
from pipeline.sources.bundles import TABLES, Bundle, bundle_kind
from pipeline.sources.directory import DirectorySource
from pipeline.sources.files import FileSource, file_path, file_uri
from pipeline.sources.held import BundleSource
from pipeline.sources.inline import InlineSource, check_document, check_metadata, check_uri, to_document
from pipeline.sources.rows import Rows

__all__ = [
    "Bundle",
    "BundleSource",
    "DirectorySource",
    "FileSource",
    "InlineSource",
    "Item",
    "Known",
    "Rejected",
    "Rows",
    "Source",
    "Unchanged",
    "check_document",
    "check_metadata",
    "check_uri",
    "file_path",
    "file_uri",
    "open_source",
    "to_document",
]

_GLOB = frozenset("*?[")
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*")


def open_source(
    spec: str | Path,
    settings: SourceSettings,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rows: Rows | None = None,
) -> Source:
    """The source that a path, a glob (`docs/**/*.md`) or a URL names.

    include, exclude: gitignore patterns for the files of a directory or an archive. rows: how the rows of tables
    become documents; None: a table is one document. No document is read yet, but a path must exist, and a table must
    have the columns that `rows` names.
    Raises InvalidRequest for what names nothing, SourceRefused for what a guard does not allow.
    """
    text = os.fspath(spec)
    if not text.strip() or "\0" in text:
        raise InvalidRequest(f"{text!r} names no source; give a file, a directory, a glob or an http(s) URL")
    if text == "-":
        raise InvalidRequest("'-' (standard input) is not a source; write it to a file, or hand it to Client.ingest")
    if isinstance(spec, str):
        scheme, separator, _ = text.partition("://")
        if separator and _SCHEME.fullmatch(scheme):
            return _open_url(text, scheme.lower(), settings, include, exclude, rows)
    return _open_path(text, settings, include, exclude, rows)


def _open_url(
    url: str,
    scheme: str,
    settings: SourceSettings,
    include: Sequence[str],
    exclude: Sequence[str],
    rows: Rows | None,
) -> Source:
    if scheme in {"http", "https"}:
        from pipeline.sources.web import WebSource  # httpx costs a tenth of a second to import

        if rows is not None:
            raise InvalidRequest(f"{url} is read as one document; to make documents of rows, save it as a file first")
        return WebSource([url], settings)
    if scheme == "file":
        return _open_path(str(file_path(url)), settings, include, exclude, rows)
    if scheme == "s3":
        from pipeline.sources.stores.objects import ObjectSource
        from pipeline.sources.stores.s3 import S3Bucket

        return ObjectSource(url, settings, S3Bucket, include=include, exclude=exclude, rows=rows)
    if scheme == "gs":
        from pipeline.sources.stores.gcs import GcsBucket
        from pipeline.sources.stores.objects import ObjectSource

        return ObjectSource(url, settings, GcsBucket, include=include, exclude=exclude, rows=rows)
    return _open_installed(url, scheme, settings, given=bool(include or exclude or rows))


def _open_installed(url: str, scheme: str, settings: SourceSettings, *, given: bool) -> Source:
    """given: patterns or rows, which are for files alone."""
    from pipeline.sources import installed

    source = installed.open_installed(scheme + url[len(scheme) :], scheme, settings)
    if source is None:
        known = ", ".join(f"{name}://" for name in ("file", "http", "https", "s3", "gs", *installed.schemes()))
        raise InvalidRequest(
            f"{mask_url(url)}: {scheme}:// is not a source; give a file, a directory, a glob, or a URL of {known}"
        )
    if given:
        raise InvalidRequest(f"{scheme}:// takes no patterns and no rows; it is brought by an installed package")
    return source


def _open_path(
    path: str, settings: SourceSettings, include: Sequence[str], exclude: Sequence[str], rows: Rows | None
) -> Source:
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        return DirectorySource(expanded, settings, include=include, exclude=exclude, rows=rows)
    if os.path.lexists(expanded):
        if bundle_kind(expanded, rows) is not None:
            return BundleSource(expanded, settings, rows=rows, include=include, exclude=exclude)
        if rows is not None:
            raise InvalidRequest(f"{path} has no rows or records: by its name it is none of {', '.join(TABLES)}")
        return FileSource(expanded, settings)
    if _GLOB & set(path):
        root, pattern = _split_glob(expanded)
        if os.path.isdir(root):
            return DirectorySource(root, settings, include=(*include, "/" + pattern), exclude=exclude, rows=rows)
    raise InvalidRequest(f"{path} does not exist (looked for {os.path.abspath(expanded)})")


def _split_glob(path: str) -> tuple[str, str]:
    """The directory before the first part with a wildcard, and the rest."""
    parts = path.split("/")
    first = next(number for number, part in enumerate(parts) if _GLOB & set(part))
    return "/".join(parts[:first]) or ("/" if path.startswith("/") else "."), "/".join(parts[first:])
