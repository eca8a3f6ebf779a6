"""Files that hold many documents: the rows of tables, the members of archives, and each inside the other."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from typing import IO, Literal, cast

from pathspec import GitIgnoreSpec

from pipeline import media
from pipeline.document import Document, Metadata
from pipeline.errors import ExtractionFailed, MillraceError
from pipeline.settings import SourceSettings
from pipeline.sources.archives.archive import SEPARATOR, archive_kind, read_members
from pipeline.sources.archives.unpacking import BROKEN, Budget, Member
from pipeline.sources.base import Rejected
from pipeline.sources.guards import too_large
from pipeline.sources.ignore import patterns
from pipeline.sources.lines import Stream
from pipeline.sources.names import escaped, fitting
from pipeline.sources.rows import RowMaker, Rows, check_columns
from pipeline.sources.seen import Seen
from pipeline.sources.tables.table import Table, read_csv

_READERS = {
    "csv": ("csv", "tsv", "tab", "psv"),
    "json": ("json", "geojson"),
    "jsonl": ("jsonl", "ndjson"),
    "parquet": ("parquet", "pq"),
    "workbook": ("xlsx", "xlsm"),
}
_TABLE_KINDS = {extension: kind for kind, extensions in _READERS.items() for extension in extensions}
TABLES = tuple(f".{extension}" for extension in _TABLE_KINDS)
"""How the names of tables end."""

# Tables whose readers jump about in the file; as members of an archive they are held in memory.
_RANDOM = frozenset({"parquet", "workbook"})
_ALWAYS_LEFT_OUT = ("__MACOSX/", ".DS_Store")

Wanted = Callable[[str, bool], bool]
"""Whether a member is wanted, by its path (`a.zip!/docs/a.md`); True: it is an archive, to be opened for what is in it.
"""


def table_kind(name: str) -> str | None:
    """Which reader makes rows of a file of this name; None where it is no table."""
    return _TABLE_KINDS.get(name.lower().rpartition(".")[2]) if "." in name else None


def bundle_kind(name: str, rows: Rows | None) -> Literal["table", "archive"] | None:
    """Whether a file of this name holds many documents. A table does where it is said how rows become documents."""
    if archive_kind(name) is not None:
        return "archive"
    return "table" if rows is not None and table_kind(name) is not None else None


def check_table(file: IO[bytes], name: str, rows: Rows, settings: SourceSettings) -> None:
    """Opens a table and finds its columns. Raises InvalidRequest naming those that are missing; InvalidDocument."""
    table = open_table(file, name, rows, settings)
    check_columns(rows, table.columns, table.sample, name)


def open_table(file: Stream, name: str, rows: Rows, settings: SourceSettings) -> Table:
    """The rows of a table, told from its name. Raises InvalidDocument, InvalidRequest."""
    from pipeline.sources.tables import parquet, records, workbooks

    kind = table_kind(name)
    if kind in _RANDOM:
        read_at_random = parquet.read_parquet if kind == "parquet" else workbooks.read_workbook
        return read_at_random(cast(IO[bytes], file), name, rows, settings.max_bytes)
    read = {"json": records.read_json, "jsonl": records.read_json_lines}.get(kind or "", read_csv)
    return read(file, name, rows, settings.max_bytes)


def member_filter(
    settings: SourceSettings, include: GitIgnoreSpec | None, exclude: GitIgnoreSpec | None, base: str = ""
) -> Wanted:
    """Members by gitignore patterns for their paths, which are relative to `base`."""
    ignore = patterns((*settings.ignore, *_ALWAYS_LEFT_OUT))

    def wanted(path: str, opened: bool) -> bool:
        relative = path.removeprefix(base)
        if ignore.match_file(path.rpartition(SEPARATOR)[2]) or (exclude is not None and exclude.match_file(relative)):
            return False
        return opened or include is None or include.match_file(relative)

    return wanted


class Bundle:
    """The documents in an open file: `Document`, or `Rejected` in place of one that cannot be read.

    uri: the file's; that of a row is `uri#id`, that of a member `uri!/path`. name: the path that messages and the
    metadata show, with the ending that tells what it is. file: seekable, read from its beginning.
    metadata: what every document has, besides `path`. wanted: which members of an archive. One member at a time is
    held in memory, one row of a table (a workbook, and a JSON object, as a whole).
    """

    def __init__(
        self,
        file: IO[bytes],
        uri: str,
        name: str,
        settings: SourceSettings,
        *,
        rows: Rows | None = None,
        metadata: Metadata | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        self._file = file
        self._uri = uri
        self._name = name
        self._settings = settings
        self._rows = rows
        self._metadata = {"source": "file"} if metadata is None else dict(metadata)
        self._wanted = wanted or member_filter(settings, None, None)
        self.skipped = 0
        self.unreadable: list[str] = []
        """Uris and uri prefixes that could not be looked into: what is known below them is not gone."""

    @property
    def scope(self) -> str:
        """What the uri of every document in it begins with."""
        return scope_of(self._uri, self._name)

    def __iter__(self) -> Iterator[Document | Rejected]:
        self.skipped = 0
        self.unreadable.clear()
        if bundle_kind(self._name, self._rows) == "table":
            yield from self._table(self._file, self._uri, self._name)
            return
        packed = self._file.seek(0, os.SEEK_END)
        yield from self._archive(self._file, self._uri, self._name, Budget(self._settings, packed), 1)

    # -- rows ----------------------------------------------------------------------------------------------------

    def _table(self, file: Stream, uri: str, name: str) -> Iterator[Document | Rejected]:
        rows = self._rows or Rows()
        maker = RowMaker(rows, uri, name, {**self._metadata, "path": escaped(name, "")}, self._settings.max_bytes)
        seen = Seen() if rows.id_column is not None else None
        try:
            table = open_table(file, name, rows, self._settings)
            check_columns(rows, table.columns, table.sample, name)
            for row in table.rows:
                if row.error:
                    # It may be any of the rows that were there before.
                    self._protect(uri + "#")
                    yield Rejected(fitting(maker.place(row.number)), f"{name} row {row.number}: {row.error}")
                    continue
                place = maker.uri(row)
                if seen is not None and maker.has_id(row) and not seen.add(place):
                    problem = (
                        f"{name} row {row.number}: another row before it has the same id, {place.partition('#')[2]}"
                    )
                    yield Rejected(fitting(maker.place(row.number)), problem)
                    continue
                try:
                    yield maker.document(row)
                except MillraceError as error:
                    yield Rejected(fitting(place), str(error))
        except MillraceError as error:
            self._protect(uri)
            yield Rejected(fitting(uri), str(error))

    # -- members -------------------------------------------------------------------------------------------------

    def _archive(
        self, file: IO[bytes], uri: str, name: str, budget: Budget, depth: int
    ) -> Iterator[Document | Rejected]:
        try:
            if file.seek(0, os.SEEK_END) == 0:
                raise ExtractionFailed(f"{name} is empty, and no archive")
            file.seek(0)
            for member in read_members(file, name, budget):
                yield from self._member(member, uri, name, budget, depth)
        except MillraceError as error:
            self._protect(uri)
            yield Rejected(fitting(uri), str(error))

    def _member(
        self, member: Member, archive: str, archive_name: str, budget: Budget, depth: int
    ) -> Iterator[Document | Rejected]:
        path = f"{archive_name}{SEPARATOR}{member.name}"
        uri = f"{archive}{SEPARATOR}{escaped(member.name, '#?')}"
        kind = bundle_kind(member.name, self._rows)
        if not self._is_ours(path, member.name, kind):
            return
        if member.stream is None:
            yield self._reject(uri, f"{path} {member.problem}")
            return
        whole = archive_kind(archive_name) == ("zip", "")
        try:
            if kind == "table" and table_kind(member.name) not in _RANDOM:
                yield from self._table(member.stream, uri, path)
                return
            if kind == "archive" and depth >= self._settings.archive_depth:
                problem = (
                    f"{path} is an archive in {depth} other{'s' if depth > 1 else ''}, and is not opened "
                    "(MILLRACE_SOURCES__ARCHIVE_DEPTH)"
                )
                yield self._reject(uri, problem)
                return
            if member.size > self._settings.max_bytes:
                yield self._reject(uri, str(too_large(path, member.size, self._settings.max_bytes)))
                return
            data = member.stream.read(self._settings.max_bytes + 1)
        except BROKEN as error:
            if not whole:  # what follows in the stream cannot be found without it
                raise ExtractionFailed(
                    f"{archive_name} is damaged or cut off in {member.name}: {_said(error)}"
                ) from None
            yield self._reject(uri, f"{path} is damaged: {_said(error)}")
            return
        if len(data) > self._settings.max_bytes:
            yield self._reject(uri, str(too_large(path, len(data), self._settings.max_bytes)))
        elif kind == "archive":
            yield from self._archive(io.BytesIO(data), uri, path, budget, depth + 1)
        elif kind == "table":
            yield from self._table(io.BytesIO(data), uri, path)
        else:
            yield from self._document(data, uri, path, member.name)

    def _is_ours(self, path: str, name: str, kind: str | None) -> bool:
        """Whether a member can be for us by its name; counts it where no extractor knows what the name says."""
        if not self._wanted(path, kind == "archive"):
            return False
        if kind is None and media.rules_out_document(name):
            self.skipped += 1
            return False
        return True

    def _document(self, data: bytes, uri: str, path: str, name: str) -> Iterator[Document | Rejected]:
        kind = media.detect(name, data)
        if media.format_of(kind) is not None:
            document = Document(uri, data, kind, {**self._metadata, "path": escaped(path, "")})
            yield document if fitting(uri) == uri else Rejected(fitting(uri), f"{path} has too long a name for a uri")
        elif media.promises_document(name):
            yield Rejected(fitting(uri), f"{path}: no extractor knows {media.essence(kind)}, which its content is")
        else:
            self.skipped += 1

    def _reject(self, uri: str, problem: str) -> Rejected:
        self._protect(uri)
        return Rejected(fitting(uri), problem)

    def _protect(self, place: str) -> None:
        if place not in self.unreadable:
            self.unreadable.append(place)


def scope_of(uri: str, name: str) -> str:
    """What the uris of the documents in a file begin with."""
    return uri + (SEPARATOR if archive_kind(name) is not None else "#")


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
