"""A real S3 protocol for tests: moto's server on a free loopback port, which notes requests and can misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

import httpx
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-word",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
}


@dataclass
class Asked:
    """A request: `GET`, the key ("" for the bucket), the query."""

    method: str
    bucket: str
    key: str
    query: dict[str, list[str]]


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None:
        pass


@dataclass
class ObjectStore:
    """`asked`: the requests. `answer`: may answer one itself, with (status, code), in place of the store.
    `before`: called with every request, before it is answered."""

    asked: list[Asked] = field(default_factory=list)
    answer: Callable[[Asked], tuple[int, str] | None] = lambda _: None
    before: Callable[[Asked], None] = lambda _: None
    url: str = ""

    def __post_init__(self) -> None:
        import boto3  # type: ignore[import-untyped]

        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="owner",
            aws_secret_access_key="owner",
            region_name="us-east-1",
        )

    def reset(self) -> None:
        """Forgets every bucket (moto keeps them for the whole process), every request and every misbehaviour."""
        httpx.post(f"{self.url}/moto-api/reset", headers={"Authorization": "owner/"}, timeout=10).raise_for_status()
        self.answer, self.before = (lambda _: None), (lambda _: None)
        self.asked.clear()

    def close(self) -> None:
        self.reset()
        self.client.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def bucket(self, name: str, objects: dict[str, bytes] | None = None) -> None:
        self.client.create_bucket(Bucket=name)
        for key, content in (objects or {}).items():
            self.put(name, key, content)

    def put(self, bucket: str, key: str, content: bytes, **options: Any) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=content, **options)

    def remove(self, bucket: str, key: str) -> None:
        self.client.delete_object(Bucket=bucket, Key=key)

    def read(self) -> list[str]:
        """The keys of the objects that were read, in alphabetical order (several are read at once)."""
        return sorted(item.key for item in self.asked if item.method == "GET" and item.key)

    def listings(self) -> int:
        return sum(item.method == "GET" and not item.key for item in self.asked)

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("RAW_URI", environ["PATH_INFO"]).partition("?")[0]
        bucket, _, key = path.lstrip("/").partition("/")
        asked = Asked(environ["REQUEST_METHOD"], bucket, unquote(key), parse_qs(environ.get("QUERY_STRING", "")))
        if "owner/" not in environ.get("HTTP_AUTHORIZATION", ""):
            self.asked.append(asked)
            self.before(asked)
            if told := self.answer(asked):
                status, code = told
                body = f"<Error><Code>{code}</Code><Message>{code} it is</Message></Error>".encode()
                headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
                start_response(f"{status} {code}", headers)
                return [body]
        answered: Iterable[bytes] = self._application(environ, start_response)
        return answered
