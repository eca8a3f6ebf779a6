"""A table or an archive on disk as a source: what `millrace ingest data.csv` and `millrace sync mails.zip` read."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from pipeline.document import Document
from pipeline.errors import InvalidRequest, MillraceError
from pipeline.settings import SourceSettings
from pipeline.sources import guards
from pipeline.sources.base import Rejected
from pipeline.sources.bundles import Bundle, Wanted, bundle_kind, check_table, member_filter, scope_of
from pipeline.sources.files import file_uri, why
from pipeline.sources.ignore import patterns
from pipeline.sources.rows import Rows


class BundleSource:
    """A file named by a person that holds many documents: a document of each row, or member.

    include, exclude: gitignore patterns for the members of an archive, relative to it.
    """

    def __init__(
        self,
        path: str | Path,
        settings: SourceSettings,
        *,
        rows: Rows | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        """Raises SourceRefused outside the allowed roots; InvalidRequest for columns that a table does not have."""
        self._path = os.path.abspath(path)
        self._name = os.path.basename(self._path)
        self._settings = settings
        self._rows = rows
        self._include = patterns(include) if include else None
        self._exclude = patterns(exclude) if exclude else None
        self._ended = False
        self._unreadable: list[str] = []
        self.skipped = 0
        guards.check_root(self._path, settings.roots)
        if rows is not None and bundle_kind(self._name, rows) == "table":
            self._check(rows)

    def _check(self, rows: Rows) -> None:
        """Raises InvalidRequest; a file that cannot be read is told of by iterating."""
        try:
            with os.fdopen(self._open(), "rb") as file:
                check_table(file, self._name, rows, self._settings)
        except InvalidRequest:
            raise
        except (OSError, MillraceError):
            return

    @property
    def scope(self) -> str:
        return scope_of(file_uri(self._path), self._name)

    @property
    def complete(self) -> bool:
        return self._ended

    @property
    def unreadable(self) -> tuple[str, ...]:
        return tuple(self._unreadable) if self._ended else (*self._unreadable, self.scope)

    def __iter__(self) -> Iterator[Document | Rejected]:
        self._ended = False
        self._unreadable.clear()
        wanted = member_filter(self._settings, self._include, self._exclude, self._name + "!/")
        uri = file_uri(self._path)
        try:
            descriptor = self._open()
        except (OSError, MillraceError) as error:
            self._unreadable.append(uri)
            yield Rejected(uri, why(error, self._path))
        else:
            self.skipped = yield from read_bundle(
                descriptor, self._path, self._name, self._settings, self._rows, wanted, self._unreadable
            )
        self._ended = True

    def _open(self) -> int:
        return guards.open_regular(guards.check_root(self._path, self._settings.roots))


def read_bundle(
    descriptor: int,
    path: str,
    name: str,
    settings: SourceSettings,
    rows: Rows | None,
    wanted: Wanted,
    unreadable: list[str],
) -> Generator[Document | Rejected, None, int]:
    """The documents in an open file, which is closed then; returns how many members were of unknown formats.

    name: as documents and messages call it. What could not be looked into is added to `unreadable`.
    """
    uri = file_uri(path)
    with os.fdopen(descriptor, "rb") as file:
        before = os.fstat(file.fileno())
        bundle = Bundle(file, uri, name, settings, rows=rows, wanted=wanted)
        try:
            yield from bundle
        except OSError as error:
            bundle.unreadable.append(uri)
            yield Rejected(uri, why(error, path))
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            bundle.unreadable.append(uri)
            yield Rejected(uri, f"{path} changed while it was read; ingest it again when it is complete")
    unreadable.extend(bundle.unreadable)
    return bundle.skipped
