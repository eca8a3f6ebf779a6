"""Duties: what beat asks for on a timer. Each run is claimed on its row: a second beat or a late tick is harmless."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from pipeline.ledger.engine import Connection, Row


@dataclass(frozen=True, slots=True)
class DutyClaim:
    name: str
    epoch: int


def claim(
    connection: Connection, name: str, owner: str, interval_seconds: float, lease_seconds: float
) -> DutyClaim | None:
    """Takes the duty if it is due and nobody holds it; None otherwise. The next run is due after the interval."""
    connection.execute("INSERT INTO duties (name) VALUES (%s) ON CONFLICT (name) DO NOTHING", (name,))
    row = connection.execute(
        """UPDATE duties
              SET owner = %(owner)s, epoch = epoch + 1,
                  lease_until = clock_timestamp() + make_interval(secs => %(lease)s),
                  due_at = clock_timestamp() + make_interval(secs => %(interval)s)
            WHERE name = %(name)s AND due_at <= clock_timestamp()
              AND (lease_until IS NULL OR lease_until < clock_timestamp())
        RETURNING epoch""",
        {
            "name": name,
            "owner": owner,
            "lease": lease_seconds,
            # A beat that ticks a little early must not find the duty not yet due and wait a whole interval.
            "interval": interval_seconds * 0.8,
        },
    ).fetchone()
    return DutyClaim(name, row["epoch"]) if row else None


def heartbeat(claim: DutyClaim, connection: Connection, lease_seconds: float) -> bool:
    """Extends the lease. False where another process has the duty by now."""
    return (
        connection.execute(
            """UPDATE duties SET lease_until = clock_timestamp() + make_interval(secs => %s)
                WHERE name = %s AND epoch = %s AND lease_until IS NOT NULL""",
            (lease_seconds, claim.name, claim.epoch),
        ).rowcount
        > 0
    )


def finish(
    connection: Connection, claim: DutyClaim, result: Mapping[str, Any], seconds: float, *, failed: bool
) -> None:
    """Reports a run and hands the duty back."""
    connection.execute(
        """UPDATE duties SET lease_until = NULL, ran_at = clock_timestamp(), seconds = %s, result = %s, failed = %s
            WHERE name = %s AND epoch = %s""",
        (seconds, Jsonb(dict(result)), failed, claim.name, claim.epoch),
    )


def listing(connection: Connection) -> list[Row]:
    return connection.execute(
        "SELECT name, due_at, ran_at, seconds, result, failed FROM duties ORDER BY name"
    ).fetchall()
