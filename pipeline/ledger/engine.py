"""Connections to Postgres: opened lazily in the process that uses them, short transactions, errors translated once."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from pipeline.errors import LedgerUnavailable, MillraceError, SchemaMismatch
from pipeline.settings import PostgresSettings, mask_url

Row = dict[str, Any]
Connection = psycopg.Connection[Row]

# How something reaches the ledger: in a transaction of its own each time, or in the application's one for all.
Transaction = Callable[[], AbstractContextManager[Connection]]

# A transaction here takes milliseconds; what takes longer than this is stuck and holds up others.
STATEMENT_TIMEOUT_MS = 30_000
IDLE_IN_TRANSACTION_MS = 30_000

# What the database can be asked again for, unchanged: it was away, or two transactions met.
_AWAY = (
    pg.AdminShutdown,
    pg.CrashShutdown,
    pg.CannotConnectNow,
    pg.TooManyConnections,
    pg.IdleInTransactionSessionTimeout,
    pg.QueryCanceled,
    pg.LockNotAvailable,
    pg.DeadlockDetected,
    pg.SerializationFailure,
    pg.DiskFull,
    pg.ReadOnlySqlTransaction,
)


def translate(error: Exception, where: str) -> MillraceError | None:
    """The Millrace error for what psycopg or its pool raised; None where it is a fault of our own SQL."""
    if isinstance(error, PoolTimeout | PoolClosed):
        return LedgerUnavailable(f"Postgres at {where} does not answer. See `millrace status`.")
    if isinstance(error, pg.UndefinedTable | pg.UndefinedColumn | pg.InvalidCatalogName):
        return SchemaMismatch(f"Postgres at {where}: {_first_line(error)}. Run `millrace migrate`.")
    if isinstance(error, _AWAY):
        return LedgerUnavailable(f"Postgres at {where}: {_first_line(error)}.")
    # A broken connection has no SQLSTATE; one that has was answered by a server that is there.
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and error.sqlstate is None:
        return LedgerUnavailable(f"Postgres at {where} does not answer: {_first_line(error)}.")
    if isinstance(error, psycopg.OperationalError):
        return LedgerUnavailable(f"Postgres at {where}: {_first_line(error)}.")
    return None


def _check(connection: Connection) -> None:
    """Raises psycopg.OperationalError for a connection that its server closed while it rested.

    Such a one has the server's farewell to be read; one that is well has nothing, and saves the question.
    """
    resting = select.poll()
    resting.register(connection.pgconn.socket, select.POLLIN)
    if resting.poll(0):
        ConnectionPool.check_connection(connection)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")


class Ledger:
    """The pool of one process. A forked child opens its own at first use."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._url = settings.url.get_secret_value()
        self._lock = threading.Lock()
        self._pool: ConnectionPool[Connection] | None = None
        self._pid = 0

    @property
    def where(self) -> str:
        """The address without its password, for messages."""
        return mask_url(self._url)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back by an exception.

        Raises LedgerUnavailable where Postgres is away, SchemaMismatch where it was not migrated.
        """
        try:
            with self._open().connection(timeout=self._settings.connect_timeout) as connection:
                yield connection
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            translated = translate(error, self.where)
            if translated is None:
                raise
            raise translated from error

    def close(self) -> None:
        with self._lock:
            if self._pool is not None and self._pid == os.getpid():
                self._pool.close()
            self._pool = None

    def _open(self) -> ConnectionPool[Connection]:
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                if not self._url:
                    raise LedgerUnavailable(
                        "No stack is running here and no MILLRACE_POSTGRES__URL is set. Start one with `millrace up`."
                    )
                self._pool = ConnectionPool(
                    self._url,
                    connection_class=psycopg.Connection[Row],
                    min_size=0,
                    max_size=self._settings.pool_size,
                    max_idle=60,
                    open=True,
                    check=_check,
                    # Retries of one connection attempt end before the caller's own patience does.
                    reconnect_timeout=self._settings.connect_timeout,
                    configure=self._configure,
                    kwargs={
                        "row_factory": dict_row,
                        "connect_timeout": max(2, int(self._settings.connect_timeout)),
                        "application_name": "millrace",
                    },
                )
                self._pid = os.getpid()
            return self._pool

    def _configure(self, connection: Connection) -> None:
        if not self._settings.prepared_statements:
            connection.prepare_threshold = None
        connection.execute(f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}")
        connection.execute(f"SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}")
        connection.commit()
