"""The vector server and its optimising child under kill -9, and the end of the processes around it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from qdrant_client import QdrantClient, models
from vector_server import KEY, VectorServer, dense_of, make_collection, points, running, stored_ids, until

NAME = "crashes"
# Between two batches of a writer, so that on two cores the optimising child is not kept waiting.
PAUSE = 0.02


class Writer(threading.Thread):
    """Upserts batches until the server is gone; `acknowledged` holds what it said it had."""

    def __init__(self, client: QdrantClient, first: int = 0) -> None:
        super().__init__()
        self.acknowledged: set[int] = set()
        self._client = client
        self._next = first

    def run(self) -> None:
        while True:
            batch = range(self._next, self._next + 30)
            try:
                self._client.upsert(NAME, points(batch), wait=True)
            except grpc.RpcError:
                return
            self.acknowledged |= set(batch)
            self._next += 30
            time.sleep(PAUSE)


def optimising_children(server: VectorServer) -> list[psutil.Process]:
    found = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in found if any("optimize_copy" in word for word in child.cmdline())]


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def shards(server: VectorServer) -> list[str]:
    return [name for name in server.directories(NAME) if name.startswith("shard-")]


def test_a_killed_server_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        with server.client() as client:
            make_collection(client, NAME)
            client.create_payload_index(NAME, "kind", models.PayloadSchemaType.KEYWORD, wait=True)
            alias = models.CreateAlias(collection_name=NAME, alias_name="live")
            client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
            writer = Writer(client)
            writer.start()
            until(lambda: len(writer.acknowledged) >= 600, "600 points are acknowledged")
            server.kill()
            writer.join()
        before = server.port

        server.start()

        assert server.port == before
        with server.client() as client:
            assert writer.acknowledged <= stored_ids(client, NAME)
            hit = client.query_points(NAME, query=dense_of(599), using="dense", limit=1).points[0]
            assert (hit.id, hit.payload and hit.payload["number"]) == (599, 599)
            assert set(client.get_collection("live").payload_schema) == {"kind"}


@pytest.mark.parametrize("moment", ["at its start", "in its middle", "at its end"])
def test_a_kill_in_an_optimisation_loses_nothing(tmp_path: Path, moment: str) -> None:
    with running(tmp_path, "--optimize-at", "400") as server:
        with server.client() as client:
            make_collection(client, NAME)
            client.upsert(NAME, points(range(400)), wait=True)
            until(lambda: server.is_optimizing(NAME), "the optimisation begins")
            (first, second) = (Path(name) for name in shards(server))
            writer = Writer(client, first=1000)
            writer.start()
            if moment == "in its middle":
                until(lambda: optimising_children(server), "the child runs")
                until(lambda: len(writer.acknowledged) >= 60, "writes go on")
            elif moment == "at its end":
                until(lambda: not ({first.name, second.name} <= set(shards(server))), "the swap")
            children = optimising_children(server)
            server.kill()
            writer.join()
        for child in children:
            until(lambda child=child: gone(child), "the child is gone with its server")

        server.options = ()
        server.start()

        assert len(shards(server)) == 1
        assert not server.is_optimizing(NAME)
        with server.client() as client:
            assert set(range(400)) | writer.acknowledged <= stored_ids(client, NAME)


def test_a_killed_child_costs_only_the_optimisation(tmp_path: Path) -> None:
    with running(tmp_path, "--optimize-at", "400") as server, server.client() as client:
        make_collection(client, NAME)
        client.upsert(NAME, points(range(400)), wait=True)
        (child,) = until(lambda: optimising_children(server), "the child runs")

        child.kill()

        until(lambda: not server.is_optimizing(NAME), "the optimisation is given up")
        client.upsert(NAME, points(range(400, 500)), wait=True)
        assert stored_ids(client, NAME) == set(range(500))
        info = until(lambda: _with_error(client), "the collection says so")
        assert "ended with -9" in str(info.optimizer_status)
        assert len(shards(server)) == 1


def _with_error(client: QdrantClient) -> Any:
    info = client.get_collection(NAME)
    return info if "error" in str(info.optimizer_status) else None


def test_a_stopped_server_ends_within_seconds_and_keeps_everything(tmp_path: Path) -> None:
    with running(tmp_path, "--optimize-at", "400") as server:
        with server.client() as client:
            make_collection(client, NAME)
            client.upsert(NAME, points(range(400)), wait=True)
            (child,) = until(lambda: optimising_children(server), "the child runs")

            started = time.monotonic()
            assert server.stop() == 0

            assert time.monotonic() - started < 30
            assert gone(child)
        server.start()
        with server.client() as client:
            assert stored_ids(client, NAME) == set(range(400))


def test_a_second_server_leaves_a_directory_that_is_served_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as server:
        at_work = server.data / "scratch" / "at work"
        at_work.mkdir()
        monkeypatch.setenv("MILLRACE_VECTOR_SERVER_KEY", KEY)
        script = "import sys, runpy, workers.embedded.vector_server.store as store; store.LOCK_PATIENCE = 0.2; " + (
            "runpy.run_module('workers.embedded.vector_server', run_name='__main__')"
        )

        second = subprocess.run(
            [sys.executable, "-c", script, "--data", str(server.data)], capture_output=True, text=True, check=False
        )

        assert second.returncode == 1
        assert f"another vector server (pid {server.process.pid}) serves {server.data}" in second.stderr
        assert at_work.exists()


def test_a_server_without_a_key_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILLRACE_VECTOR_SERVER_KEY", raising=False)
    argv = [sys.executable, "-m", "workers.embedded.vector_server", "--data", str(tmp_path)]
    ended = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "set MILLRACE_VECTOR_SERVER_KEY" in ended.stderr


def test_a_port_that_is_taken_is_an_error_and_not_shared(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        (tmp_path / "other").mkdir()
        other = VectorServer(tmp_path / "other")
        other.port = server.port
        assert other.spawn().wait(60) == 1
        assert f"cannot listen on 127.0.0.1:{server.port}" in other.log.read_text()


PARENT = """
    import subprocess, sys, threading, time
    started = []
    def start():
        started.append(subprocess.Popen(sys.argv[1:]))
        print(started[0].pid, flush=True)
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()  # the thread that started the server ends: that is no reason for the server to end
    time.sleep(600)
"""


def test_the_server_ends_with_its_parent_but_not_with_a_thread_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_VECTOR_SERVER_KEY", KEY)
    server, port = (
        [sys.executable, "-m", "workers.embedded.vector_server", "--data", str(tmp_path / "data")],
        tmp_path / "port",
    )
    argv = [sys.executable, "-c", textwrap.dedent(PARENT), *server, "--port-file", str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        until(port.exists, "the server answers")
        assert not gone(child)

        parent.kill()

        until(lambda: gone(child), "the server is gone with its parent")


def test_the_server_ends_with_a_process_that_is_not_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as other, running(tmp_path, "--parent", str(other.pid)) as server:
        other.kill()
        assert server.process.wait(60) == 0


def test_a_shard_that_cannot_be_loaded_does_not_stop_the_others(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        with server.client() as client:
            for name in (NAME, "other"):
                make_collection(client, name)
                client.upsert(name, points(range(10)), wait=True)
        server.stop()
        (shard,) = (server.data / "collections" / NAME).glob("shard-*")
        (shard / "edge_config.json").write_text("{")

        server.start()

        with server.client() as client:
            assert stored_ids(client, "other") == set(range(10))
            with pytest.raises(grpc.RpcError) as raised:
                client.count(NAME)
            error: Any = raised.value
            assert error.code() is grpc.StatusCode.INTERNAL
            assert f"Collection `{NAME}` is not served" in error.details()
            assert shard.exists()
            assert f"collection {NAME} is not served any more" in server.log.read_text()
            assert client.delete_collection(NAME) is True
            make_collection(client, NAME)
            assert client.count(NAME).count == 0


def test_an_interrupt_stops_it_as_well(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
