"""What is owed to applications that asked to be told when a job has ended, and to who is told of alerts: one delivery
of a job, or of an event of an alert, until it was taken."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.ledger.engine import Connection, Row
from pipeline.settings import WebhookSettings

# Each wait is so many times as long as the one before; with twelve attempts from 5 seconds on, about a day in all.
_GROWTH = 2.5
# Of a wait, so much is by chance: webhooks that failed together do not come again together.
_JITTER = 0.25


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery that this process holds under this epoch. attempts: with this one.

    About a job (job_id), or an event (raised, cleared) of an alert (alert_id).
    """

    id: int
    job_id: uuid.UUID | None
    url: str
    epoch: int
    attempts: int
    alert_id: int | None = None
    event: str | None = None

    @property
    def message_id(self) -> str:
        """The same at every attempt, and of no other message."""
        return f"msg_{self.job_id.hex if self.job_id else f'alert{self.alert_id}'}_{self.id}"

    @property
    def about(self) -> str:
        """For messages."""
        return f"job {self.job_id}" if self.job_id else f"alert {self.alert_id} ({self.event})"


def owe(connection: Connection, ended: Sequence[Row]) -> None:
    """In the transaction that ends jobs (rows of id, webhook): those who asked will be told.

    A job that was gone on with, and has ended again, is told again, as another message.
    """
    asked = [row for row in ended if row["webhook"] is not None]
    if asked:
        connection.execute(
            """INSERT INTO webhook_deliveries (job_id, url) SELECT * FROM unnest(%s::uuid[], %s::text[])
               ON CONFLICT (job_id) DO UPDATE
                  SET id = DEFAULT, state = 'ready', epoch = webhook_deliveries.epoch + 1, lease_until = NULL,
                      attempts = 0, next_attempt_at = now(), status = NULL, error = NULL, created_at = now(),
                      ended_at = NULL""",
            ([row["id"] for row in asked], [row["webhook"] for row in asked]),
        )


def owe_alerts(connection: Connection, events: Sequence[tuple[int, str]], url: str) -> None:
    """In the transaction that raises or clears alerts: (id, raised or cleared) will be told.

    One that is raised again, because its severity has risen, is told again, as another message.
    """
    if events:
        connection.execute(
            """INSERT INTO webhook_deliveries (alert_id, event, url)
               SELECT alert, event, %s FROM unnest(%s::bigint[], %s::text[]) AS e (alert, event)
               ON CONFLICT (alert_id, event) DO UPDATE
                  SET id = DEFAULT, url = excluded.url, state = 'ready', epoch = webhook_deliveries.epoch + 1,
                      lease_until = NULL, attempts = 0, next_attempt_at = now(), status = NULL, error = NULL,
                      created_at = now(), ended_at = NULL""",
            (url, [alert for alert, _ in events], [event for _, event in events]),
        )


def of_alert(connection: Connection, alert_id: int) -> list[Row]:
    """The deliveries of an alert: event, url, state, attempts, status, error."""
    return connection.execute(
        "SELECT event, url, state, attempts, status, error FROM webhook_deliveries WHERE alert_id = %s ORDER BY id",
        (alert_id,),
    ).fetchall()


def claim(connection: Connection, limit: int, lease_seconds: float, max_attempts: int) -> list[Delivery]:
    """Takes deliveries that are due, the longest due first. An attempt counts when it begins: an endpoint that takes a
    worker down with it is not told for ever, but given up when nobody came back from the last attempt."""
    connection.execute(
        """UPDATE webhook_deliveries SET state = 'dead', lease_until = NULL, ended_at = clock_timestamp(),
                  error = coalesce(error, 'its worker was lost at the last attempt')
            WHERE state = 'ready' AND attempts >= %s AND lease_until < clock_timestamp()""",
        (max_attempts,),
    )
    rows = connection.execute(
        """WITH picked AS (
             SELECT d.id FROM webhook_deliveries d LEFT JOIN jobs j ON j.id = d.job_id
              WHERE d.state = 'ready' AND d.next_attempt_at <= clock_timestamp()
                AND (d.lease_until IS NULL OR d.lease_until < clock_timestamp())
                AND (d.job_id IS NULL OR j.finished_at IS NOT NULL)
              ORDER BY d.next_attempt_at LIMIT %s FOR NO KEY UPDATE OF d SKIP LOCKED)
           UPDATE webhook_deliveries d
              SET epoch = epoch + 1, attempts = attempts + 1,
                  lease_until = clock_timestamp() + make_interval(secs => %s)
             FROM picked WHERE d.id = picked.id
        RETURNING d.id, d.job_id, d.url, d.epoch, d.attempts, d.alert_id, d.event""",
        (limit, lease_seconds),
    ).fetchall()
    return [Delivery(**row) for row in rows]


def complete(connection: Connection, delivery: Delivery, status: int) -> bool:
    """It was taken. False where somebody else has the delivery by now."""
    return _write(
        connection,
        delivery,
        "state = 'delivered', status = %(status)s, error = NULL, ended_at = clock_timestamp()",
        {"status": status},
    )


def fail(
    connection: Connection, delivery: Delivery, status: int | None, error: str, settings: WebhookSettings, *, gone: bool
) -> bool:
    """It was not taken, and is tried again later, or given up (state `dead`): after the last attempt, or where the
    endpoint is gone for good. False where somebody else has the delivery by now."""
    if gone or delivery.attempts >= settings.max_attempts:
        return _write(
            connection,
            delivery,
            "state = 'dead', status = %(status)s, error = %(error)s, ended_at = clock_timestamp()",
            {"status": status, "error": error},
        )
    return _write(
        connection,
        delivery,
        """status = %(status)s, error = %(error)s,
           next_attempt_at = clock_timestamp() + make_interval(
             secs => %(wait)s * (1 + %(jitter)s * (2 * random() - 1)))""",
        {
            "status": status,
            "error": error,
            "wait": settings.backoff_seconds * _GROWTH ** (delivery.attempts - 1),
            "jitter": _JITTER,
        },
    )


def _write(connection: Connection, delivery: Delivery, changes: str, given: dict[str, object]) -> bool:
    return bool(
        connection.execute(
            f"""UPDATE webhook_deliveries SET lease_until = NULL, {changes}
                 WHERE id = %(id)s AND epoch = %(epoch)s AND state = 'ready'""",
            {**given, "id": delivery.id, "epoch": delivery.epoch},
        ).rowcount
    )


def counts(connection: Connection) -> dict[str, int]:
    """Deliveries that are still owed, and those that were given up."""
    row = connection.execute(
        """SELECT count(*) FILTER (WHERE state = 'ready') AS owed, count(*) FILTER (WHERE state = 'dead') AS dead
             FROM webhook_deliveries WHERE state <> 'delivered'"""
    ).fetchone()
    return {"owed": row["owed"], "dead": row["dead"]} if row else {}
