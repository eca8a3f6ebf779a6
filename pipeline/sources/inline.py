"""Documents that an application hands over itself, checked before anything is staged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.document import Document, canonical
from pipeline.errors import InvalidRequest, MillraceError
from pipeline.settings import SourceSettings
from pipeline.sources.base import Item, Rejected, Unchanged
from pipeline.sources.names import MAX_URI_BYTES

MAX_METADATA_BYTES = 64 * 1024
MAX_METADATA_DEPTH = 16

Inline = Document | tuple[str, str | bytes] | Mapping[str, Any]

_FIELDS = {"uri", "content", "text", "media_type", "metadata"}


class InlineSource:
    """Documents given by the caller: `Document`, `(uri, content)`, or a mapping with those names.

    One that is not valid is rejected under its uri, or under its position (`inline:3`) where it has none.
    """

    scope = None

    def __init__(self, documents: Iterable[Inline | Rejected | Unchanged], settings: SourceSettings) -> None:
        self._documents = documents
        self._settings = settings
        self._ended = False

    @property
    def complete(self) -> bool:
        return self._ended

    @property
    def unreadable(self) -> tuple[str, ...]:
        return ()

    def __iter__(self) -> Iterator[Item]:
        self._ended = False
        for position, item in enumerate(self._documents):
            if isinstance(item, Rejected | Unchanged):
                yield item if isinstance(item, Rejected) else self._checked(item)
                continue
            try:
                document = to_document(item)
                check_document(document, self._settings.max_bytes)
                yield document
            except MillraceError as error:
                yield Rejected(_uri_of(item) or f"inline:{position}", str(error))
        self._ended = True

    def _checked(self, item: Unchanged) -> Unchanged:
        """The same, with a document that is checked where it is read after all."""
        read, max_bytes = item.read, self._settings.max_bytes
        if read is None:
            return item

        def read_checked() -> Document | Rejected:
            found = read()
            if isinstance(found, Document):
                check_document(found, max_bytes)
            return found

        return Unchanged(item.uri, read_checked)


def to_document(item: object) -> Document:
    """A Document of what a caller gave; raises InvalidRequest saying what it should have been."""
    if isinstance(item, Document):
        return item
    if isinstance(item, tuple) and len(item) == 2:
        return Document(item[0], item[1])
    if isinstance(item, Mapping):
        unknown = set(item) - _FIELDS
        content = item.get("content", item.get("text"))
        if unknown or "uri" not in item or content is None:
            wrong = f"unknown: {', '.join(sorted(map(repr, unknown)))}" if unknown else "uri or content is missing"
            raise InvalidRequest(
                f"document {_uri_of(item) or '?'}: a mapping has uri, content (or text), and may have "
                f"media_type and metadata; {wrong}"
            )
        return Document(item["uri"], content, item.get("media_type"), item.get("metadata") or {})
    raise InvalidRequest(f"a document is a Document, (uri, content) or a mapping, not {type(item).__name__}")


def check_document(document: Document, max_bytes: int) -> None:
    """Raises InvalidRequest naming the document and what is wrong with it; DocumentTooLarge over `max_bytes`."""
    check_uri(document.uri)
    if not isinstance(document.content, str | bytes):
        raise InvalidRequest(
            f"document {document.uri}: content must be str or bytes, not {type(document.content).__name__}"
        )
    size = len(document.data)
    if size > max_bytes:
        from pipeline.sources.guards import too_large

        raise too_large(document.uri, size, max_bytes)
    kind = document.media_type
    if kind is not None and (not isinstance(kind, str) or "/" not in kind or "\0" in kind):
        raise InvalidRequest(f"document {document.uri}: media_type must look like text/markdown, not {kind!r}")
    check_metadata(document.metadata, f"document {document.uri}")
    _check_validators(document)


def _check_validators(document: Document) -> None:
    validators = document.validators
    if not isinstance(validators, Mapping) or not all(
        isinstance(text, str) for pair in validators.items() for text in pair
    ):
        raise InvalidRequest(f"document {document.uri}: validators must be a mapping of text to text")
    if validators:
        check_metadata(validators, f"document {document.uri}, validators")


def check_uri(uri: object) -> None:
    """Raises InvalidRequest for a uri that the ledger cannot hold."""
    if not isinstance(uri, str):
        raise InvalidRequest(f"the uri of a document must be str, not {type(uri).__name__} ({uri!r:.80})")
    if not uri.strip():
        raise InvalidRequest("the uri of a document is empty; give each document a name of its own")
    if "\0" in uri or any("\ud800" <= char <= "\udfff" for char in uri):
        raise InvalidRequest(f"the uri {uri!r:.200} holds a NUL character or half a surrogate pair")
    if len(uri.encode()) > MAX_URI_BYTES:
        raise InvalidRequest(f"the uri {uri[:80]!r}... has more than {MAX_URI_BYTES} bytes")


def check_metadata(metadata: object, owner: str) -> None:
    """Raises InvalidRequest, naming the key, for metadata that is not JSON, or too much; `owner` is named too."""
    if not isinstance(metadata, Mapping):
        raise InvalidRequest(f"{owner}: metadata must be a mapping, not {type(metadata).__name__}")
    for key, value in metadata.items():
        _check_key(key, owner, "")
        _check_value(value, owner, str(key), 1)
    size = len(canonical(dict(metadata)))
    if size > MAX_METADATA_BYTES:
        raise InvalidRequest(f"{owner}: metadata has {size:,} bytes of JSON; the limit is {MAX_METADATA_BYTES:,}")


def _check_key(key: object, owner: str, path: str) -> None:
    if not isinstance(key, str):
        raise InvalidRequest(f"{owner}: metadata {path or 'key'} {key!r:.80} is {type(key).__name__}; a key is text")
    _check_text(key, owner, f"key {key!r:.80}")


def _check_text(text: str, owner: str, path: str) -> None:
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidRequest(f"{owner}: metadata {path} holds a NUL character or half a surrogate pair")


def _check_value(value: object, owner: str, path: str, depth: int) -> None:
    if depth > MAX_METADATA_DEPTH:
        raise InvalidRequest(f"{owner}: metadata {path} is nested more than {MAX_METADATA_DEPTH} deep")
    if isinstance(value, str):
        _check_text(value, owner, repr(path))
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRequest(f"{owner}: metadata {path!r} is {value}; JSON has no such number")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_key(key, owner, path)
            _check_value(inner, owner, f"{path}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for position, inner in enumerate(value):
            _check_value(inner, owner, f"{path}[{position}]", depth + 1)
    elif value is not None and not isinstance(value, bool | int):
        hint = "; give it as text, with .isoformat()" if hasattr(value, "isoformat") else ""
        raise InvalidRequest(f"{owner}: metadata {path!r} is {type(value).__name__}, which is not JSON{hint}")


def _uri_of(item: object) -> str | None:
    uri: object = None
    if isinstance(item, Document):
        uri = item.uri
    elif isinstance(item, tuple) and item:
        uri = item[0]
    elif isinstance(item, Mapping):
        uri = item.get("uri")
    try:
        check_uri(uri)
    except InvalidRequest:
        return None
    return str(uri)
