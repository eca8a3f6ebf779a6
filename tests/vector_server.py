"""The embedded vector server as a process that tests start, kill and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from qdrant_client import QdrantClient, models

KEY = "a key of the tests"
DIMENSIONS = 16
DEADLINE = 60.0


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Wait until `condition()` is true and return what it gave."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"after {seconds:g} s still not: {what}")


class VectorServer:
    """One data directory and the process that serves it."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.data = directory / "data"
        self.log = directory / "log"
        self.port = 0
        self.options = options
        self._port_file = directory / "port"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process, on the port that it had before, and do not wait for it."""
        argv = [sys.executable, "-m", "workers.embedded.vector_server", "--data", str(self.data)]
        argv += ["--listen", f"127.0.0.1:{self.port}", "--port-file", str(self._port_file), *self.options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stderr=log, env={**os.environ, "MILLRACE_VECTOR_SERVER_KEY": KEY})
        return self._process

    def start(self) -> VectorServer:
        self._port_file.unlink(missing_ok=True)
        process = self.spawn()

        def answers() -> bool:
            assert process.poll() is None, self.log.read_text()
            return self._port_file.exists()

        until(answers, "the server answers")
        self.port = int(self._port_file.read_text())
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    @contextmanager
    def client(self, key: str | None = KEY) -> Iterator[QdrantClient]:
        client = connect(self.port, key)
        yield client
        client.close()

    def directories(self, collection: str) -> list[str]:
        """What lies in a collection's directory: shards and deltas."""
        return sorted(path.name for path in (self.data / "collections" / collection).iterdir())

    def is_optimizing(self, collection: str) -> bool:
        return any(name.startswith("delta-") for name in self.directories(collection))


def connect(port: int, key: str | None = KEY) -> QdrantClient:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(
            host="127.0.0.1", grpc_port=port, prefer_grpc=True, check_compatibility=False, api_key=key, https=False
        )


@contextmanager
def running(directory: Path, *options: str) -> Iterator[VectorServer]:
    server = VectorServer(directory, *options).start()
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


def make_collection(client: QdrantClient, name: str, **options: Any) -> None:
    """Dense and sparse vectors; an index is built from the first kilobyte on, so that optimising has work to do."""
    client.create_collection(
        name,
        vectors_config={"dense": models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)},
        sparse_vectors_config={"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=1),
        **options,
    )


def dense_of(point: int) -> list[float]:
    """The vector of a point: the same one every time."""
    return np.random.default_rng(point).standard_normal(DIMENSIONS, dtype=np.float32).tolist()


def points(ids: Sequence[int]) -> list[models.PointStruct]:
    return [
        models.PointStruct(
            id=point,
            vector={"dense": dense_of(point), "bm25": models.SparseVector(indices=[7, 100 + point], values=[1.0, 2.0])},
            payload={"number": point, "kind": f"kind {point % 3}", "metadata": {"lang": "en", "even": point % 2 == 0}},
        )
        for point in ids
    ]


def where(key: str, value: str | int | bool) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=key, match=models.MatchValue(value=value))])


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The status and the message with which a call is refused."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("it was not refused")


def stored_ids(client: QdrantClient, collection: str) -> set[int]:
    found: set[int] = set()
    offset: Any = None
    while True:
        page, offset = client.scroll(collection, limit=1000, offset=offset, with_payload=False)
        found |= {int(record.id) for record in page}
        if offset is None:
            return found
