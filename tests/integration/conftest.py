"""The object store that tests of sources read from, and the broker's queues as they are in Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import redis

if TYPE_CHECKING:
    from object_store import ObjectStore


@pytest.fixture(scope="module")
def object_store_server() -> Iterator[ObjectStore]:
    from object_store import ObjectStore  # moto takes seconds to import

    server = ObjectStore()
    yield server
    server.close()


@pytest.fixture
def store(object_store_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store without buckets, and an environment that leads to it."""
    from object_store import ENVIRONMENT

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store_server.url)
    yield object_store_server
    object_store_server.reset()


@pytest.fixture
def queues(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client
