"""A TCP proxy that can hold a request: it has left its sender, and arrives when the test says so."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

_READ = 65536


class HoldingProxy:
    """Listens on a port of its own before `host:port`. Holds what a client sends from the bytes `marker` on."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._marker = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.held = threading.Event()  # something is held now
        self._release = threading.Event()
        self._release.set()
        self.delivered = threading.Event()  # and went on to its target
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, marker: bytes) -> None:
        """From now on a connection stands still, towards the server, where a client sends these bytes."""
        self.held.clear()
        self.delivered.clear()
        self._release.clear()
        self._marker = marker

    def release(self) -> None:
        """What was held arrives, and nothing is held any more."""
        self._marker = b""
        self._release.set()

    def close(self) -> None:
        self.release()
        for opened in (self._listener, *self._sockets):
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                threading.Thread(target=self._pump, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, upwards: bool) -> None:
        last = b""  # the marker may come in two parts
        with suppress(OSError):
            while data := source.recv(_READ):
                held = upwards and bool(self._marker) and self._marker in last + data
                if held:
                    self.held.set()
                    self._release.wait()
                target.sendall(data)
                if held:
                    self.delivered.set()
                last = data[-64:]
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
