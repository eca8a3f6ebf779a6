"""What the server answers: honest JSON, OpenAI's errors, and answers that are cut short or never come."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

SERVER_ERROR = ("The server had an error while processing your request. Sorry about that!", "server_error", None)


class ApiError(Exception):
    """An error as OpenAI answers it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, dict[str, str | None]] = {
            "error": {"message": message, "type": type, "param": param, "code": code}
        }
        self.headers = dict(headers or {})

    def response(self) -> Response:
        return JSONResponse(self.body, self.status, self.headers)


def of_status(status: int) -> ApiError:
    """The usual error of a status."""
    message, type_, code = {
        401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
        403: ("You have insufficient permissions for this operation.", "invalid_request_error", None),
        404: ("Not found.", "invalid_request_error", None),
        429: ("Rate limit reached for requests", "requests", "rate_limit_exceeded"),
        503: ("The engine is currently overloaded, please try again later", "service_unavailable", None),
    }.get(status, ("Invalid request.", "invalid_request_error", None) if 400 <= status < 500 else SERVER_ERROR)
    return ApiError(status, message, type=type_, code=code)


def missing(what: str, name: str) -> ApiError:
    return ApiError(404, f"No such {what} object: {name}", param="id")


class Raw(Response):
    """Bytes written to the connection as they are, which then ends: with FIN, or with RST.

    No bytes: the client sees a connection that was closed before any answer.
    """

    def __init__(self, data: bytes = b"", *, reset: bool = False) -> None:
        super().__init__()
        self.data = data
        self.reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = scope["transport"]
        transport.write(self.data)
        if self.reset:
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()
        while (await receive())["type"] != "http.disconnect":
            pass


def cut(response: Response, share: float, *, length: bool, reset: bool) -> Raw:
    """The first part of an answer. length: whether the whole length was announced; if not, its end looks honest."""
    body = bytes(response.body)
    lines = [f"HTTP/1.1 {response.status_code} OK", "connection: close"]
    lines += [
        f"{name.decode()}: {value.decode()}"
        for name, value in response.raw_headers
        if length or name != b"content-length"
    ]
    return Raw("\r\n".join([*lines, "", ""]).encode() + body[: int(len(body) * share)], reset=reset)


def page(items: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": items,
        "has_more": has_more,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
    }
