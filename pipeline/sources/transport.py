"""How pages are fetched: httpx over connections that go to checked addresses and end at a deadline."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore
import httpx

from pipeline.errors import SourceRefused
from pipeline.sources import guards


class GuardedTransport(httpx.BaseTransport):
    """httpx over a connection pool whose connections are made by `_GuardedBackend`."""

    def __init__(
        self, allow_private: bool, tls: ssl.SSLContext, deadline: float, setting: str = guards.WEB_PRIVATE
    ) -> None:
        """allow_private: whether addresses may be other than public ones; `setting` is what says so, for messages.

        deadline: on the monotonic clock, for everything together.
        """
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=1,
            network_backend=_GuardedBackend(allow_private, deadline, setting),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        try:
            response = self._pool.handle_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=request.read(),
                    extensions=request.extensions,
                )
            )
        except Exception as error:
            raise _translated(error) from error
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Stream(response),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _Stream(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._response.iter_stream()
        except Exception as error:
            raise _translated(error) from error
        self._check_length()

    def _check_length(self) -> None:
        """Raises SourceRefused where more came than was announced: HTTP takes the first bytes for the whole page."""
        stream = self._response.extensions.get("network_stream")
        lengths = [value for name, value in self._response.headers if name.lower() == b"content-length"]
        if isinstance(stream, _TimedStream) and lengths and lengths[0].isdigit():
            announced = int(lengths[0])
            if stream.received.body > announced:
                raise SourceRefused(
                    f"the server announces {announced:,} bytes and sends more, of which the rest would be cut off"
                )

    def close(self) -> None:
        self._response.close()


def _translated(error: Exception) -> Exception:
    """httpcore's errors as httpx's; our own pass through."""
    if isinstance(error, httpcore.TimeoutException):
        return httpx.TimeoutException(str(error))
    if isinstance(error, (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol)):
        return httpx.TransportError(str(error) or type(error).__name__)
    return error


class _GuardedBackend(httpcore.NetworkBackend):
    """Makes connections to addresses that were checked: the name is resolved once, here, and the number connected to.

    httpcore still speaks TLS and HTTP for the name of the URL, so certificates and virtual hosts work as ever.
    """

    def __init__(self, allow_private: bool, deadline: float, setting: str) -> None:
        self._allow_private = allow_private
        self._setting = setting
        self._deadline = deadline
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in guards.resolve_public(host, port, self._allow_private, self._setting):
            try:
                left = remaining(self._deadline, timeout)
                stream = self._inner.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Received:
    """Counts the bytes that came after the head of an answer."""

    _HEAD_END = re.compile(rb"\n\r?\n")

    def __init__(self) -> None:
        self.body = 0
        self._head: bytes | None = b""

    def add(self, data: bytes) -> None:
        if self._head is None:
            self.body += len(data)
            return
        self._head += data  # h11 gives up on a head of 100 KB
        while end := self._HEAD_END.search(self._head):
            informational = self._head.partition(b" ")[2].startswith(b"1")  # another head follows this one
            if not informational:
                self.body = len(self._head) - end.end()
                self._head = None
                return
            self._head = self._head[end.end() :]


class _TimedStream(httpcore.NetworkStream):
    """A connection on which everything together ends at a deadline, however often a little arrives.

    received: what came in answer to the newest request.
    """

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline
        self.received = _Received()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, remaining(self._deadline, timeout))
        self.received.add(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.received = _Received()
        self._stream.write(buffer, remaining(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = remaining(self._deadline, timeout)
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def remaining(deadline: float, timeout: float | None) -> float:
    """Seconds left, at most `timeout`; raises httpcore.ReadTimeout where there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time for this page is over")
    return left if timeout is None else min(left, timeout)
