"""The server: the services around one store, a flush timer, the optimiser, and an orderly end."""

from __future__ import annotations

import threading
from concurrent import futures
from typing import Any

import grpc
from qdrant_client import grpc as api
from qdrant_client.grpc import (
    collections_service_pb2,
    points_service_pb2,
    qdrant_pb2,
    snapshots_service_pb2,
)

from pipeline.observe import logger
from workers.embedded.vector_server.collections_service import Collections
from workers.embedded.vector_server.optimizer import Optimizer
from workers.embedded.vector_server.points_service import Points
from workers.embedded.vector_server.rpc import Call, KeyCheck, service_handler
from workers.embedded.vector_server.store import Store

log = logger("vector_server.server")

# The release of Qdrant whose contract and wording this follows.
VERSION = "1.20.0"
FLUSH_SECONDS = 5.0
# Requests under way when the server is told to stop may take this long to end.
GRACE_SECONDS = 2.0
# The engine serves one call at a time; more threads than that read and answer requests meanwhile.
THREADS = 16
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a partner
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
]


def health(_: object) -> api.HealthCheckReply:
    return api.HealthCheckReply(title="qdrant - vector search engine (embedded)", version=VERSION)


class Server:
    """Serves a store until `stop`. Raises RuntimeError where the address cannot be had."""

    def __init__(self, store: Store, address: str, key: str) -> None:
        self._store = store
        self._stopping = threading.Event()
        self._optimizer = Optimizer(store)
        self._flusher = threading.Thread(target=self._flush, name="flush", daemon=True)
        threads = futures.ThreadPoolExecutor(THREADS, thread_name_prefix="rpc")
        self._grpc = grpc.server(threads, interceptors=[KeyCheck(key)], options=_OPTIONS)
        services: tuple[tuple[Any, str, dict[str, Call]], ...] = (
            (qdrant_pb2, "Qdrant", {"HealthCheck": health}),
            (collections_service_pb2, "Collections", Collections(store).calls()),
            (points_service_pb2, "Points", Points(store).calls()),
            (snapshots_service_pb2, "Snapshots", {}),
        )
        handlers = [service_handler(file.DESCRIPTOR.services_by_name[name], calls) for file, name, calls in services]
        self._grpc.add_generic_rpc_handlers(tuple(handlers))
        self.port: int = self._grpc.add_insecure_port(address)

    def start(self) -> None:
        self._grpc.start()
        self._optimizer.start()
        self._flusher.start()

    def stop(self) -> None:
        """End in order: no new requests, the optimiser's child, the flush timer, then flush and close the store."""
        ended = self._grpc.stop(GRACE_SECONDS)
        self._stopping.set()
        self._optimizer.stop()
        ended.wait()
        self._flusher.join()
        self._store.close()

    def _flush(self) -> None:
        while not self._stopping.wait(FLUSH_SECONDS):
            for collection in self._store.collections():
                try:
                    collection.flush()
                except Exception:
                    log.exception("collection %s could not be flushed; its log keeps everything", collection.name)
