"""Alerts: one open row of each type and subject, from when something is first seen until it has cleared.

What is owed to the callbacks of workers is in the row too (`raise_owed`, `clear_owed`), written with what is told: a
worker that is killed in between leaves it owed, and the next one tells it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from pipeline.ledger.engine import Connection, Row

# One evaluation at a time: two would both insert what neither has seen.
_LOCK = 7_310_914

# A test alert: raised and cleared at once, told like any other.
TEST = "test"


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that was raised; times in UTC. subject: what it is about, empty for the whole. metrics: the figures it
    was raised by, or last seen with. action: what the system did about it. severity: low, medium, high, critical.
    gone_at: since when it is not seen any more; some time later it clears."""

    id: int
    type: str
    subject: str
    severity: str
    message: str
    metrics: Mapping[str, float]
    action: str | None
    began_at: datetime
    raised_at: datetime
    seen_at: datetime
    cleared_at: datetime | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    gone_at: datetime | None = None

    @property
    def event(self) -> str:
        """alert.raised or alert.cleared: as which it is told."""
        return "alert.raised" if self.cleared_at is None else "alert.cleared"

    @property
    def state(self) -> str:
        """active, acknowledged (active, and somebody has seen it) or cleared."""
        if self.cleared_at is not None:
            return "cleared"
        return "active" if self.acknowledged_at is None else "acknowledged"

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (docs/operations.md)."""
        return {
            "id": self.id,
            "type": self.type,
            "subject": self.subject,
            "severity": self.severity,
            "state": self.state,
            "message": self.message,
            "metrics": dict(self.metrics),
            "action": self.action,
            "began_at": self.began_at.isoformat(),
            "raised_at": self.raised_at.isoformat(),
            "seen_at": self.seen_at.isoformat(),
            "gone_at": self.gone_at.isoformat() if self.gone_at else None,
            "cleared_at": self.cleared_at.isoformat() if self.cleared_at else None,
            "acknowledged_at": self.acknowledged_at.isoformat() if self.acknowledged_at else None,
            "acknowledged_by": self.acknowledged_by,
        }


_COLUMNS = ", ".join(f"a.{name}" for name in Alert.__slots__)

_STANDING = ("began_at", "seen_at", "raised_at", "gone_at", "cleared_at")


def lock_open(connection: Connection) -> tuple[float, list[Row]]:
    """The ledger's clock in seconds, and the open rows (those on their way too) with their times in seconds; nobody
    else evaluates until the commit."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    times = ", ".join(f"extract(epoch FROM {name})::float8 AS {name}" for name in _STANDING)
    rows = connection.execute(
        f"""SELECT id, type, subject, severity, message, metrics, {times} FROM alerts
             WHERE cleared_at IS NULL ORDER BY id FOR UPDATE"""
    ).fetchall()
    now = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8 AS now").fetchone()
    assert now is not None
    return now["now"], rows


def put(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Writes open rows as they stand now: of a new one (id: None) or another. Times are in seconds, or None; raise_owed
    and clear_owed: whether that is to be told, which stays so until it is. Returns the ids, in order."""
    ids = []
    for row in rows:
        given = {**row, "metrics": Jsonb(dict(row["metrics"]))}
        times = {name: f"to_timestamp(%({name})s::float8)" for name in _STANDING}
        if row["id"] is None:
            found = connection.execute(
                f"""INSERT INTO alerts (type, subject, severity, message, metrics, {", ".join(_STANDING)},
                                        raise_owed, clear_owed)
                    VALUES (%(type)s, %(subject)s, %(severity)s, %(message)s, %(metrics)s,
                            {", ".join(times.values())}, %(raise_owed)s, %(clear_owed)s) RETURNING id""",
                given,
            ).fetchone()
            assert found is not None
            ids.append(int(found["id"]))
        else:
            connection.execute(
                f"""UPDATE alerts SET severity = %(severity)s, message = %(message)s, metrics = %(metrics)s,
                           {", ".join(f"{name} = {value}" for name, value in times.items())},
                           raise_owed = raise_owed OR %(raise_owed)s, clear_owed = clear_owed OR %(clear_owed)s
                     WHERE id = %(id)s""",
                given,
            )
            ids.append(int(row["id"]))
    return ids


def forget_unraised(connection: Connection, ids: Sequence[int]) -> None:
    """Drops rows of what was over before it was an alert."""
    connection.execute("DELETE FROM alerts WHERE id = ANY(%s) AND raised_at IS NULL", (list(ids),))


def note_action(connection: Connection, key: tuple[str, str], action: str) -> None:
    """What was done about an open alert; the newest first."""
    connection.execute(
        """UPDATE alerts SET action = left(%s || coalesce('; before: ' || action, ''), 500)
            WHERE type = %s AND subject = %s AND cleared_at IS NULL""",
        (action, *key),
    )


def owed(connection: Connection, limit: int) -> list[tuple[Alert, str]]:
    """What the callbacks of workers are still to be told, the oldest first: an alert as of the event, and the event
    (raised, cleared)."""
    rows = connection.execute(
        f"""SELECT {_COLUMNS}, a.raise_owed, a.clear_owed FROM alerts a
             WHERE (a.raise_owed OR a.clear_owed) AND a.raised_at IS NOT NULL ORDER BY a.id LIMIT %s""",
        (limit,),
    ).fetchall()
    found = []
    for row in rows:
        alert = _alert(row)
        if row["raise_owed"]:
            found.append((replace(alert, cleared_at=None), "raised"))
        if row["clear_owed"]:
            found.append((alert, "cleared"))
    return found


def told(connection: Connection, alert: Alert, event: str) -> None:
    """The callbacks were told. One whose severity has risen since is told again."""
    column = "raise_owed" if event == "raised" else "clear_owed"
    connection.execute(
        f"UPDATE alerts SET {column} = false WHERE id = %s AND (severity = %s OR cleared_at IS NOT NULL)",
        (alert.id, alert.severity),
    )


def get(connection: Connection, alert_id: int) -> Alert | None:
    """One alert that was raised; None where there is none."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM alerts a WHERE a.id = %s AND a.raised_at IS NOT NULL", (alert_id,)
    ).fetchone()
    return _alert(row) if row else None


def listing(
    connection: Connection,
    *,
    severities: Sequence[str],
    since_seconds: float | None = None,
    cleared: bool = False,
    limit: int = 100,
) -> list[Alert]:
    """Alerts of these severities, the newest first. since_seconds: those that were open at some time since then,
    cleared ones too; cleared: those that are over as well; otherwise those that are active."""
    rows = connection.execute(
        f"""SELECT {_COLUMNS} FROM alerts a
             WHERE a.raised_at IS NOT NULL AND a.severity = ANY(%(severities)s)
               AND (%(cleared)s OR a.cleared_at IS NULL
                    OR a.cleared_at > clock_timestamp() - make_interval(secs => %(since)s::float8))
               AND (%(since)s::float8 IS NULL OR a.cleared_at IS NULL
                    OR a.cleared_at > clock_timestamp() - make_interval(secs => %(since)s::float8))
             ORDER BY a.raised_at DESC, a.id DESC LIMIT %(limit)s""",
        {"severities": list(severities), "since": since_seconds, "cleared": cleared, "limit": limit},
    ).fetchall()
    return [_alert(row) for row in rows]


def acknowledge(connection: Connection, ids: Sequence[int] | None, by: str) -> list[int]:
    """Somebody has seen active alerts: these, or all (None). Those that are acknowledged already stay as they are.
    Returns the ids that are acknowledged now."""
    rows = connection.execute(
        """UPDATE alerts SET acknowledged_at = clock_timestamp(), acknowledged_by = %s
            WHERE id IN (SELECT id FROM alerts
                          WHERE raised_at IS NOT NULL AND cleared_at IS NULL AND acknowledged_at IS NULL
                            AND (%s::bigint[] IS NULL OR id = ANY(%s::bigint[])) ORDER BY id FOR UPDATE)
        RETURNING id""",
        (by, ids and list(ids), ids and list(ids)),
    ).fetchall()
    return sorted(row["id"] for row in rows)


def missing(connection: Connection, ids: Sequence[int]) -> list[int]:
    """Those of the ids that no raised alert has."""
    rows = connection.execute(
        "SELECT id FROM alerts WHERE id = ANY(%s) AND raised_at IS NOT NULL", (list(ids),)
    ).fetchall()
    return sorted(set(ids) - {row["id"] for row in rows})


def raise_test(connection: Connection, message: str) -> Alert:
    """A test alert: raised and cleared, and owed to nobody yet."""
    row = connection.execute(
        f"""INSERT INTO alerts AS a (type, severity, message, raised_at, cleared_at)
            VALUES (%s, 'low', %s, clock_timestamp(), clock_timestamp()) RETURNING {_COLUMNS}""",
        (TEST, message),
    ).fetchone()
    assert row is not None
    return _alert(row)


def active_by_severity(connection: Connection) -> dict[str, int]:
    """Severity -> active alerts that nobody has acknowledged."""
    rows = connection.execute(
        """SELECT severity, count(*) AS n FROM alerts
            WHERE cleared_at IS NULL AND raised_at IS NOT NULL AND acknowledged_at IS NULL GROUP BY severity"""
    ).fetchall()
    return {row["severity"]: row["n"] for row in rows}


def _alert(row: Row) -> Alert:
    return Alert(**{name: row[name] for name in Alert.__slots__})
