"""Processes of ours besides workers, beat for one: each keeps a row of its own fresh while it lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from pipeline.ledger.engine import Connection

BEAT = "beat"

# They report every five seconds; one that is silent for so long is taken for dead.
SILENT_SECONDS = 15.0
# Its row is kept for whoever asks since when.
_FORGET_SECONDS = 3_600.0


@dataclass(frozen=True, slots=True)
class Service:
    """One process. memory: as it last measured itself (`ProcessMemory`); silent_seconds: since its last report."""

    name: str
    host: str
    pid: int
    started_at: datetime
    silent_seconds: float
    memory: Mapping[str, Any]

    @property
    def alive(self) -> bool:
        return self.silent_seconds <= SILENT_SECONDS


def report(connection: Connection, name: str, host: str, pid: int, memory: Mapping[str, Any]) -> None:
    """A sign of life; drops the rows of those of its name that have been silent for an hour."""
    connection.execute(
        """INSERT INTO services (name, host, pid, memory) VALUES (%s, %s, %s, %s)
           ON CONFLICT (name, host, pid) DO UPDATE SET seen_at = clock_timestamp(), memory = excluded.memory""",
        (name, host, pid, Jsonb(dict(memory))),
    )
    connection.execute(
        "DELETE FROM services WHERE name = %s AND seen_at < clock_timestamp() - make_interval(secs => %s)",
        (name, _FORGET_SECONDS),
    )


def leave(connection: Connection, name: str, host: str, pid: int) -> None:
    """One that ends in good order takes its row with it."""
    connection.execute("DELETE FROM services WHERE name = %s AND host = %s AND pid = %s", (name, host, pid))


def listing(connection: Connection, name: str | None = None) -> list[Service]:
    """All of them, those too that have been silent for up to an hour; or those of this name."""
    rows = connection.execute(
        """SELECT name, host, pid, started_at, memory,
                  greatest(0, extract(epoch FROM clock_timestamp() - seen_at))::float8 AS silent_seconds
             FROM services WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY name, started_at, host, pid""",
        {"name": name},
    ).fetchall()
    return [Service(**row) for row in rows]
