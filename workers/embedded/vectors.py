"""The vector server: Qdrant's engine behind Qdrant's gRPC contract, in a process of its own."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from workers.embedded.part import Part
from workers.embedded.ports import LOOPBACK

KEY_VARIABLE = "MILLRACE_VECTOR_SERVER_KEY"
ANSWER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class EmbeddedVectors:
    """A vector server with its collections in `directory`/data."""

    directory: Path
    port: int
    key: str = field(repr=False)
    log_format: str = "json"
    log_level: str = "info"

    @property
    def url(self) -> str:
        """grpc://:KEY@127.0.0.1:PORT"""
        return f"grpc://:{quote(self.key, safe='')}@{LOOPBACK}:{self.port}"

    def part(self) -> Part:
        """The server. It is ready when it answers a health check after our key, its collections being loaded."""
        return Part(
            name="qdrant",
            argv=(
                *(sys.executable, "-P", "-m", "workers.embedded.vector_server"),
                *("--data", str(self.directory / "data"), "--listen", f"{LOOPBACK}:{self.port}"),
                *("--port-file", str(self.directory / "port"), "--parent", str(os.getpid())),
                *("--log-format", self.log_format, "--log-level", self.log_level),
            ),
            cwd=self.directory,
            env={**os.environ, KEY_VARIABLE: self.key, "PYTHONUNBUFFERED": "1"},
            port=self.port,
            prepare=self._make_directory,
            ready=self.is_ready,
            grace=15.0,
        )

    def is_ready(self) -> bool:
        """Whether the server takes our key. Asked without qdrant-client, which takes a second to import."""
        import grpc

        with grpc.insecure_channel(f"{LOOPBACK}:{self.port}") as channel:
            list_collections = channel.unary_unary("/qdrant.Collections/List", _as_is, _as_is)
            try:
                list_collections(b"", timeout=ANSWER_SECONDS, metadata=(("api-key", self.key),))
            except grpc.RpcError:
                return False
        return True

    def _make_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _as_is(message: bytes) -> bytes:
    return message
