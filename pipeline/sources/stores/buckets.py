"""What an object store is to its source: one bucket, listed page by page, read object by object."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol
from urllib.parse import unquote

from pipeline.document import Validators
from pipeline.errors import InvalidRequest, MillraceError, SourceUnavailable
from pipeline.sources.names import escaped

TRIES = 2  # an object that could not be read because the store failed is asked for once more

_BYTES_PER_SECOND = 1024 * 1024  # the slowest that a large object may come
_CLOSE_SECONDS = 5
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing tells of it. validators: what changes with its content."""

    key: str
    size: int
    validators: Validators


@dataclass(frozen=True, slots=True)
class Received:
    """What came with the content of an object. size: bytes that were written; the limit says that there is more."""

    size: int
    media_type: str | None
    validators: Validators


class Store(Protocol):
    """One bucket. Its errors are translated: InvalidRequest (no such bucket, no credentials), SourceRefused (may not),
    SourceUnavailable (try again), ExtractionFailed (no such object); they name the bucket, and never a secret."""

    def pages(self, prefix: str, size: int) -> Iterator[list[Listed]]:
        """The objects whose key begins so, by key, up to `size` in a page."""

    def read(self, key: str, limit: int, into: IO[bytes]) -> Received:
        """Writes at most `limit` bytes of an object; the validators are those of just these."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket and a key or prefix in it, as a person names them."""

    scheme: str
    bucket: str
    key: str

    @classmethod
    def parse(cls, url: str) -> Place:
        """Raises InvalidRequest for what is no such URL; shows nothing that may be a password."""
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        if "@" in bucket:
            raise InvalidRequest(
                f"the {scheme.lower()}:// URL has credentials in it, which would be kept with every document; leave "
                "them out, and set them as the store's own tools take them (docs/sources.md)"
            )
        if not _BUCKET.fullmatch(bucket):
            raise InvalidRequest(f"{bucket!r:.80} is no bucket; give {scheme.lower()}://BUCKET or .../PREFIX/")
        return cls(scheme.lower(), bucket, unquote(key, errors="surrogateescape"))

    def uri(self, key: str) -> str:
        return f"{self.scheme}://{self.bucket}/{escaped(key, '#')}"


class AsyncBucket:
    """What the adapters have in common: fsspec's file systems run in an event loop in a thread of their own.

    It is made in the process that uses it, for that loop does not survive a fork.
    """

    def __init__(self, bucket: str, timeout: float) -> None:
        from fsspec.asyn import sync

        self._bucket = bucket
        self._timeout = timeout
        self._sync = sync  # found now: a generator that is left behind is closed when nothing can be imported any more

    def _call(
        self,
        files: Any,
        translate: Callable[[Exception, str, str | None], MillraceError | None],
        function: Any,
        *args: Any,
        key: str | None = None,
        seconds: float | None = None,
        **given: Any,
    ) -> Any:
        """Runs a coroutine function to its end; seconds: how long it may take. key: the object that it is about."""
        try:
            return self._sync(files.loop, function, *args, timeout=seconds or self._timeout, **given)
        except Exception as error:
            translated = translate(error, self._bucket, key)
            if translated is None:
                raise
            raise translated from error

    def _end(self, files: Any, function: Any) -> None:
        """Runs the coroutine function that closes connections."""
        if not sys.is_finalizing():  # the loop's thread stands still then
            self._sync(files.loop, function, timeout=_CLOSE_SECONDS)


def seconds_for(limit: int, timeout: float) -> float:
    """How long reading up to `limit` bytes may take."""
    return timeout + limit / _BYTES_PER_SECOND


def one_line(error: object) -> str:
    """What an error says, in one line, without what may be secret in a URL: its user, its query."""
    if isinstance(error, TimeoutError) and not str(error):
        return "it did not answer in time"
    text = re.sub(r"//[^/@\s]*@", "//***@", " ".join(str(error).split()))
    return re.sub(r"\?[^\s\"']*", "", text)[:200] or type(error).__name__


def first_key(store: Store, prefix: str) -> str | None:
    """The first key that begins so: an object of that very name comes before all others."""
    return next((entry.key for page in store.pages(prefix, 1) for entry in page), None)


def read_object(store: Store, key: str, limit: int, into: IO[bytes]) -> Received:
    for _ in range(TRIES - 1):
        try:
            return store.read(key, limit, into)
        except SourceUnavailable:
            into.seek(0)
            into.truncate()
    return store.read(key, limit, into)
