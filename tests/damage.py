"""Damage done to an index behind Millrace's back, with nothing but plain qdrant-client."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from qdrant_client import QdrantClient, models

PointId = int | str | uuid.UUID


class Damage:
    """One collection of a Qdrant server (grpc://:KEY@host:port) in the hands of somebody who should not have it."""

    def __init__(self, url: str, collection: str) -> None:
        parts = urlsplit(url)
        self.client = QdrantClient(
            host=parts.hostname or "",
            grpc_port=parts.port or 0,
            prefer_grpc=True,
            check_compatibility=False,
            headers={"api-key": unquote(parts.password or "")},
            https=False,
        )
        self.collection = collection

    def close(self) -> None:
        self.client.close()

    def points(self) -> dict[str, models.Record]:
        """Every point, whole, by id."""
        found: dict[str, models.Record] = {}
        offset: Any = None
        while True:
            page, offset = self.client.scroll(
                self.collection, limit=1000, offset=offset, with_payload=True, with_vectors=True
            )
            found |= {str(record.id): record for record in page}
            if offset is None:
                return found

    def delete(self, *ids: PointId) -> None:
        self.client.delete(self.collection, models.PointIdsList(points=list(ids)), wait=True)

    def put(self, record: models.Record, id: PointId, **payload: Any) -> None:
        """The same point again under this id, with some of its payload changed."""
        vector: Any = record.vector
        point = models.PointStruct(id=id, vector=vector, payload={**(record.payload or {}), **payload})
        self.client.upsert(self.collection, [point], wait=True)

    def put_vector(self, record: models.Record, dense: Sequence[float]) -> None:
        """Another dense vector under the same id."""
        assert isinstance(record.vector, dict)
        vector = {**record.vector, "dense": list(dense)}
        self.put(record.model_copy(update={"vector": vector}), record.id)

    def drop(self) -> None:
        self.client.delete_collection(self.collection)


def stranger() -> str:
    """An id that no chunk has."""
    return str(uuid.uuid4())
