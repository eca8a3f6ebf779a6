"""Databases of tests: made once, wiped and used again, since making one takes longer than most tests.

What is used again is as new: no row, every sequence at its start, no statistics, nobody connected, and a name that no
thread of an earlier test knows. One whose schema a test has changed, or that a test has filled, is dropped instead.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any, LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

# A new one has 9.4 MB; what tests leave behind is dead rows, which every later scan would read.
MOST_BYTES = 14_000_000

_WIPE = """
DO $wipe$
DECLARE found record;
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR found IN SELECT oid::regclass AS name FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'
    LOOP
        EXECUTE 'DELETE FROM ' || found.name;
    END LOOP;
    INSERT INTO circuits SELECT * FROM jsonb_populate_recordset(NULL::circuits, {circuits});
    PERFORM setval(seqrelid, seqstart, false) FROM pg_sequence;
    PERFORM pg_stat_reset();
END $wipe$
"""
# What migrations put into tables.
_ROWS = "SELECT jsonb_agg(circuits)::text FROM circuits"
# Of the schema: each row of the catalogue has the number of the transaction that changed it last.
_FINGERPRINT = """
SELECT md5(string_agg(line, ',' ORDER BY line)), pg_database_size(current_database()) FROM (
    SELECT concat_ws(' ', 'class', oid, xmin, reltuples) FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', 'column', a.attrelid, a.attnum, a.xmin) FROM pg_attribute a
        JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', 'constraint', oid, xmin) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', 'trigger', oid, xmin) FROM pg_trigger
    UNION ALL SELECT concat_ws(' ', 'function', oid, xmin) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', 'schema', oid, xmin) FROM pg_namespace WHERE nspname !~ '^pg_(temp|toast)'
    UNION ALL SELECT concat_ws(' ', 'setting', setrole, xmin) FROM pg_db_role_setting
        WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
) AS lines (line)
"""


@dataclass(frozen=True)
class PostgresServer:
    """A server that databases can be made on; `url` is a superuser's, of the maintenance database."""

    url: str
    _connections: list[psycopg.Connection[Any]] = field(default_factory=list)

    def database_url(self, name: str) -> str:
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def create(self, template: str = "template1") -> str:
        """Makes a database as a copy of `template`; returns its URL."""
        name = _new_name()
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, template)
        return self.database_url(name)

    def rename(self, url: str) -> str:
        """Gives a database, which nobody may be connected to, a name that nobody knows; returns its new URL."""
        name = _new_name()
        self._execute("ALTER DATABASE {} RENAME TO {}", database(url), name)
        return self.database_url(name)

    def drop(self, url: str) -> None:
        """Drops a database, whoever is connected."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", database(url))

    def disconnect(self, url: str) -> None:
        """Ends every session on a database."""
        self._connection().execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", (database(url),)
        )

    def close(self) -> None:
        while self._connections:
            self._connections.pop().close()

    def _execute(self, statement: str, *names: str) -> None:
        self._connection().execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _connection(self) -> psycopg.Connection[Any]:
        """One for all of a session's tests."""
        if not self._connections or self._connections[0].closed:
            self._connections[:] = [psycopg.connect(self.url, autocommit=True)]
        return self._connections[0]


@dataclass(frozen=True)
class _Fresh:
    """What a database was when it was made: its schema, and the rows of `circuits`, which a migration put there."""

    fingerprint: str
    circuits: str


@dataclass
class Databases:
    """Migrated, empty databases, copies of `template`."""

    server: PostgresServer
    template: str
    _clean: list[tuple[str, _Fresh]] = field(default_factory=list)
    _lent: dict[str, _Fresh] = field(default_factory=dict)

    def take(self) -> str:
        """The URL of one. Give it back."""
        if self._clean:
            url, fresh = self._clean.pop()
        else:
            url = self.server.create(self.template)
            with psycopg.connect(url, autocommit=True) as connection:
                fresh = _Fresh(_look(connection)[0], _only(connection, _ROWS)[0])
        self._lent[url] = fresh
        return url

    def give_back(self, url: str) -> None:
        """Whoever is connected to it, whatever is in it."""
        fresh = self._lent.pop(url)
        if self._wipe(url, fresh):
            self._clean.append((self.server.rename(url), fresh))
        else:
            self.server.drop(url)

    def close(self) -> None:
        """Drops those that nobody has."""
        while self._clean:
            self.server.drop(self._clean.pop()[0])

    def _wipe(self, url: str, fresh: _Fresh) -> bool:
        """Whether it is as it was when it was made."""
        self.server.disconnect(url)
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                fingerprint, size = _look(connection)
                if fingerprint != fresh.fingerprint or size > MOST_BYTES:
                    return False
                connection.execute(sql.SQL(_WIPE).format(circuits=sql.Literal(fresh.circuits)))
        except psycopg.Error:  # a test may have taken away what this needs, or a thread of its own holds a table again
            return False
        return True


def database(url: str) -> str:
    """The name of the database of a URL."""
    return urlsplit(url).path[1:]


def _new_name() -> str:
    return f"test_{secrets.token_hex(6)}"


def _look(connection: psycopg.Connection[Any]) -> tuple[str, int]:
    """(fingerprint of the schema, bytes)"""
    fingerprint, size = _only(connection, _FINGERPRINT)
    return fingerprint, size


def _only(connection: psycopg.Connection[Any], query: LiteralString) -> tuple[Any, ...]:
    found = connection.execute(query).fetchone()
    assert found is not None
    return tuple(found)
