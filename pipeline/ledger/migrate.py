"""Schema migrations: `millrace migrate`, the embedded stack and the compose file's one-shot service run them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import errors as pg
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from pipeline.errors import LedgerUnavailable, SchemaMismatch
from pipeline.settings import mask_url

# Two `millrace migrate` at once: the second waits for the first and finds nothing to do.
_MIGRATION_LOCK = 7_310_911

# What waits for a table's lock has everybody else wait behind it: rather give way, and try again.
_LOCK_TIMEOUT_MS = 2_000
_PAUSE_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0


class _Busy(Exception):
    """Workers hold what the migration needs, or it met one of them in a deadlock."""


def upgrade(url: str) -> None:
    """Brings the database to this version's schema; repeating it changes nothing. Workers may be at work meanwhile.

    Raises LedgerUnavailable where Postgres does not answer, or something holds its tables for a minute.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            _upgrade(url)
            return
        except LedgerUnavailable as error:
            if not isinstance(error.__cause__, _Busy) or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_SECONDS)


def _upgrade(url: str) -> None:
    """One transaction: all of it or nothing."""
    with _connect(url) as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        command.upgrade(_config(connection), "head")
        connection.commit()


def current(url: str) -> str | None:
    """The revision of the database; None before the first migration."""
    with _connect(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """The revision that this code needs."""
    revision = ScriptDirectory.from_config(_config(None)).get_current_head()
    if revision is None:
        raise SchemaMismatch("this installation carries no migrations; install it again")
    return revision


def _config(connection: Connection | None) -> Config:
    config = Config()
    # Alembic reads its options through configparser, for which a % in a path is syntax.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def _connect(url: str) -> Iterator[Connection]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    except OperationalError as error:
        reason = str(error.orig).strip().split("\n", 1)[0]
        if isinstance(error.orig, pg.LockNotAvailable | pg.DeadlockDetected):
            busy = f"Postgres at {mask_url(url)}: {reason}; something holds its tables for long. Try again."
            raise LedgerUnavailable(busy) from _Busy(reason)
        raise LedgerUnavailable(f"Postgres at {mask_url(url)} does not answer: {reason}.") from error
    finally:
        engine.dispose()
