"""The connection to Qdrant: opened late, once in each process, with a deadline on every call and our own errors.

A circuit stands before it: who asks a moment after a failure is told so at once, and a frozen server costs one call its
deadline, and after that short questions.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from qdrant_client import grpc as wire
from qdrant_client.connection import get_channel

from pipeline.circuits import Admission, Circuit
from pipeline.errors import VectorsFailed, VectorsRejected, VectorsUnavailable
from pipeline.observe import logger
from pipeline.settings import QdrantSettings
from pipeline.vectors.qdrant_errors import FOREIGN, is_silence, say, translate

_CHANNEL_OPTIONS: dict[str, int] = {
    "grpc.use_local_subchannel_pool": 1,  # without it gRPC puts all channels of a process on one connection
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 2000,  # gRPC's own 120 s would keep a fleet idle long after Qdrant is back
    "grpc.keepalive_time_ms": 20_000,  # a host that vanished is noticed within a request, not by TCP after 15 minutes
    "grpc.keepalive_timeout_ms": 10_000,
}

# Shorter than those of the ledger's circuit, which says when work may try: it must not meet this one closed.
_RESTS = (0.5, 1.0, 2.0)
# What the first question after a failure may take; twice as long after each that failed, so that a server that is slow
# and not away is found too.
_PROBE_SECONDS = 1.0

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TLS_SCHEMES = ("grpcs", "https")
_GRPC_SCHEMES = ("grpc", "grpcs")

_log = logger("qdrant")


class Stubs:
    """Qdrant's gRPC services over qdrant-client's own channels; its facade is left out, whose REST half takes a second
    to import, and 60 MB."""

    def __init__(self, channels: list[Any]) -> None:
        self._channels = channels
        self._points = itertools.cycle([wire.PointsStub(channel) for channel in channels])  # type: ignore[no-untyped-call]
        self.grpc_collections = wire.CollectionsStub(channels[0])  # type: ignore[no-untyped-call]

    @property
    def grpc_points(self) -> Any:
        """In turns, where there are several channels."""
        return next(self._points)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


Method = Callable[[Stubs], Callable[..., Any]]


def _list(client: Stubs) -> Any:
    """Asked to see whether it is there: HealthCheck answers without a key, and before storage is open."""
    return client.grpc_collections.List


class QdrantConnection:
    """Calls of Qdrant's gRPC services. Thread-safe; a forked child opens its own."""

    def __init__(self, settings: QdrantSettings) -> None:
        url = urlsplit(settings.url.get_secret_value())
        self._host = f"[{url.hostname}]" if url.hostname and ":" in url.hostname else url.hostname or ""
        # The port of an http(s) URL is the one of REST, which this never talks to.
        self._port = (url.port if url.scheme in _GRPC_SCHEMES else None) or settings.grpc_port
        self._tls = url.scheme in _TLS_SCHEMES
        self._key = unquote(url.password or "") or settings.api_key.get_secret_value()
        self._loopback = url.hostname in _LOOPBACK
        self._channels = settings.channels
        self._timeout = settings.timeout
        self._lock = threading.Lock()
        self._client: Stubs | None = None
        self._inherited: list[Stubs] = []
        self._circuit = Circuit(_RESTS)
        _connections.add(self)

    @property
    def address(self) -> str:
        """host:port, without the key."""
        return f"{self._host}:{self._port}" if self._host else "(no address)"

    @property
    def whole_seconds(self) -> int:
        """The timeout as the server takes it: whole seconds, at least one."""
        return max(1, math.ceil(self._timeout))

    def call(
        self,
        collection: str | None,
        method: Method,
        request: object,
        *,
        tolerate: Callable[[BaseException], bool] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The response; None for an error that is tolerated. Raises what `translate` makes of any other."""
        admission = self._circuit.admit()
        if admission is Admission.REST:
            raise VectorsUnavailable(
                f"Qdrant at {self.address} did not answer a moment ago ({self._circuit.why}); it is asked again soon."
            )
        if admission is Admission.PROBE:
            self._probe()
        return self._ask(collection, method, request, tolerate, timeout or self._timeout)

    def answers(self, timeout: float) -> bool:
        """Asks now, whatever the circuit says; closes it where there is an answer, be it a refusal."""
        try:
            self._ask(None, _list, wire.ListCollectionsRequest(), None, timeout, judge=False)
        except (VectorsUnavailable, VectorsFailed):
            return False
        except VectorsRejected:
            pass  # what this key may not ask is no matter here
        self._circuit.succeeded()
        return True

    def _probe(self) -> None:
        patience = min(self._timeout, _PROBE_SECONDS * 2.0**self._circuit.failures)
        try:
            self._ask(None, _list, wire.ListCollectionsRequest(), None, patience)
            self._circuit.succeeded()
        finally:
            self._circuit.released()

    def _ask(
        self,
        collection: str | None,
        method: Method,
        request: object,
        tolerate: Callable[[BaseException], bool] | None,
        timeout: float,
        *,
        judge: bool = True,
    ) -> Any:
        client = self._open()
        try:
            return method(client)(request, timeout=timeout)
        except FOREIGN as error:
            if tolerate is not None and tolerate(error):
                return None
            if judge and is_silence(error):
                self._circuit.failed(say(error))
            raise translate(error, collection, self.address) from error
        except ValueError as error:
            # What gRPC raises for a channel that another thread closed; any other ValueError is a fault of ours.
            if "closed channel" not in str(error):
                raise
            raise translate(error, collection, self.address) from error

    def close(self) -> None:
        """Lets the channels go; the next call opens them again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _open(self) -> Stubs:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Stubs:
        if not self._host:
            raise VectorsUnavailable(
                "Qdrant has no address: set MILLRACE_QDRANT__URL, or start the embedded stack with `millrace up`."
            )
        if self._key and not self._tls and not self._loopback:
            _log.warning("the key for Qdrant at %s goes over the network as plain text: use grpcs://", self.address)
        metadata = [("api-key", self._key)] if self._key else []
        return Stubs(
            [
                get_channel(self._host, self._port, self._tls, metadata, dict(_CHANNEL_OPTIONS))
                for _ in range(self._channels)
            ]
        )

    def _after_fork(self) -> None:
        """The child gets a lock that nobody holds and no client. The inherited one is kept, not closed: closing it, or
        collecting it as garbage, would end the parent's connection."""
        self._lock = threading.Lock()
        if self._client is not None:
            self._inherited.append(self._client)
            self._client = None


_connections: weakref.WeakSet[QdrantConnection] = weakref.WeakSet()


def _forget_inherited() -> None:
    for connection in list(_connections):
        connection._after_fork()


os.register_at_fork(after_in_child=_forget_inherited)
