"""The stack that is drilled: which processes it has now, which of them are at work, and what is done to them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import psutil

from pipeline.errors import NotDrillable
from pipeline.settings import Settings, load_settings, mask_url, read_run_file
from workers.drill.plain import Away, Sql
from workers.embedded.home import Home
from workers.embedded.redis import EmbeddedRedis
from workers.embedded.runfile import live_processes
from workers.embedded.vectors import EmbeddedVectors

SERVERS = ("redis", "qdrant", "postgres")
_PAUSER = Path(__file__).with_name("pauser.py")
_ANSWER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it is claimed: whose process has it, by pid."""

    id: int
    epoch: int
    pid: int


class Pauser:
    """Holds processes still, by a program that lets them go on whatever becomes of us."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PAUSER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Everything goes on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def stop(self, pids: Iterable[int], seconds: float) -> None:
        """Returns when they are still. They go on after so many seconds, or with `go`."""
        self._ask("stop", f"{seconds:.2f}", *map(str, pids))

    def go(self, pids: Iterable[int]) -> None:
        self._ask("go", *map(str, pids))

    def _ask(self, *words: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{' '.join(words)}\n".encode("ascii"))
        self._process.stdin.flush()
        self._process.stdout.readline()


class DrilledStack:
    """The embedded stack of a home, which was started with `--drillable`."""

    def __init__(self, home: Path) -> None:
        """Raises NotDrillable, which names the reason: no stack runs there, it is not marked, or addresses are set by
        which commands would reach another one."""
        self.home = Home.at(home).path
        run = read_run_file(self.home)
        if not run or not Home.at(home).is_locked():
            raise NotDrillable(
                f"no stack runs on {self.home}, and a stack that is only reached by its addresses has no processes "
                "here that could be killed. Start one that may be drilled: `millrace up --drillable`"
            )
        if not run.get("drillable"):
            raise NotDrillable(
                f"the stack on {self.home} was not marked as drillable, and a drill kills its parts. Where that is "
                "meant: `millrace down`, then `millrace up --drillable`"
            )
        self.settings: Settings = load_settings(home=self.home, **run["settings"])
        self._check_addresses(run["settings"])

    def _check_addresses(self, run: dict[str, dict[str, str]]) -> None:
        configured = load_settings(home=self.home)
        for section in SERVERS:
            url = getattr(configured, section).url.get_secret_value()
            if url and url != run[section]["url"]:
                raise NotDrillable(
                    f"MILLRACE_{section.upper()}__URL is set to {mask_url(url)}, which is not the stack on "
                    f"{self.home}; a drill is for the embedded stack alone. Unset it, or set MILLRACE_HOME to the "
                    "stack that is meant"
                )

    @property
    def postgres_url(self) -> str:
        return self.settings.postgres.url.get_secret_value()

    @property
    def qdrant_url(self) -> str:
        return self.settings.qdrant.url.get_secret_value()

    def processes(self) -> dict[str, Any]:
        """Those of the stack that are alive, as `millrace status` shows them."""
        return live_processes(read_run_file(self.home))

    def server(self, name: str) -> psutil.Process | None:
        """The main process of redis, qdrant or postgres; None while it does not run."""
        found = self.processes()[name]
        return _process(found["pid"]) if found else None

    def workers(self) -> dict[int, tuple[str, set[int]]]:
        """pid of each worker's main process -> its name, the pids of its pool children."""
        return {
            found["pid"]: (_plain_name(found["name"]), set(found["children"])) for found in self.processes()["workers"]
        }

    def flush(self) -> bool:
        """Empties the broker's database. False where Redis did not answer."""
        import redis

        url = self.settings.redis.url.get_secret_value()
        with redis.Redis.from_url(
            url, socket_timeout=_ANSWER_SECONDS, socket_connect_timeout=_ANSWER_SECONDS
        ) as broker:
            try:
                broker.flushdb()
            except redis.RedisError:
                return False
        return True

    def answers(self, server: str, sql: Sql) -> bool:
        """Whether a server takes requests; of one that is held still we learn it a second later."""
        try:
            if server == "postgres":
                return bool(sql.rows("SELECT 1"))
        except Away:
            return False
        parts = urlsplit(getattr(self.settings, server).url.get_secret_value())
        kind = EmbeddedRedis if server == "redis" else EmbeddedVectors
        return kind(self.home / server, parts.port or 0, unquote(parts.password or "")).is_ready()


def family(process: psutil.Process) -> list[int]:
    """The process and all below it, itself first."""
    with suppress(psutil.NoSuchProcess):
        return [process.pid, *(child.pid for child in process.children(recursive=True))]
    return []


def kill(pids: Sequence[int], number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).send_signal(number)


def running(sql: Sql, collection: str) -> list[Batch]:
    """The batches of the collection that processes of this machine have claimed. Raises Away."""
    rows = sql.rows(
        """SELECT b.id, b.epoch, b.owner FROM batches b JOIN collections c ON c.id = b.collection_id
            WHERE c.name = %(name)s AND b.state = 'running' AND b.lease_until > clock_timestamp() ORDER BY b.id""",
        {"name": collection},
    )
    here = f"@{socket.gethostname()}#"
    return [
        Batch(row["id"], row["epoch"], int(row["owner"].rpartition("/")[2])) for row in rows if here in row["owner"]
    ]


def _process(pid: int) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def _plain_name(node: str) -> str:
    return node.partition("@")[0]
