"""Web pages as sources: fetched from public addresses only, within a size, a number of redirects and a time."""

from __future__ import annotations

import re
import ssl
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from urllib.parse import urlsplit

import httpx

from pipeline import media
from pipeline.document import Document, Validators
from pipeline.errors import (
    ExtractionFailed,
    InvalidRequest,
    MillraceError,
    SourceRefused,
    SourceUnavailable,
)
from pipeline.settings import SourceSettings, mask_url
from pipeline.sources import guards
from pipeline.sources.base import Item, Known, Rejected, Unchanged
from pipeline.sources.names import MAX_URI_BYTES
from pipeline.sources.transport import GuardedTransport

TRIES = 2  # a page that did not answer is asked for once more
RETRY_SECONDS = 0.5

_HEADERS = {"User-Agent": "millrace/0.1", "Accept": "text/html, text/*;q=0.9, */*;q=0.5", "Accept-Encoding": "gzip"}
# Statuses that may be others the next time.
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+", re.IGNORECASE)
_INFLATE_STEP = 1 << 20
# What an entity tag may be, of a length that a server can be sent back.
_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,1000}"')
_SETTLED_SECONDS = 2.0
_METADATA = {"source": "web"}
_ASKED_AT_ONCE = 100


class WebSource:
    """Pages by URL, in the order given. A page that cannot be had is rejected; the others go on."""

    scope = None

    def __init__(self, urls: Sequence[str], settings: SourceSettings) -> None:
        """Raises InvalidRequest for what is no http(s) URL, SourceRefused for a URL with a password in it."""
        self._urls = [page_uri(url) for url in urls]
        self._settings = settings
        self._ended = False
        self._unreadable: list[str] = []

    @property
    def complete(self) -> bool:
        return self._ended

    @property
    def unreadable(self) -> tuple[str, ...]:
        return tuple(self._unreadable) if self._ended else tuple(self._urls)

    def __iter__(self) -> Iterator[Document | Rejected]:
        for item in self.since(lambda _: {}):
            if not isinstance(item, Unchanged):
                yield item

    def since(self, known: Known) -> Iterator[Item]:
        """A page that is as it was published is asked for, and not sent again."""
        self._ended = False
        self._unreadable.clear()
        tls = httpx.create_ssl_context()
        for start in range(0, len(self._urls), _ASKED_AT_ONCE):
            urls = self._urls[start : start + _ASKED_AT_ONCE]
            validators = known(dict.fromkeys(urls, _METADATA))
            for url in urls:
                found = self._read(url, tls, validators.get(url, {}))
                yield found or Unchanged(url, partial(self._read_again, url, tls))
        self._ended = True

    def _read_again(self, url: str, tls: ssl.SSLContext) -> Document | Rejected:
        found = self._read(url, tls, {})
        return found or Rejected(url, f"{url} answered 304 to a question without a condition")

    def _read(self, url: str, tls: ssl.SSLContext, validators: Validators) -> Document | Rejected | None:
        """None: the page is as it was."""
        deadline = time.monotonic() + self._settings.web_timeout
        for attempt in range(1, TRIES + 1):
            try:
                return fetch(url, self._settings, tls, deadline, validators)
            except MillraceError as error:
                again = isinstance(error, SourceUnavailable) and attempt < TRIES
                if not again or time.monotonic() + RETRY_SECONDS >= deadline:
                    self._unreadable.append(url)
                    return Rejected(url, str(error))
            time.sleep(RETRY_SECONDS)
        raise AssertionError("unreachable")


def page_uri(url: str) -> str:
    """The uri of a page: its URL, normalised, without the fragment.

    Raises InvalidRequest for what is no http(s) URL, SourceRefused for a URL with credentials in it.
    """
    return str(_checked(url))


def _checked(url: str | httpx.URL) -> httpx.URL:
    try:
        parsed = httpx.URL(url).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise InvalidRequest(f"{url!r:.200} is not a URL: {error}") from None
    if parsed.userinfo:
        raise SourceRefused(
            f"{mask_url(str(parsed))} carries credentials, which would be kept with the document; leave them out"
        )
    if not urlsplit(str(parsed)).path:
        parsed = parsed.copy_with(path="/")
    if parsed.scheme not in {"http", "https"} or not _HOST.fullmatch(parsed.raw_host.decode("ascii", "replace")):
        raise InvalidRequest(f"{str(url)!r:.200} is not an http(s) URL with a host")
    if len(str(parsed).encode()) > MAX_URI_BYTES:
        raise InvalidRequest(f"{str(parsed)[:80]!r}... has more than {MAX_URI_BYTES} bytes")
    return parsed


def fetch(
    url: str,
    settings: SourceSettings,
    tls: ssl.SSLContext | None = None,
    deadline: float | None = None,
    validators: Validators | None = None,
) -> Document | None:
    """The page at a URL as a Document, named by that URL whatever it redirects to.

    `deadline`: on the monotonic clock, for everything together: connecting, redirects, headers and body.
    `validators`: those of the page as it is known; None is returned where they still hold.
    Raises SourceRefused (an address, a redirect), DocumentTooLarge, UnsupportedFormat, ExtractionFailed (the server
    says that there is no such page) and SourceUnavailable (it may work later), each naming the URL.
    """
    deadline = time.monotonic() + settings.web_timeout if deadline is None else deadline
    uri = page_uri(url)
    with httpx.Client(
        transport=GuardedTransport(settings.web_private, tls or httpx.create_ssl_context(), deadline),
        trust_env=False,  # a proxy would connect to what it likes
        timeout=settings.web_timeout,
        headers=_HEADERS,
    ) as client:
        try:
            return _follow(client, uri, settings, deadline, validators or {})
        except (SourceRefused, SourceUnavailable) as error:
            raise type(error)(f"{uri}: {error}") from error
        except httpx.TimeoutException as error:
            raise SourceUnavailable(f"{uri} was not here after {settings.web_timeout:g} s; try again later") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise SourceUnavailable(f"{uri} does not answer: {str(error) or type(error).__name__}") from error


def _follow(
    client: httpx.Client, uri: str, settings: SourceSettings, deadline: float, validators: Validators
) -> Document | None:
    target = httpx.URL(uri)
    for _ in range(settings.web_redirects + 1):
        # An ETag belongs to the URL that sent it: the page that it redirects to by now may use the same one.
        conditions = _conditions(validators) if validators.get("url") == str(target) else {}
        response = client.send(client.build_request("GET", target, headers=conditions), stream=True)
        try:
            if response.status_code == httpx.codes.NOT_MODIFIED and conditions:
                return None
            if response.next_request is None:
                return _document(uri, response, settings, deadline)
            following = str(response.next_request.url)
        finally:
            response.close()
        target = _redirected(target, following)
    raise SourceRefused(f"more than {settings.web_redirects} redirects; see MILLRACE_SOURCES__WEB_REDIRECTS")


def _redirected(source: httpx.URL, target: str) -> httpx.URL:
    try:
        found = _checked(target)
    except InvalidRequest as error:
        raise SourceRefused(f"it redirects to what is refused: {error}") from None
    if source.scheme == "https" and found.scheme == "http":
        raise SourceRefused(
            f"it redirects from https to {found}, where anybody on the way can change the page; "
            "ingest that URL itself if that is good enough"
        )
    return found


def _conditions(validators: Validators) -> dict[str, str]:
    names = {"etag": "If-None-Match", "last_modified": "If-Modified-Since"}
    return {header: validators[name] for name, header in names.items() if name in validators}


def _validators(response: httpx.Response) -> dict[str, str]:
    """What the server says of the page, to ask again with; nothing where that tells two pages apart by chance only."""
    found = {}
    etag = response.headers.get("etag", "")
    if _ETAG.fullmatch(etag):
        found["etag"] = etag
    modified, date = (_time(response.headers.get(name, "")) for name in ("last-modified", "date"))
    # A page may change twice in the second that Last-Modified names (RFC 9110, 8.8.2.2).
    if modified is not None and date is not None and date - modified >= _SETTLED_SECONDS:
        found["last_modified"] = response.headers["last-modified"]
    return {**found, "url": str(response.request.url)} if found else {}


def _time(header: str) -> float | None:
    try:
        return parsedate_to_datetime(header).timestamp()
    except (ValueError, OverflowError):
        return None


def _document(uri: str, response: httpx.Response, settings: SourceSettings, deadline: float) -> Document:
    status = response.status_code
    if status in _TRANSIENT:
        raise SourceUnavailable(f"the server answered {status} {response.reason_phrase}; try again later")
    if status != httpx.codes.OK:
        raise ExtractionFailed(f"{uri} answered {status} {response.reason_phrase}; there is no document to index")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > settings.max_bytes:
        raise guards.too_large(uri, int(length), settings.max_bytes)
    data = _body(uri, response, settings.max_bytes, deadline)
    declared = response.headers.get("content-type", "")
    kind = media.detect(uri, data, _tidy(declared))
    if media.format_of(kind) is None:
        raise media.unsupported(uri, kind)
    return Document(uri, data, kind, _METADATA, _validators(response))


def _tidy(content_type: str) -> str | None:
    """The media type of a header with no other parameter than its charset; None for what is no media type."""
    kind = media.essence(content_type)
    if "/" not in kind:
        return None
    charset = media.charset(content_type)
    return f"{kind}; charset={charset}" if charset else kind


def _body(uri: str, response: httpx.Response, max_bytes: int, deadline: float) -> bytes:
    """The body, decompressed a piece at a time, so that a small one cannot become a huge one unnoticed."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "", "gzip", "x-gzip", "deflate"}:
        raise ExtractionFailed(f"{uri} is sent in the encoding {encoding!r}, which was not asked for")
    pieces: Iterable[bytes] = response.iter_raw()
    if encoding not in {"identity", ""}:
        pieces = _inflate(uri, pieces)
    body = bytearray()
    for piece in pieces:
        body += piece
        if len(body) > max_bytes:
            raise guards.too_large(uri, len(body), max_bytes)
        if time.monotonic() > deadline:
            raise httpx.ReadTimeout("the body did not end in time")
    return bytes(body)


def _inflate(uri: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        for piece in pieces:
            left = piece
            while left:
                if inflater.eof:  # gzip allows several members, one after the other
                    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
                yield inflater.decompress(left, _INFLATE_STEP)
                left = inflater.unconsumed_tail or inflater.unused_data
        yield inflater.flush()
    except zlib.error as error:
        raise ExtractionFailed(f"{uri} cannot be decompressed: {error}") from error
    if not inflater.eof:
        raise httpx.RemoteProtocolError("the compressed body broke off")
