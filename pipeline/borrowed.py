"""The application's own connection, lent for one call: what is written is committed or rolled back by its owner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pipeline.errors import InvalidRequest
from pipeline.ledger.engine import Connection, Transaction


def borrowed_transaction(connection: Any) -> Transaction:
    """Turns a psycopg connection, or an SQLAlchemy connection or session over psycopg, into what `enqueue` writes with.

    Raises InvalidRequest for anything else, for autocommit, and for a database without the ledger's tables.
    """
    driver = _driver_connection(connection)
    if driver.autocommit and driver.info.transaction_status != TransactionStatus.INTRANS:
        raise InvalidRequest(
            "this connection is in autocommit: the job would not be part of any transaction; begin one first"
        )
    with _as_ledger(driver) as ledger:
        row = ledger.execute("SELECT to_regclass('jobs') IS NOT NULL AND to_regclass('staged') IS NOT NULL AS ours")
        if not (found := row.fetchone()) or not found["ours"]:
            raise InvalidRequest(
                f"the database {driver.info.dbname!r} of this connection has no ledger; transactional enqueue needs "
                "an application that shares Millrace's database"
            )
    return lambda: _as_ledger(driver)


@contextmanager
def _as_ledger(driver: psycopg.Connection[Any]) -> Iterator[Connection]:
    """The connection with the row form that the ledger reads, given back as it was. Nothing is committed here."""
    factory = driver.row_factory
    driver.row_factory = dict_row
    try:
        yield cast(Connection, driver)
    finally:
        driver.row_factory = factory


def _driver_connection(connection: Any) -> psycopg.Connection[Any]:
    from sqlalchemy.engine import Connection as EngineConnection
    from sqlalchemy.orm import Session

    if isinstance(connection, Session):
        connection = connection.connection()
    if isinstance(connection, EngineConnection):
        # The first statement begins SQLAlchemy's own transaction, so that its commit() knows of the work.
        connection.exec_driver_sql("SELECT 1")
        connection = connection.connection.driver_connection
    if not isinstance(connection, psycopg.Connection):
        raise InvalidRequest(
            f"{type(connection).__module__}.{type(connection).__qualname__} cannot carry a job; "
            "give a psycopg 3 connection, or an SQLAlchemy connection or session over postgresql+psycopg"
        )
    return connection
