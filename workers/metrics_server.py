"""`/metrics` of one worker, for Prometheus: served by its main process, for all of its children.

GET of this one path and nothing else; a client that is slow or silent holds up nobody and is let go after seconds.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pipeline.observe import logger
from pipeline.settings import MetricsSettings

PATH = "/metrics"
# Prometheus itself gives up after ten.
_PATIENCE_SECONDS = 5.0
# Connections at one time; whoever comes beyond them is let go.
_MOST_AT_ONCE = 8

_log = logger("metrics")


class MetricsServer:
    """Listens from its making on. A worker works without it: a port that is in use is logged."""

    def __init__(self, settings: MetricsSettings, collector: Collector) -> None:
        self.url: str | None = None
        self._server: _Server | None = None
        if not (settings.enabled and settings.server):
            return
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        try:
            self._server = _Server(settings.address, settings.port, registry)
        except OSError as error:
            _log.warning(
                "no /metrics: %s:%d cannot be listened on (%s); set MILLRACE_METRICS__PORT to a free one, or to 0",
                settings.address,
                settings.port,
                error,
            )
            return
        self.url = f"http://{_shown(settings.address)}:{self._server.server_address[1]}{PATH}"
        threading.Thread(target=self._server.serve_forever, args=(0.5,), name="metrics", daemon=True).start()

    def forget(self) -> None:
        """In a fresh child: the port is its parent's, and free again when that one ends."""
        if self._server is not None:
            self._server.socket.close()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _shown(address: str) -> str:
    """The host of the URL: where this worker can be asked from elsewhere, if it listens everywhere."""
    if address in ("", "0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        return socket.gethostname()
    return f"[{address}]" if ":" in address else address


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a scrape under way does not hold up the end of the worker
    allow_reuse_address = True

    def __init__(self, address: str, port: int, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._room = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would look up the name of the address, which can take as long as a name server lets it.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a scrape was cut off", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "millrace"
    sys_version = ""
    timeout = _PATIENCE_SECONDS

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self.send_error(HTTPStatus.NOT_FOUND, explain=f"there is {PATH}, and nothing else")
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        try:
            body = encode(self.server.registry)
        except Exception:  # noqa: BLE001 - the worker goes on, and Prometheus notes a failed scrape
            _log.exception("/metrics failed")
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Every scrape would be a line."""
