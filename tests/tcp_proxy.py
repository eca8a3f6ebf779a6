"""A network in front of a real server, that a test makes slow, silent or dead."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

_BYTES = 65_536


class Proxy:
    """Forwards to one server. Whatever it was made to do, `restore` ends."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._open = threading.Event()
        self._open.set()
        self._delay = 0.0
        self._closed = False
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._accept(self._listener)

    def url(self, url: str) -> str:
        """The URL of the server, by way of this proxy."""
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{self.port}"))

    @property
    def connections(self) -> int:
        """Those that there are now."""
        with self._lock:
            return len(self._pairs)

    def refuse(self) -> None:
        """Cuts every connection and refuses new ones, as where no server runs."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def freeze(self) -> None:
        """Takes connections and bytes, and passes nothing on: a server that is stopped, or a silent network."""
        self._open.clear()

    def slow(self, seconds: float) -> None:
        """Passes each piece on after so many seconds."""
        self._delay = seconds

    def cut(self) -> None:
        """Ends the connections there are."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._end(pair)

    def restore(self) -> None:
        self._delay = 0.0
        self._open.set()
        with self._lock:
            if self._listener is None and not self._closed:
                self._listener = socket.create_server(("127.0.0.1", self.port))
                self._accept(self._listener)

    def close(self) -> None:
        self._closed = True
        self.refuse()  # first: what was frozen is not to arrive after the test
        self._open.set()

    def _accept(self, listener: socket.socket) -> None:
        threading.Thread(target=self._serve, args=(listener,), name="proxy", daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, 30)
            except OSError:  # the server is away: so is this connection, and the next one is tried again
                near.close()
                continue
            far.settimeout(None)
            pair = (near, far)
            with self._lock:
                self._pairs.add(pair)
            for source, target in (pair, pair[::-1]):
                threading.Thread(target=self._pump, args=(source, target, pair), name="proxy", daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with suppress(OSError):
            while data := source.recv(_BYTES):
                time.sleep(self._delay)
                self._open.wait()
                target.sendall(data)
        self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def proxied(url: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the server of a URL, and the URL that leads through it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    proxy = Proxy(parts.hostname, parts.port)
    try:
        yield proxy, proxy.url(url)
    finally:
        proxy.close()
