"""Connections to Postgres: opened lazily in the process that uses them, short transactions, errors translated once.

Nobody waits for ever: a server that does not answer (frozen, or behind a network that went silent) ends every wait, and
who was told that it is away a moment ago is told so again at once.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any, cast

import psycopg
from psycopg import errors as pg
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from pipeline.circuits import Admission, Circuit
from pipeline.errors import LedgerFull, LedgerUnavailable, MillraceError, SchemaMismatch
from pipeline.observe import record
from pipeline.settings import PostgresSettings, mask_url

Row = dict[str, Any]
Connection = psycopg.Connection[Row]

# How something reaches the ledger: in a transaction of its own each time, or in the application's one for all.
Transaction = Callable[[], AbstractContextManager[Connection]]

# A transaction here takes milliseconds; what takes longer is stuck and holds up others.
IDLE_IN_TRANSACTION_MS = 30_000

# A server that is there ends a statement after the setting; one that has not said so by then is frozen, or gone.
_ANSWER_SECONDS = 5.0

# Short, since claims are lost after seconds without a heartbeat, and since an attempt is cheap.
_RESTS = (0.25, 0.5, 1.0, 2.0)

_TELL_SECONDS = 5.0

# A host that vanished does not close its connections. Unanswered data ends one after `tcp_user_timeout` (milliseconds),
# silence after idle + count * interval (seconds). Of a frozen server the kernel answers all the same.
_NETWORK = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

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
    pg.ReadOnlySqlTransaction,
)


def translate(error: Exception, where: str, refusal: str = "") -> MillraceError | None:
    """The Millrace error for what psycopg or its pool raised; None where it is a fault of our own SQL.

    refusal: why no connection could be opened, where that was so.
    """
    if isinstance(error, PoolTimeout | PoolClosed):
        why = f": {refusal}" if refusal else ""
        return LedgerUnavailable(f"Postgres at {where} does not answer{why}. See `millrace status`.")
    if isinstance(error, pg.UndefinedTable | pg.UndefinedColumn | pg.InvalidCatalogName):
        return SchemaMismatch(f"Postgres at {where}: {_first_line(error)}. Run `millrace migrate`.")
    if isinstance(error, pg.DiskFull):
        return LedgerFull(
            f"Postgres at {where} has no room on its disk: {_first_line(error)}. "
            "Work waits, and goes on by itself when there is room."
        )
    # A broken connection has no SQLSTATE; one that has was answered by a server that is there.
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and error.sqlstate is None:
        return LedgerUnavailable(f"Postgres at {where} does not answer: {_first_line(error)}.")
    if isinstance(error, (*_AWAY, psycopg.OperationalError)):
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


def clock(connection: Connection) -> datetime:
    """Now, as the database has it: the clock that everybody shares."""
    row = connection.execute("SELECT clock_timestamp() AS now").fetchone()
    assert row is not None
    return cast(datetime, row["now"])


class _Patient(psycopg.Connection[Row]):
    """A connection that gives up on a server that does not answer."""

    patience: float | None = None  # seconds for one answer; set once it is configured

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        if timeout is not None or self.patience is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.patience)
        except pg._WaitTimeout:
            # Whatever it was asked may still come; nobody can go on with this connection.
            self.pgconn.finish()
            raise NoAnswer(f"no answer in {self.patience:g} seconds") from None


class NoAnswer(psycopg.OperationalError):
    """The server is connected, and silent."""


def _connections(note: Callable[[str], None]) -> type[_Patient]:
    """The class of a pool's connections; `note` is told why one could not be opened, which the pool keeps to itself."""

    class Noted(_Patient):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().connect(*args, **kwargs)
            except psycopg.Error as error:
                note(_first_line(error))
                raise

    return Noted


class Ledger:
    """The pool of one process. A forked child opens its own at first use."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._settings = settings
        self._url = settings.url.get_secret_value()
        self._lock = threading.Lock()
        self._pool: ConnectionPool[_Patient] | None = None
        self._pid = 0
        self._circuit = Circuit(_RESTS)
        self._answered = 0.0  # when a transaction last ended well
        self._refusal = ""  # why the last connection could not be opened
        self._told_at = -_TELL_SECONDS
        # Told when the disk is found full, not too often, in the thread that found it.
        self.on_full: Callable[[LedgerFull], None] | None = None

    @property
    def where(self) -> str:
        """The address without its password, for messages."""
        return mask_url(self._url)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back by an exception.

        Raises LedgerUnavailable where Postgres is away (LedgerFull where its disk is full), SchemaMismatch where it was
        not migrated.
        """
        admission = self._circuit.admit()
        if admission is Admission.REST:
            raise LedgerUnavailable(
                f"Postgres at {self.where} did not answer a moment ago ({self._circuit.why}); it is asked again soon."
            )
        began = time.monotonic()
        failed: type[MillraceError] | None = None
        try:
            with self._open().connection(timeout=self._settings.connect_timeout) as connection:
                if admission is Admission.PROBE:
                    self._ask(connection)
                yield connection
            self._answered = time.monotonic()
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            self._judge(error, began)
            translated = translate(error, self.where, self._refusal)
            if translated is None:
                raise
            failed = type(translated)
            if isinstance(translated, LedgerFull):
                self._tell(translated)
            raise translated from error
        finally:
            record("ledger.transaction", time.monotonic() - began, failed)
            if admission is Admission.PROBE:
                self._circuit.released()

    def _ask(self, connection: _Patient) -> None:
        """The probe: a resting connection says nothing of the server. The others need not wait for the transaction."""
        connection.patience = self._settings.connect_timeout
        ConnectionPool.check_connection(connection)
        connection.patience = self._patience
        self._circuit.succeeded()

    def _judge(self, error: Exception, began: float) -> None:
        """Opens the circuit where nobody answers. Where all connections were merely in use, somebody was answered."""
        if isinstance(error, PoolTimeout) and self._answered < began:
            self._circuit.failed(self._refusal or "no connection in time")
        elif isinstance(error, NoAnswer):
            self._circuit.failed(str(error))

    def _tell(self, error: LedgerFull) -> None:
        now = time.monotonic()
        if self.on_full is not None and now - self._told_at >= _TELL_SECONDS:
            self._told_at = now  # first: telling writes too, and may find the disk full
            self.on_full(error)

    def close(self) -> None:
        with self._lock:
            if self._pool is not None and self._pid == os.getpid():
                self._pool.close()
            self._pool = None

    @property
    def _patience(self) -> float:
        return self._settings.timeout + _ANSWER_SECONDS

    def _open(self) -> ConnectionPool[_Patient]:
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                if not self._url:
                    raise LedgerUnavailable(
                        "No stack is running here and no MILLRACE_POSTGRES__URL is set. Start one with `millrace up`."
                    )
                self._pool = ConnectionPool(
                    self._url,
                    connection_class=_connections(self._note),
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
                        **_NETWORK,
                    },
                )
                self._pid = os.getpid()
            return self._pool

    def _note(self, refusal: str) -> None:
        self._refusal = refusal

    def _configure(self, connection: _Patient) -> None:
        self._refusal = ""
        connection.patience = self._settings.connect_timeout
        if not self._settings.prepared_statements:
            connection.prepare_threshold = None
        connection.execute(
            f"SET statement_timeout = {int(self._settings.timeout * 1000)};"
            f"SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS};"
            "SET timezone = 'UTC'"  # times are shown as they come; a server may be set to another zone
        )
        connection.commit()
        connection.patience = self._patience
