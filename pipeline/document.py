"""The words that everything else is said in: a document that somebody wants found, and the chunks it is cut into."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Metadata = Mapping[str, Any]
Validators = Mapping[str, str]

_SURROGATES = re.compile("[\ud800-\udfff]")
_POINT_NAMESPACE = uuid.UUID("6d696c6c-7261-4365-8000-706f696e7473")


def canonical(value: object) -> bytes:
    """The one byte form of a JSON value that hashes are taken of (sorted keys, no spaces, UTF-8)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8", "surrogatepass"
    )


def digest(*parts: bytes | str) -> bytes:
    """sha256 of the parts, each preceded by its length, so that no two lists of parts share a digest."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.digest()


def encodable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 and no tokenizer takes, replaced by U+FFFD, one for one."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def meta_hash(metadata: Metadata) -> bytes:
    """sha256 over the canonical metadata of a document."""
    return digest(canonical(dict(metadata)))


@dataclass(frozen=True, slots=True)
class Document:
    """One document, as an application or a source hands it over.

    uri: its name, unique in a tenant of a collection; what is ingested again under the same uri replaces it.
    content: its bytes in `media_type`, or text.
    media_type: such as "text/markdown"; None means: told from the name and the content.
    metadata: JSON values that come back with results; scalars and lists of strings can be filtered on.
    validators: what its source tells this content from another by without reading it (an ETag, a time); in no hash.
    """

    uri: str
    content: bytes | str
    media_type: str | None = None
    metadata: Metadata = field(default_factory=dict)
    validators: Validators = field(default_factory=dict)

    @property
    def data(self) -> bytes:
        """The content as bytes (text as UTF-8)."""
        return self.content.encode("utf-8", "surrogatepass") if isinstance(self.content, str) else self.content

    def content_hash(self) -> bytes:
        """sha256 over media type and content: what says that the document itself changed."""
        kind = self.media_type or ("text/plain" if isinstance(self.content, str) else "")
        return digest(kind, self.data)

    def meta_hash(self) -> bytes:
        """sha256 over the canonical metadata."""
        return meta_hash(self.metadata)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document's text that fits the model. `tokens` counts as the model does, special tokens included.

    section: the path of headings that it begins under. start: where in the document's text its own text begins
    (what it shares with the chunk before comes earlier).
    """

    ordinal: int
    text: str
    tokens: int
    section: str = ""
    start: int = 0


def point_id(document_id: int, born_version: int, ordinal: int) -> uuid.UUID:
    """The id of a chunk's point in Qdrant: uuid5(document, born version, ordinal), never used again."""
    return uuid.uuid5(_POINT_NAMESPACE, f"{document_id}/{born_version}/{ordinal}")


def embedding_key(fingerprint: bytes, text: str) -> bytes:
    """sha256(spec fingerprint, text): the address of an embedding, for ever."""
    return digest(fingerprint, text)
