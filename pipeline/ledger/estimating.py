"""What an estimate asks the ledger; nothing is ever written for one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from psycopg.types.json import Jsonb

from pipeline.ledger.engine import Connection, Transaction
from pipeline.ledger.fleet import ALIVE_SECONDS

# A job of fewer chunks says nothing of how fast the next one will be; so many jobs are looked at.
_TELLING_CHUNKS = 50
_TELLING_JOBS = 20


@contextmanager
def read_only(transaction: Transaction) -> Iterator[Connection]:
    """A transaction in which Postgres itself refuses to write."""
    with transaction() as connection:
        connection.execute("SET TRANSACTION READ ONLY")
        yield connection


def stored(connection: Connection, keys: Sequence[bytes]) -> set[bytes]:
    """Those of the keys whose vector is there."""
    return _found(connection, "embeddings", keys)


def ordered(connection: Connection, keys: Sequence[bytes]) -> set[bytes]:
    """Those of the keys that are being bought already, for whomever."""
    return _found(connection, "purchases", keys)


def _found(connection: Connection, table: str, keys: Sequence[bytes]) -> set[bytes]:
    if not keys:
        return set()
    rows = connection.execute(f"SELECT key FROM {table} WHERE key = ANY(%s)", (list(keys),), binary=True)
    return {bytes(row["key"]) for row in rows}


def local_rate(connection: Connection, model: Mapping[str, Any]) -> float | None:
    """Chunks a second that were embedded here with this model, by the newest jobs that did nothing else; None where
    there are none that say something."""
    row = connection.execute(
        """SELECT sum(chunks_embedded) / sum(seconds) AS rate FROM (
             SELECT j.chunks_embedded, extract(epoch FROM j.finished_at - j.started_at)::float8 AS seconds
               FROM jobs j JOIN collections c ON c.id = j.collection_id
              WHERE c.model = %(model)s AND coalesce(j.routed, j.provider) = 'local'
                AND j.state IN ('succeeded', 'partial') AND j.chunks_embedded >= %(chunks)s
                AND j.finished_at > j.started_at
              ORDER BY j.id DESC LIMIT %(jobs)s) AS newest""",
        {"model": Jsonb(dict(model)), "chunks": _TELLING_CHUNKS, "jobs": _TELLING_JOBS},
    ).fetchone()
    return float(row["rate"]) if row and row["rate"] is not None else None


def slots(connection: Connection) -> int:
    """How many pieces of work live workers do at once."""
    row = connection.execute(
        """SELECT coalesce(sum(slots), 0) AS slots FROM workers
            WHERE seen_at > clock_timestamp() - make_interval(secs => %s)""",
        (ALIVE_SECONDS,),
    ).fetchone()
    return int(row["slots"]) if row else 0
