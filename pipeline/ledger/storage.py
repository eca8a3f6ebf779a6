"""How much room the ledger takes in its database, and the samples of storage that are kept for its trend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from pipeline.ledger.engine import Connection, Row

# Samples older than this say nothing of now: the duty that takes them runs every five minutes.
_FRESH_SECONDS = 1_800


def database(connection: Connection) -> Row:
    """bytes: of the database. longest_seconds: of the longest transaction that is open in it, and what it does."""
    row = connection.execute(
        """SELECT pg_database_size(current_database()) AS bytes, t.seconds AS longest_seconds, t.state AS longest_state,
                  t.application AS longest_application
             FROM (SELECT 1) AS one LEFT JOIN LATERAL (
               SELECT extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds, a.state,
                      a.application_name AS application
                 FROM pg_stat_activity a
                WHERE a.datname = current_database() AND a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid()
                  AND a.backend_type = 'client backend'
                ORDER BY a.xact_start LIMIT 1) AS t ON true"""
    ).fetchone()
    assert row is not None
    return row


def tables(connection: Connection) -> list[Row]:
    """Of each table of the schema, the largest first: name, bytes (with indexes and TOAST), index_bytes, rows (as
    Postgres estimates them), dead_rows."""
    return connection.execute(
        """SELECT c.relname AS name, pg_total_relation_size(c.oid) AS bytes, pg_indexes_size(c.oid) AS index_bytes,
                  greatest(c.reltuples, coalesce(s.n_live_tup, 0), 0)::bigint AS rows,
                  coalesce(s.n_dead_tup, 0)::bigint AS dead_rows
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
            WHERE c.relkind = 'r' AND n.nspname = current_schema()
            ORDER BY bytes DESC, name"""
    ).fetchall()


def collections(connection: Connection) -> list[tuple[str, str]]:
    """(name, name in Qdrant) of every collection."""
    rows = connection.execute("SELECT name, physical FROM collections ORDER BY name").fetchall()
    return [(row["name"], row["physical"]) for row in rows]


def add_samples(connection: Connection, values: Mapping[str, float]) -> None:
    """Notes what storage holds now; all under one time."""
    connection.execute(
        """INSERT INTO samples (name, at, value)
           SELECT s.name, now(), s.value FROM unnest(%s::text[], %s::float8[]) AS s (name, value)
           ON CONFLICT (name, at) DO NOTHING""",
        (list(values), list(values.values())),
    )


def newest_samples(connection: Connection, names: Sequence[str]) -> dict[str, tuple[datetime, float]]:
    """Name -> (when, value) of the newest sample of each, where it is not older than half an hour."""
    rows = connection.execute(
        f"""SELECT n.name, s.at, s.value
              FROM unnest(%s::text[]) AS n (name) CROSS JOIN LATERAL (
                SELECT s.at, s.value FROM samples s
                 WHERE s.name = n.name AND s.at > now() - make_interval(secs => {_FRESH_SECONDS})
                 ORDER BY s.at DESC LIMIT 1) AS s""",
        (list(names),),
    ).fetchall()
    return {row["name"]: (row["at"], row["value"]) for row in rows}


def history(
    connection: Connection, names: Sequence[str], days: float, most: int
) -> dict[str, list[tuple[float, float]]]:
    """Name -> (days before now, negative; value) of the samples of the last days, oldest first: `most` of each at most,
    spread evenly, the newest always among them."""
    rows = connection.execute(
        """SELECT name, -extract(epoch FROM now() - at)::float8 / 86400 AS day, value
             FROM (SELECT name, at, value, row_number() OVER (PARTITION BY name ORDER BY at DESC) - 1 AS place,
                          count(*) OVER (PARTITION BY name) AS total
                     FROM samples
                    WHERE name = ANY(%(names)s) AND at > now() - make_interval(secs => %(seconds)s)) AS s
            WHERE place %% greatest(1, ceil(total::float8 / %(most)s)::bigint) = 0 ORDER BY name, at""",
        {"names": list(names), "seconds": days * 86_400, "most": most},
    ).fetchall()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for row in rows:
        found[row["name"]].append((row["day"], row["value"]))
    return found
