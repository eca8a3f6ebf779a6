"""A real web server for tests, and what it can answer."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable

from pipeline.document import Document
from pipeline.settings import SourceSettings
from pipeline.sources import Rejected, open_source
from pipeline.sources.web import page_uri

LOCAL = SourceSettings(web_private=True, web_timeout=5)

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Site:
    """A real web server in a thread; `pages` says what each path answers, `asked` which were asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, Answer] = {}
        self.asked: list[tuple[str, str]] = []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append((self.path, self.headers["Host"]))
                site.pages.get(self.path, status(404))(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that hang up in the middle are what some tests are about

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def pem(kind: str, content: str) -> str:
    return f"-----BEGIN {kind}-----\n{content}-----END {kind}-----\n"


def page(body: bytes, content_type: str = "text/html; charset=utf-8", **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def status(code: int, location: str | None = None) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        if location is not None:
            handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def drip(head: bytes, drop: bytes, stop: threading.Event) -> Answer:
    """Sends `head`, then a drop every 50 ms for ever."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.wfile.write(head)
        while not stop.wait(0.05):
            handler.wfile.write(drop)

    return answer


def only(url: str, settings: SourceSettings = LOCAL) -> Document | Rejected:
    [found] = list(open_source(url, settings))
    return found


def error(url: str, settings: SourceSettings = LOCAL) -> str:
    found = only(url, settings)
    assert isinstance(found, Rejected), found
    assert url.partition("#")[0] in found.error or page_uri(url) in found.error
    return found.error
