"""What was paid for is made durable: tried again while the ledger is away, and written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from pipeline.errors import LedgerUnavailable
from pipeline.ledger.engine import Connection, Ledger
from pipeline.observe import operation
from pipeline.patience import Patience

_T = TypeVar("_T")


class Keeper:
    """Of one purchase: what comes in an outage waits for its end together, `seconds` at most.

    After that everything is tried once more and no longer, until the ledger is there again.
    """

    def __init__(self, ledger: Ledger, seconds: float) -> None:
        self._ledger = ledger
        self._patience = Patience(seconds)

    def keep(self, write: Callable[[Connection], _T]) -> _T:
        """What `write` returns, committed. It may be called several times, and is committed once.

        Raises LedgerUnavailable when the patience is at its end.
        """
        return self._patience.call(_Kept(self._ledger, write).commit)


class _Kept(Generic[_T]):
    """Something that is to be written once."""

    def __init__(self, ledger: Ledger, write: Callable[[Connection], _T]) -> None:
        self._ledger = ledger
        self._write = write
        self._tried: tuple[str, _T] | None = None

    def commit(self) -> _T:
        with operation("embed.store"), self._ledger.transaction() as connection:
            # The commit whose answer was lost may have been carried out: what was paid would be counted twice.
            if self._tried is not None and _is_committed(connection, self._tried[0]):
                return self._tried[1]
            result = self._write(connection)
            self._tried = (_number(connection), result)
        return result


def _number(connection: Connection) -> str:
    row = connection.execute("SELECT pg_current_xact_id()::text AS number").fetchone()
    assert row is not None
    return str(row["number"])


def _is_committed(connection: Connection, number: str) -> bool:
    """Raises LedgerUnavailable where that is not decided yet: its server process has not seen that we are gone."""
    row = connection.execute("SELECT pg_xact_status(%s::text::xid8) AS status", (number,)).fetchone()
    assert row is not None
    if row["status"] == "in progress":
        raise LedgerUnavailable("Postgres is still busy with what was to be stored when the connection broke.")
    return bool(row["status"] == "committed")
