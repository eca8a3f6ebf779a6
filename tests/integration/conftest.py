"""The object store that tests of sources read from, the broker's queues as they are in Redis, and texts on order with
the Batch API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import redis
from openai_buying import buyer

if TYPE_CHECKING:
    from object_store import ObjectStore
    from openai_server import OpenAIServer
    from remote_scene import RemoteScene
    from services import RedisServer

__all__ = ["buyer"]


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


@pytest.fixture(scope="module")
def module_scene(
    module_postgres_url: str, redis_server: RedisServer, openai_process: OpenAIServer
) -> Iterator[RemoteScene]:
    """One ledger for the tests of a module, which has nothing but orders in it."""
    from remote_scene import RemoteScene, batch_settings

    from pipeline.settings import load_settings

    settings = load_settings(postgres={"url": module_postgres_url}, redis={"url": redis_server.url})
    made = RemoteScene(batch_settings(settings, openai_process), openai_process)
    yield made
    made.close()


@pytest.fixture
def scene(module_scene: RemoteScene, openai_server: OpenAIServer) -> RemoteScene:
    """No orders, and a provider that remembers nothing."""
    module_scene.reset()
    return module_scene
