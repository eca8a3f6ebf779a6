"""Object stores as sources: the objects below a prefix, listed page by page, read only where they changed.

The stores themselves (`s3`, `gcs`) are adapters of fsspec's file systems; here is what they have in common.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import IO, cast

from pipeline import media
from pipeline.document import Document, Validators
from pipeline.errors import (
    DocumentTooLarge,
    InvalidDocument,
    InvalidRequest,
    MillraceError,
    UnsupportedFormat,
)
from pipeline.settings import SourceSettings
from pipeline.sources import guards
from pipeline.sources.base import Item, Known, Rejected, Unchanged
from pipeline.sources.bundles import Bundle, bundle_kind, member_filter, scope_of
from pipeline.sources.ignore import patterns
from pipeline.sources.names import MAX_URI_BYTES, escaped, fitting
from pipeline.sources.rows import Rows
from pipeline.sources.stores.buckets import Listed, Place, Store, first_key, read_object

# Objects that are read at once hold no more than this together, so that a few large ones do not fill the memory.
_WINDOW_BYTES = 16 * 1024 * 1024
_WINDOW_OBJECTS = 32
LISTED_AT_ONCE = 1000  # what S3 and GCS give at most


class ObjectSource:
    """The objects below a prefix of a bucket (`s3://bucket/docs/`), or one object (`s3://bucket/docs/a.md`).

    Left out: what the settings ignore, what `include` and `exclude` (gitignore patterns, relative to the prefix)
    leave out, and objects of formats that no extractor knows; `skipped` counts the last. An object that cannot be
    read, has gone since it was listed or is too large is rejected by name.
    """

    def __init__(
        self,
        url: str,
        settings: SourceSettings,
        connect: Callable[[str, SourceSettings], Store],
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rows: Rows | None = None,
    ) -> None:
        """Asks the store once, so that a bucket that is not there is told at once. Raises what a `Store` raises."""
        place = Place.parse(url)
        self._settings = settings
        self._rows = rows
        self._connect = partial(connect, place.bucket, settings)
        self._include = patterns(include) if include else None
        self._exclude = patterns(exclude) if exclude else None
        self._ignore = patterns(settings.ignore)
        self._unreadable: list[str] = []
        self._ended = False
        self._unlisted = False
        self.skipped = 0
        with closing(self._connect()) as store:
            self._is_object = not place.key.endswith("/") and first_key(store, place.key) == place.key != ""
            prefix = place.key if self._is_object or not place.key else place.key.rstrip("/") + "/"
            if first_key(store, prefix) is None and prefix != place.key:
                raise InvalidRequest(f"{place.uri(place.key)} does not exist: no object has that name or lies below it")
        self._place = Place(place.scheme, place.bucket, prefix)

    @property
    def scope(self) -> str | None:
        uri = self._place.uri(self._place.key)
        if not self._is_object:
            return uri
        return scope_of(uri, self._place.key) if self._is_bundle(self._place.key) else None

    @property
    def complete(self) -> bool:
        return self._ended and not self._unlisted

    @property
    def unreadable(self) -> tuple[str, ...]:
        everything = () if self.complete else (self.scope or self._place.uri(self._place.key),)
        return (*self._unreadable, *everything)

    def __iter__(self) -> Iterator[Document | Rejected]:
        for item in self.since(lambda _: {}):
            if not isinstance(item, Unchanged):
                yield item

    def since(self, known: Known) -> Iterator[Item]:
        """An object whose ETag or generation is that of the published version is not read again."""
        self._ended, self._unlisted, self.skipped = False, False, 0
        self._unreadable.clear()
        with (
            closing(self._connect()) as store,
            ThreadPoolExecutor(self._settings.store_reads, "millrace-store") as pool,
        ):
            found = 0
            for page in self._pages(store):
                if isinstance(page, Rejected):
                    yield page
                    continue
                found += len(page)
                yield from self._page(page, store, pool, known)
            if self._is_object and not found and not self._unlisted:
                uri = self._place.uri(self._place.key)
                yield Rejected(uri, f"{uri} is gone")
        self._ended = True

    def _pages(self, store: Store) -> Iterator[list[Listed] | Rejected]:
        """The objects that are wanted, page by page, and what broke the listing off, if something did."""
        pages = store.pages(self._place.key, 1 if self._is_object else LISTED_AT_ONCE)
        while True:
            try:
                page = next(pages, None)
            except MillraceError as error:
                self._unlisted = True
                uri = self._place.uri(self._place.key)
                yield Rejected(uri, f"{uri} could not be listed to its end: {error}")
                return
            if page is None:
                return
            yield [entry for entry in page if self._wanted(entry.key)]
            if self._is_object:
                return

    def _page(self, entries: Sequence[Listed], store: Store, pool: ThreadPoolExecutor, known: Known) -> Iterator[Item]:
        held = known({self._place.uri(entry.key): self._metadata(entry.key) for entry in entries})
        same = {entry.key for entry in entries if _holds(entry, held.get(self._place.uri(entry.key), {}))}
        for window in self._windows(entries, same):
            if self._is_bundle(window[0].key):
                yield from self._bundle(window[0], store)
                continue
            at_once = map if all(entry.key in same for entry in window) else pool.map
            for item in at_once(partial(self._item, store, same), window):
                if item is None:
                    self.skipped += 1
                else:
                    yield item

    def _windows(self, entries: Sequence[Listed], same: Container[str]) -> Iterator[list[Listed]]:
        """Runs of objects that may be read at once: several small ones, or one that is large or read alone."""
        window: list[Listed] = []
        size = 0
        for entry in entries:
            more = 0 if entry.key in same else entry.size
            alone = self._is_bundle(entry.key) or (window and self._is_bundle(window[0].key))
            if window and (alone or len(window) >= _WINDOW_OBJECTS or size + more > _WINDOW_BYTES):
                yield window
                window, size = [], 0
            window.append(entry)
            size += more
        if window:
            yield window

    def _is_bundle(self, key: str) -> bool:
        """Whether an object is opened for the documents in it."""
        kind = bundle_kind(key, self._rows)
        return kind is not None and (kind != "archive" or self._is_object or self._settings.archives)

    def _bundle(self, entry: Listed, store: Store) -> Iterator[Document | Rejected]:
        """The documents in a table or an archive. It is read whenever the prefix is: who knows what was in it?"""
        uri, name = self._place.uri(entry.key), self._relative(entry.key)
        limit = self._settings.archive_bytes
        whole = self._include is None or self._include.match_file(name)
        with SpooledTemporaryFile(max_size=_WINDOW_BYTES, prefix="millrace-") as file:
            try:
                if entry.size > limit or read_object(store, entry.key, limit + 1, file).size > limit:
                    raise DocumentTooLarge(f"{uri} has more than {limit:,} bytes; see MILLRACE_SOURCES__ARCHIVE_BYTES")
            except MillraceError as error:
                self._unreadable.append(uri)
                yield Rejected(fitting(uri), str(error))
                return
            file.seek(0)
            bundle = Bundle(
                cast(IO[bytes], file),
                uri,
                name,
                self._settings,
                rows=self._rows,
                metadata={"source": self._place.scheme},
                wanted=member_filter(self._settings, None if whole else self._include, self._exclude),
            )
            yield from bundle
            self._unreadable += bundle.unreadable
            self.skipped += bundle.skipped

    def _item(self, store: Store, same: Container[str], entry: Listed) -> Item | None:
        """None: of a format that nobody knows."""
        if entry.key in same:
            return Unchanged(self._place.uri(entry.key), partial(self._read_again, entry))
        return self._read(entry, store)

    def _read_again(self, entry: Listed) -> Document | Rejected:
        with closing(self._connect()) as store:
            uri = self._place.uri(entry.key)
            return self._read(entry, store) or Rejected(uri, f"{uri}: no extractor knows its format")

    def _read(self, entry: Listed, store: Store) -> Document | Rejected | None:
        uri = self._place.uri(entry.key)
        try:
            if len(uri.encode("utf-8", "surrogatepass")) > MAX_URI_BYTES:
                raise InvalidDocument(f"{uri[:80]}... is a uri of more than {MAX_URI_BYTES} bytes")
            return self._document(uri, entry, store)
        except UnsupportedFormat as error:
            return Rejected(uri, str(error)) if self._is_object or media.promises_document(entry.key) else None
        except MillraceError as error:
            return Rejected(fitting(uri), str(error))

    def _document(self, uri: str, entry: Listed, store: Store) -> Document:
        limit = self._settings.max_bytes
        if entry.size > limit:
            raise guards.too_large(uri, entry.size, limit)
        file = io.BytesIO()
        received = read_object(store, entry.key, limit + 1, file)
        if received.size > limit:
            raise guards.too_large(uri, received.size, limit)
        data = file.getvalue()
        # Tools that upload tell any type; the name is what a person chose.
        declared = received.media_type if media.from_name(entry.key) is None else None
        kind = media.detect(entry.key, data, declared)
        if media.format_of(kind) is None:
            raise media.unsupported(uri, kind)
        return Document(uri, data, kind, self._metadata(entry.key), received.validators)

    def _metadata(self, key: str) -> dict[str, str]:
        return {"source": self._place.scheme, "path": escaped(self._relative(key), "#")}

    def _relative(self, key: str) -> str:
        return posixpath.basename(key) if self._is_object else key[len(self._place.key) :]

    def _wanted(self, key: str) -> bool:
        """Whether an object can be for us by its name; counts it where no extractor knows what the name says."""
        if self._is_object:
            return key == self._place.key
        relative = self._relative(key)
        # Consoles make empty objects that look like directories.
        if not relative or key.endswith("/") or self._ignore.match_file(relative):
            return False
        if self._exclude is not None and self._exclude.match_file(relative):
            return False
        bundle = bundle_kind(key, self._rows) if self._is_bundle(key) else None
        # `include` may name what is in an archive.
        if bundle != "archive" and self._include is not None and not self._include.match_file(relative):
            return False
        unknown = bundle is None and media.rules_out_document(relative)
        self.skipped += unknown
        return not unknown


def _holds(entry: Listed, held: Validators) -> bool:
    return bool(entry.validators) and entry.validators == held
