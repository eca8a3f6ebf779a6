"""A key is in no log, error, table, message or answer, whatever the server says of it and wherever it was written."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from command_line import CommandLine
from nursery import Nursery, opened
from openai_server import OpenAIServer
from psycopg import sql
from services import RedisServer

from pipeline.broker import celery_settings
from pipeline.errors import MillraceError

# Servers that are not OpenAI's have keys that look like nothing.
KEY = "gateway.4711.Qm9uam91ciBsZSBtb25kZQ"
# As people write it into the address, which is no place for it; and another one, that the server has never seen.
MISPLACED = "misplaced.77aa30b1c2d94e5f"
UNKNOWN = "unknown.0c9d8e7f6a5b4c3d2e"
TEXTS = 6
COMMANDS = (
    ("env",),
    ("status",),
    ("status", "--json"),
    ("jobs",),
    ("jobs", "--json"),
    ("batches",),
    ("batches", "--json"),
    ("cost", "--json"),
    ("dead", "list", "--json"),
    ("alerts", "--json"),
    ("duties", "--json"),
    ("stats", "--json"),
)


@pytest.fixture
def nursery(
    tmp_path: Path,
    postgres_url: str,
    redis_url: str,
    qdrant_url: str,
    openai_server: OpenAIServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Nursery]:
    addresses = {
        "MILLRACE_POSTGRES__URL": postgres_url,
        "MILLRACE_REDIS__URL": redis_url,
        "MILLRACE_QDRANT__URL": qdrant_url,
    }
    openai_server.control.add_key(KEY)
    with opened(tmp_path, addresses, openai_server, monkeypatch, KEY) as made:
        yield made


@contextmanager
def overheard(nursery: Nursery) -> Iterator[Overheard]:
    """What workers say of themselves and of their tasks while this goes on, which is all that Flower knows."""
    with Celery() as app:
        app.conf.update(celery_settings(nursery.settings.redis))
        heard = Overheard(app)
        listening = threading.Thread(target=heard.listen)
        listening.start()
        try:
            yield heard
        finally:
            heard.over.set()
            listening.join()


class Overheard:
    def __init__(self, app: Celery) -> None:
        self._app = app
        self.said: list[str] = []
        self.over = threading.Event()

    def listen(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": lambda event: self.said.append(str(event))})
            while not self.over.is_set():
                with suppress(TimeoutError):
                    receiver.capture(limit=None, timeout=0.5, wakeup=False)

    def ask(self) -> None:
        """What they answer when they are asked."""
        workers = self._app.control.inspect(timeout=30.0, limit=1)
        self.said += [str(workers.conf()), str(workers.stats()), str(workers.registered())]


def files_of(directory: Path) -> dict[str, bytes]:
    """Everything that was written: the logs of the workers, and whatever lies in the home."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def tables_of(nursery: Nursery) -> dict[str, bytes]:
    """Every column of every row of every table, as text; of binary ones the bytes too."""
    tables = {}
    with nursery.services.ledger.transaction() as connection:
        names = connection.execute(
            """SELECT table_name FROM information_schema.tables
                WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'"""
        ).fetchall()
        for (name,) in (row.values() for row in names):
            rows = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name))).fetchall()
            tables[name] = b"\n".join(
                value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row.values()
            )
    return tables


def redis_of(url: str) -> dict[str, bytes]:
    """Every value, whatever it is."""
    read = {
        b"string": lambda client, key: client.get(key),
        b"hash": lambda client, key: client.hgetall(key),
        b"list": lambda client, key: client.lrange(key, 0, -1),
        b"set": lambda client, key: client.smembers(key),
        b"zset": lambda client, key: client.zrange(key, 0, -1),
        b"stream": lambda client, key: client.xrange(key),
    }
    with redis.Redis.from_url(url) as client:
        return {key.decode(): str(read[client.type(key)](client, key)).encode() for key in client.scan_iter()}


def asked_of(nursery: Nursery) -> dict[str, bytes]:
    """What a person is told who asks for it."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("MILLRACE_")}
    line = CommandLine(nursery.settings.home, environment)
    answers = {}
    for command in COMMANDS:
        done = line.run(*command, status=None)
        answers[f"millrace {' '.join(command)}"] = (done.stdout + done.stderr).encode()
    return answers


def searched(nursery: Nursery, collection: str) -> str:
    """What whoever searches is told, also where it cannot be done."""
    try:
        return str(nursery.client.search("anything", collection=collection).to_json())
    except MillraceError as error:
        return str(error)


def all_over(nursery: Nursery) -> bool:
    rows = nursery.sql("SELECT finished_at FROM jobs")
    return all(row["finished_at"] for row in rows) and all(row.closed_at is not None for row in nursery.rows())


def reopen_circuit(nursery: Nursery) -> None:
    """Nobody waits a minute for a key that is known to be right by now."""
    nursery.sql("UPDATE circuits SET opened_at = NULL, retry_at = NULL WHERE dependency = 'openai'")


def circuit(nursery: Nursery) -> Any:
    rows = nursery.sql("SELECT error FROM circuits WHERE dependency = 'openai' AND opened_at IS NOT NULL")
    return rows and rows[0]["error"]


@pytest.mark.timeout(400)  # two workers one after the other, and each request to OpenAI is refused several times
def test_a_key_is_nowhere_after_a_run_with_faults(nursery: Nursery, redis_server: RedisServer) -> None:
    server, control = nursery.server, nursery.server.control
    told: list[str] = []
    nursery.put("online", "openai", TEXTS, 16)
    nursery.put("ordered", "openai_batch", TEXTS, 17)
    with overheard(nursery) as heard:
        # Given workers whose key is wrong, and stands in the address besides
        misplaced = server.url.replace("http://", f"http://user:{MISPLACED}@")
        wrong = {
            "MILLRACE_OPENAI__BASE_URL": misplaced,
            "MILLRACE_OPENAI__API_KEY": UNKNOWN,
            "MILLRACE_LOGS__LEVEL": "debug",
        }
        with nursery.workers(**wrong):
            nursery.pump(lambda: bool(circuit(nursery)))
            told += [str(circuit(nursery)), searched(nursery, "online"), str(nursery.client.status())]
        reopen_circuit(nursery)

        # And a server that repeats the right one in whatever it says, and whose answers are lost
        for operation in ("embeddings", "files.create", "batches.create", "batches.list", "batches.get"):
            repeats: dict[str, Any] = {"message": f"Incorrect API key provided: {KEY}, or Bearer {KEY}"}
            control.fault(operation, "status", code=500, **repeats)
            control.fault(operation, "status", code=429, headers={"retry-after": "0"}, **repeats)
            control.fault(operation, "garbage")
            control.fault(operation, "drop")
        control.fault("files.content", "status", code=500, message=f"not with {KEY}")
        control.fault("files.delete", "status", code=500, message=f"not with {KEY}")
        control.fault("batch", "invalid", code="invalid_api_key", message=f"the key {KEY} is not enough", line=1)
        refused = {"message": f"input is refused for {KEY}", "match": "refusable"}
        control.fault("embeddings", "status", code=400, times=None, **refused)
        nursery.put("refusable", "openai", 2, 18)
        with nursery.workers(MILLRACE_LOGS__LEVEL="debug"):
            nursery.pump(lambda: all_over(nursery))
            # And one that rejects it in the middle
            control.fault("embeddings", "status", code=401, message=f"Incorrect API key provided: {KEY}")
            nursery.put("rejected", "openai", TEXTS, 19)
            nursery.pump(lambda: bool(circuit(nursery)))
            told += [str(circuit(nursery)), searched(nursery, "rejected"), str(nursery.client.status())]
            heard.ask()
            answers = asked_of(nursery)
            reopen_circuit(nursery)
            nursery.pump(lambda: all_over(nursery))

    # Then the faults were met, and it went on
    assert control.fired() >= 13
    states = nursery.sql("SELECT k.name, j.state FROM jobs j JOIN collections k ON k.id = j.collection_id")
    assert {row["name"]: row["state"] for row in states} == {
        "online": "succeeded",
        "ordered": "partial",
        "refusable": "failed",
        "rejected": "succeeded",
    }
    places = {
        **{f"file {name}": content for name, content in files_of(nursery.directory).items()},
        **{f"table {name}": content for name, content in tables_of(nursery).items()},
        **{f"redis {name}": content for name, content in redis_of(redis_server.url).items()},
        **answers,
        **asked_of(nursery),
        "events": "\n".join(heard.said).encode(),
        "errors": "\n".join(told).encode(),
    }
    assert {"table dead_letters", "file worker.log", "millrace status"} <= places.keys()
    for word in (b"task-received", b"embed.batch", b"broker_transport_options"):
        assert word in places["events"]
    # And what was said is told, without the keys
    assert b"is not enough" in places["table remote_batches"] + places["table dead_letters"]
    assert b"input is refused for ***" in places["table dead_letters"]
    assert b'"level": "debug"' in places["file worker.log"]
    # And no key is anywhere, nor the better part of one
    for key in (KEY, MISPLACED, UNKNOWN):
        for part in (key, key[8:-4], key[-12:]):
            assert [place for place, content in places.items() if part.encode() in content] == [], part
