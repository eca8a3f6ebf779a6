"""The servers that tests run against: the embedded ones, started once for a session, or real ones named by
MILLRACE_TEST_POSTGRES_URL (a superuser's), MILLRACE_TEST_REDIS_URL and MILLRACE_TEST_QDRANT_URL."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pytest
import redis
from databases import Databases, PostgresServer, database
from openai_server import OpenAIServer, running

from pipeline.errors import PartFailed
from pipeline.settings import Settings, load_settings
from workers.embedded.part import run_alone, tail
from workers.embedded.ports import free_port, is_free
from workers.embedded.postgres import MAINTENANCE_DATABASE, EmbeddedPostgres
from workers.embedded.redis import EmbeddedRedis
from workers.embedded.vectors import EmbeddedVectors

START_ATTEMPTS = 3

Server = TypeVar("Server", EmbeddedPostgres, EmbeddedRedis, EmbeddedVectors)


@dataclass(frozen=True)
class RedisServer:
    url: str

    def flush(self) -> None:
        """Empties the database of the URL."""
        with redis.Redis.from_url(self.url) as client:
            client.flushdb()


@dataclass(frozen=True)
class Services:
    """Starts what a session asks for, and stops it at the end."""

    directory: Path
    _running: ExitStack = field(default_factory=ExitStack)

    def postgres(self) -> PostgresServer:
        if url := os.environ.get("MILLRACE_TEST_POSTGRES_URL"):
            return PostgresServer(url)
        identity = f"millrace-test-{secrets.token_hex(4)}"
        server = EmbeddedPostgres(
            self.directory / "postgres", free_port(), secrets.token_urlsafe(16), identity, durable=False
        )
        init = server.init_part()
        assert init is not None
        with run_alone(init, self.directory / "initdb.log"):
            pass
        return PostgresServer(self._start(server).database_url(MAINTENANCE_DATABASE))

    def redis(self) -> RedisServer:
        if url := os.environ.get("MILLRACE_TEST_REDIS_URL"):
            return RedisServer(url)
        server = EmbeddedRedis(self.directory / "redis", free_port(), secrets.token_urlsafe(16), durable=False)
        return RedisServer(self._start(server).url)

    def qdrant(self) -> str:
        if url := os.environ.get("MILLRACE_TEST_QDRANT_URL"):
            return url
        server = EmbeddedVectors(self.directory / "qdrant", free_port(), secrets.token_urlsafe(16))
        return self._start(server).url

    def stop(self) -> None:
        self._running.close()

    def _start(self, server: Server) -> Server:
        """Starts a server, on another port where somebody else was quicker to take the first."""
        for _ in range(START_ATTEMPTS):
            part = server.part()
            log: Path = self.directory / f"{part.name}.log"
            try:
                self._running.enter_context(run_alone(part, log))
            except PartFailed as error:
                if is_free(server.port):
                    raise AssertionError("\n".join([str(error), *tail(log)])) from error
                server = replace(server, port=free_port())
            else:
                return server
        raise AssertionError(f"no port for {server.part().name} in {START_ATTEMPTS} attempts")


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    started = Services(tmp_path_factory.mktemp("services"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def postgres_server(services: Services) -> Iterator[PostgresServer]:
    server = services.postgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def databases(postgres_server: PostgresServer) -> Iterator[Databases]:
    """Migrated, empty databases."""
    from pipeline.ledger.migrate import upgrade

    url = postgres_server.create()
    upgrade(url)
    postgres_server.disconnect(url)  # a database that somebody is connected to cannot be copied
    made = Databases(postgres_server, database(url))
    yield made
    made.close()
    postgres_server.drop(url)


@pytest.fixture
def postgres_url(databases: Databases) -> Iterator[str]:
    """A migrated, empty database of this test's own."""
    url = databases.take()
    yield url
    databases.give_back(url)


@pytest.fixture(scope="module")
def module_postgres_url(databases: Databases) -> Iterator[str]:
    """A migrated, empty database that the tests of a module share."""
    url = databases.take()
    yield url
    databases.give_back(url)


@pytest.fixture(scope="session")
def redis_server(services: Services) -> RedisServer:
    return services.redis()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty Redis database."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture(scope="session")
def qdrant_url(services: Services) -> str:
    """grpc://:KEY@host:port of a vector server that all tests share: name collections apart."""
    return services.qdrant()


@pytest.fixture(scope="session")
def openai_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIServer]:
    """The stand-in for OpenAI's servers, started when the first test asks for it."""
    directory = tmp_path_factory.mktemp("openai")
    served = {"minilm": "sentence-transformers/all-MiniLM-L6-v2", "constant": "constant"}
    with running(directory / "data", served=served, models=directory / "models") as server:
        yield server


@pytest.fixture
def openai_server(openai_process: OpenAIServer) -> OpenAIServer:
    """A stand-in for OpenAI's servers that remembers nothing of earlier tests; `minilm` and `constant` are models of it
    that give what the local ones give. It may be killed."""
    if openai_process.process.poll() is not None:
        openai_process.restart()
    openai_process.control.reset()
    return openai_process


@pytest.fixture
def settings(postgres_url: str, redis_url: str, qdrant_url: str, tmp_path: Path) -> Settings:
    """Settings of a whole Millrace on the three servers, with a home of its own."""
    return load_settings(
        home=tmp_path / "home",
        # A process that has run a thousand tests is large, and is no enqueuer that should restrain itself.
        memory={"ingest_mb": 100_000},
        # What a test looks for among the records of this process is not handed over meanwhile.
        metrics={"report_seconds": 3600.0},
        postgres={"url": postgres_url},
        redis={"url": redis_url},
        qdrant={"url": qdrant_url},
    )


def addresses_of(settings: Settings) -> dict[str, str]:
    """Where the servers are and the home is, as the environment of a process says it."""
    urls = {name: getattr(settings, name).url.get_secret_value() for name in ("postgres", "redis", "qdrant")}
    return {"MILLRACE_HOME": str(settings.home), **{f"MILLRACE_{name.upper()}__URL": url for name, url in urls.items()}}


def enter(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads the settings of this process finds these servers and this home."""
    for name, value in addresses_of(settings).items():
        monkeypatch.setenv(name, value)
