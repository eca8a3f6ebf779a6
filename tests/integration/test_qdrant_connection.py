"""The connection to Qdrant on a server that is killed, paused, restarted, or asks for another key."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from command_line import eventually
from qdrant_client import grpc as wire

from pipeline.errors import VectorsRejected, VectorsUnavailable
from pipeline.settings import QdrantSettings
from pipeline.vectors.base import Point
from pipeline.vectors.qdrant import QdrantStore
from pipeline.vectors.sparse import SparseVector
from workers.embedded.part import Running, run_alone
from workers.embedded.ports import free_port
from workers.embedded.vectors import EmbeddedVectors

CHILD_SECONDS = 60


def opened(url: str, **settings: Any) -> QdrantStore:
    return QdrantStore(QdrantSettings.model_validate({"url": url, **settings}))


def points(count: int, first: int = 0) -> list[Point]:
    dense = np.array([1.0, 0.0], dtype=np.float32)
    return [Point(UUID(int=first + n), dense, SparseVector([], []), {"document": n}) for n in range(count)]


@pytest.fixture
def collection(qdrant_url: str) -> Iterator[str]:
    name = f"connection-{uuid.uuid4().hex}"
    store = opened(qdrant_url)
    store.ensure_collection(name, 2)
    yield name
    store.drop_collection(name)
    store.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[EmbeddedVectors, Running]]:
    """A server that the test may do anything to."""
    server = EmbeddedVectors(tmp_path / "qdrant", free_port(), secrets.token_urlsafe(8))
    with run_alone(server.part(), tmp_path / "qdrant.log") as running:
        yield server, running


def test_a_server_that_was_away_is_found_again_within_seconds(
    own_server: tuple[EmbeddedVectors, Running], tmp_path: Path
) -> None:
    # Given a store with an open channel, and its server killed
    server, running = own_server
    store = opened(server.url)
    store.ensure_collection("docs", 2)
    store.upsert("docs", points(5))
    running.kill()
    with pytest.raises(VectorsUnavailable, match="UNAVAILABLE"):
        store.upsert("docs", points(5))
    assert store.alive() is False
    # When it starts again on the same port
    with run_alone(server.part(), tmp_path / "again.log"):
        deadline = time.monotonic() + CHILD_SECONDS
        while not store.alive():
            assert time.monotonic() < deadline, "the channel was not opened again"
            time.sleep(0.05)
        # Then the same store finds what was acknowledged
        assert store.count("docs") == 5
    store.close()


def test_a_server_that_hangs_costs_no_more_than_the_timeout(own_server: tuple[EmbeddedVectors, Running]) -> None:
    server, running = own_server
    patient = opened(server.url)
    patient.ensure_collection("docs", 2)
    patient.close()
    store = opened(server.url, timeout=0.5, upsert_points=2, upserts_in_flight=2)
    os.kill(running.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(VectorsUnavailable, match="DEADLINE_EXCEEDED"):
            store.upsert("docs", points(10))
        assert store.alive() is False
        assert time.monotonic() - started < 30
    finally:
        os.kill(running.pid, signal.SIGCONT)
    store.close()


def test_a_write_that_the_server_gave_up_waiting_for_is_not_taken_for_applied(
    qdrant_url: str, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The embedded server applies before it answers, so the status of a busy real one is put in place of its answer.
    store = opened(qdrant_url)
    waiting = wire.PointsOperationResponse(result=wire.UpdateResult(status=wire.UpdateStatus.WaitTimeout))
    monkeypatch.setattr(store, "_call", lambda *_, **__: waiting)
    with pytest.raises(VectorsUnavailable, match="WaitTimeout"):
        store.upsert(collection, points(1))
    with pytest.raises(VectorsUnavailable, match="WaitTimeout"):
        store.delete(collection, [UUID(int=1)])
    store.close()


def test_a_collection_dropped_under_a_writer_is_named(qdrant_url: str, collection: str) -> None:
    store = opened(qdrant_url, upsert_points=2)
    store.upsert(collection, points(1))
    store.drop_collection(collection)
    with pytest.raises(VectorsRejected, match=collection) as error:
        store.upsert(collection, points(9))
    assert "doesn't exist" in str(error.value)
    store.close()


def test_a_wrong_key_waits_to_be_put_right_and_is_never_shown(own_server: tuple[EmbeddedVectors, Running]) -> None:
    server, _ = own_server
    store = opened(replace(server, key="not-the-key").url)
    with pytest.raises(VectorsUnavailable, match="MILLRACE_QDRANT__API_KEY") as error:
        store.count("docs")
    assert "not-the-key" not in str(error.value) + repr(error.value) + repr(store)
    assert store.alive() is False
    store.close()


def test_the_key_of_the_settings_serves_where_the_url_has_none(own_server: tuple[EmbeddedVectors, Running]) -> None:
    server, _ = own_server
    store = opened("http://127.0.0.1:6333", grpc_port=server.port, api_key=server.key)
    eventually(store.alive)
    store.close()


def test_opening_on_loopback_warns_of_nothing_and_leaves_the_filters_alone(qdrant_url: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        store = opened(qdrant_url)
        eventually(store.alive)
        assert warnings.filters == filters
    assert [str(warning.message) for warning in caught] == []
    store.close()


def test_nothing_is_opened_before_the_first_call_and_no_address_is_an_outage() -> None:
    store = opened("")
    assert "no address" in repr(store)
    assert store.alive() is False
    with pytest.raises(VectorsUnavailable, match="MILLRACE_QDRANT__URL"):
        store.count("docs")


def test_a_forked_child_opens_its_own_channel_and_the_parent_keeps_its(qdrant_url: str, collection: str) -> None:
    # Given a store that is open in this process
    store = opened(qdrant_url)
    store.upsert(collection, points(1))
    # When a child is forked and writes through it
    child = os.fork()
    if child == 0:
        status = 1
        try:
            store.upsert(collection, points(1, first=10))
            status = 0 if store.count(collection) == 2 else 2
            store.close()
        finally:
            os._exit(status)
    deadline = time.monotonic() + CHILD_SECONDS
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hung on an inherited channel")
        time.sleep(0.02)
    # Then both have written
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert store.count(collection) == 2
    store.close()


def test_several_upserts_are_under_way_at_once_and_no_more_than_set(
    qdrant_url: str, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(qdrant_url, upsert_points=1, upserts_in_flight=3, channels=2)
    real, lock, together = store._call, threading.Lock(), threading.Barrier(3)
    under_way, most = 0, 0

    def counted(*given: Any, **options: Any) -> Any:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait(timeout=60)  # breaks unless three are here at once
        try:
            return real(*given, **options)
        finally:
            with lock:
                under_way -= 1

    monkeypatch.setattr(store, "_call", counted)
    store.upsert(collection, points(9))
    monkeypatch.undo()
    assert most == 3
    assert store.count(collection) == 9
    store.close()


def test_a_call_on_a_channel_that_another_thread_closed_is_an_outage(qdrant_url: str, collection: str) -> None:
    store = opened(qdrant_url)

    def close_first(client: Any) -> Any:
        method = client.grpc_points.Count
        client.close()
        return method

    with pytest.raises(VectorsUnavailable):
        store._connection.call(collection, close_first, wire.CountPoints(collection_name=collection))
    store.close()
    assert store.count(collection) == 0


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("grpc://:key@10.0.0.1:7000", "10.0.0.1:7000"),
        ("grpc://qdrant", "qdrant:6334"),
        ("http://qdrant:6333", "qdrant:6334"),
        ("https://cloud.example:6333", "cloud.example:6334"),
        ("grpcs://[::1]:7000", "[::1]:7000"),
    ],
)
def test_the_address_is_read_from_the_url_without_the_key(url: str, address: str) -> None:
    assert repr(opened(url)) == f"QdrantStore({address})"
