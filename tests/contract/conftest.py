"""The vector stores that the contract suites run against."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from vector_points import DIMENSIONS

from pipeline.settings import QdrantSettings
from pipeline.testing import MemoryVectorStore
from pipeline.vectors.base import VectorStore
from pipeline.vectors.qdrant import QdrantStore

BULK = 10


@pytest.fixture(scope="module", params=["memory", "server"])
def store(request: pytest.FixtureRequest) -> Iterator[VectorStore]:
    """The in-memory store, and the vector server (a real Qdrant where MILLRACE_TEST_QDRANT_URL names one)."""
    if request.param == "memory":
        yield MemoryVectorStore()
        return
    url = request.getfixturevalue("qdrant_url")
    opened = QdrantStore(QdrantSettings.model_validate({"url": url, "upsert_points": BULK, "upserts_in_flight": 3}))
    yield opened
    opened.close()


@pytest.fixture
def collection(store: VectorStore) -> Iterator[str]:
    """A collection of four dimensions, empty."""
    name = f"contract-{uuid.uuid4().hex}"
    store.ensure_collection(name, DIMENSIONS)
    yield name
    store.drop_collection(name)
