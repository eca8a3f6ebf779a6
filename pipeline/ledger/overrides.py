"""Values that an operator, or the system itself, has put in the place of a setting or a default while it runs.

In effect within one look of whoever reads them, without a restart; `clear` brings the setting back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.ledger.engine import Connection

# From how many seconds on an operation is logged as slow; 0: none is.
SLOW_SECONDS = "logs.slow_seconds"


@dataclass(frozen=True, slots=True)
class Override:
    """reason: who changed it, or why; changed_at: in UTC."""

    name: str
    value: float
    reason: str | None
    changed_at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "reason": self.reason,
            "changed_at": self.changed_at.isoformat(),
        }


def read(connection: Connection) -> dict[str, float]:
    """Name -> value of every override."""
    return {row["name"]: row["value"] for row in connection.execute("SELECT name, value FROM overrides").fetchall()}


def listing(connection: Connection) -> list[Override]:
    """Every override with its reason, by name."""
    rows = connection.execute("SELECT name, value, reason, changed_at FROM overrides ORDER BY name").fetchall()
    return [Override(**row) for row in rows]


def get(connection: Connection, name: str) -> Override | None:
    """One override; None where there is none."""
    row = connection.execute(
        "SELECT name, value, reason, changed_at FROM overrides WHERE name = %s", (name,)
    ).fetchone()
    return Override(**row) if row else None


def set(connection: Connection, name: str, value: float, reason: str | None = None) -> None:
    """Puts a value in place, or another one. Its time changes only where the value does."""
    connection.execute(
        """INSERT INTO overrides (name, value, reason) VALUES (%s, %s, %s)
           ON CONFLICT (name) DO UPDATE
              SET value = excluded.value, reason = excluded.reason,
                  changed_at = CASE WHEN overrides.value = excluded.value THEN overrides.changed_at
                                    ELSE clock_timestamp() END""",
        (name, value, reason),
    )


def clear(connection: Connection, name: str) -> bool:
    """Takes an override back. False where there was none."""
    return connection.execute("DELETE FROM overrides WHERE name = %s", (name,)).rowcount > 0
