"""What the index holds of a chunk: the one place where points are made, for whoever writes them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.embedding.base import ModelSpec
from pipeline.ledger import collections, losses
from pipeline.ledger.collections import Collection
from pipeline.ledger.embeddings import Vector
from pipeline.tools import Tools
from pipeline.vectors.base import METADATA, Point
from pipeline.vectors.filters import field_path
from pipeline.vectors.sparse import SparseVector


class IndexedChunk(Protocol):
    """A chunk with what its point says of it; title and metadata are those of the version that it was born in."""

    @property
    def point_id(self) -> uuid.UUID: ...
    @property
    def document_id(self) -> int: ...
    @property
    def version_id(self) -> int: ...
    @property
    def ordinal(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def embedding_key(self) -> bytes: ...
    @property
    def uri(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


def ensure_index(tools: Tools, collection: Collection) -> None:
    """The Qdrant collection with its vectors and payload indexes, made where it is missing. Raises CollectionMismatch.

    Where points are lost with a missing one, the ledger knows it before an empty one takes its place.
    """
    first = False

    def on_missing() -> None:
        nonlocal first
        with tools.ledger.transaction() as connection:
            first = losses.note(connection, collection.id, collection.physical)

    dimensions = ModelSpec.from_json(collection.model).dimensions
    made = tools.vectors.ensure_collection(collection.physical, dimensions, on_missing)
    if first and not made:
        # Somebody else made it, who found nothing to be lost: what is there now came after that.
        with tools.ledger.transaction() as connection:
            losses.forget(connection, collection.id)
    tools.vectors.ensure_fields(
        collection.physical, {field_path(METADATA, key): kind for key, kind in collection.fields.items()}
    )


def points_of(
    tools: Tools, collection: Collection, chunks: Sequence[IndexedChunk], vectors: Mapping[bytes, Vector]
) -> list[Point]:
    """The points of chunks, in their order. vectors: embedding key -> float32[dimensions], for each of them."""
    terms = terms_of(tools, collection, chunks)
    return [
        Point(chunk.point_id, vectors[chunk.embedding_key], sparse, payload_of(collection, chunk))
        for chunk, sparse in zip(chunks, terms, strict=True)
    ]


def terms_of(tools: Tools, collection: Collection, chunks: Sequence[IndexedChunk]) -> list[SparseVector]:
    """The words of chunks, as the collection's BM25 weighs them."""
    return tools.sparse(collection.sparse).documents([chunk.text for chunk in chunks])


def payload_of(collection: Collection, chunk: IndexedChunk) -> dict[str, Any]:
    """What a point says beside its vectors."""
    return {
        "tenant": chunk.tenant,
        "uri": chunk.uri,
        "document": chunk.document_id,
        "version": chunk.version_id,
        "ordinal": chunk.ordinal,
        "title": chunk.title,
        "text": chunk.text,
        METADATA: collections.filterable(chunk.metadata, collection.fields),
    }
