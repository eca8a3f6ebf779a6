"""The vector server while it optimises a collection in the background."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import pytest
from qdrant_client import QdrantClient, models
from vector_server import VectorServer, dense_of, make_collection, points, running, stored_ids, until, where


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorServer]:
    with running(tmp_path_factory.mktemp("vectors"), "--optimize-at", "300") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: VectorServer) -> Iterator[QdrantClient]:
    with server.client() as connected:
        yield connected


class Searcher(threading.Thread):
    """Searches without a pause; `failures` holds what went wrong, `answers` counts the rest."""

    def __init__(self, client: QdrantClient, name: str) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self.answers = 0
        self._client, self._name = client, name
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.005):
            try:
                hits = self._client.query_points(self._name, query=dense_of(300), using="dense", limit=5).points
                assert (len(hits), hits[0].id) == (5, 300)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                self.failures.append(error)
            self.answers += 1

    def stop(self) -> None:
        self._done.set()
        self.join()


def test_writes_and_searches_go_on_while_a_collection_is_optimised(server: VectorServer, client: QdrantClient) -> None:
    name = "optimised"
    make_collection(client, name)
    client.create_payload_index(name, "kind", models.PayloadSchemaType.KEYWORD, wait=True)
    first = server.directories(name)
    client.upsert(name, points(range(400)), wait=True)
    until(lambda: server.is_optimizing(name), "the optimisation begins")
    under_way = next(entry for entry in server.directories(name) if entry.startswith("delta-"))
    assert client.get_collection(name).status is models.CollectionStatus.YELLOW

    searcher = Searcher(client, name)
    searcher.start()

    # While the child works: inserts, deletes, updates, and searches that see all of it at once.
    added, kept, late = 400, set(range(400)), set()
    while under_way in server.directories(name):
        gone = added - 400 if added < 700 else added - 399  # 300 is searched for all the while
        client.upsert(name, points(range(added, added + 10)), wait=True)
        client.set_payload(name, {"kind": "late"}, points=[added], wait=True)
        client.delete(name, [gone, added + 1], wait=True)
        kept = (kept | set(range(added, added + 10))) - {gone, added + 1}
        late.add(added)
        assert client.query_points(name, query=dense_of(added), using="dense", limit=1).points[0].id == added
        assert client.count(name).count == len(kept)
        added += 10
        time.sleep(0.02)  # the child needs a core, too

    until(lambda: client.get_collection(name).status is models.CollectionStatus.GREEN, "green")
    searcher.stop()
    assert searcher.failures == []
    assert searcher.answers > 10
    info = client.get_collection(name)
    assert info.points_count == len(kept)
    assert info.payload_schema["kind"].data_type is models.PayloadSchemaType.KEYWORD
    assert stored_ids(client, name) == kept
    assert client.count(name, where("kind", "late")).count == len(late & kept) > 0
    assert not set(first) & set(server.directories(name)) - {"collection.pb", "state.json"}
    assert len([entry for entry in server.directories(name) if entry.startswith("shard-")]) == 1
    client.delete_collection(name)


def test_a_collection_is_deleted_in_the_middle_of_its_optimisation(server: VectorServer, client: QdrantClient) -> None:
    name = "doomed"
    make_collection(client, name)
    client.upsert(name, points(range(400)), wait=True)
    until(lambda: server.is_optimizing(name), "the optimisation begins")

    assert client.delete_collection(name) is True

    assert not client.collection_exists(name)
    until(lambda: not list((server.data / "scratch").iterdir()), "nothing is left of it")
    make_collection(client, name)
    client.upsert(name, points(range(5)), wait=True)
    assert stored_ids(client, name) == set(range(5))
    client.delete_collection(name)


def test_each_optimisation_waits_for_more_points_than_the_last(server: VectorServer, client: QdrantClient) -> None:
    name = "growing"
    make_collection(client, name)

    def optimised_at() -> list[int]:
        return [int(count) for count in re.findall(rf"optimised {name} at (\d+) points", server.log.read_text())]

    client.upsert(name, points(range(300)), wait=True)
    until(lambda: optimised_at() == [300], "the first optimisation")
    client.upsert(name, points(range(300, 899)), wait=True)
    assert client.get_collection(name).status is models.CollectionStatus.GREEN
    client.upsert(name, points([899]), wait=True)
    until(lambda: optimised_at() == [300, 900], "the second, after twice as many points")
    client.delete_collection(name)


def test_a_changed_configuration_reaches_the_engine_with_an_optimisation(
    server: VectorServer, client: QdrantClient
) -> None:
    name = "changed"
    make_collection(client, name)
    client.upsert(name, points(range(50)), wait=True)
    first = server.directories(name)

    client.update_collection(name, hnsw_config=models.HnswConfigDiff(m=8))

    until(lambda: client.get_collection(name).status is models.CollectionStatus.GREEN, "green")
    until(lambda: server.directories(name) != first, "another shard")
    assert client.get_collection(name).config.hnsw_config.m == 8
    configs = [path.read_text() for path in server.data.glob(f"collections/{name}/shard-*/edge_config.json")]
    assert any('"m":8' in text for text in configs)
    assert stored_ids(client, name) == set(range(50))
    client.delete_collection(name)
