"""The sums of money: what jobs, tenants and all together have spent, doubt and hold back, changed together.

Lock order: reservations (by batch), jobs (by id), spending (that of all first, so that one at a time decides).
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date

from pipeline.ledger.budgets import ALL, MONTH, TOLERANCE
from pipeline.ledger.engine import Connection


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation. job_id: None for what is no job's; month: in which it was made, its first day."""

    batch_id: int
    job_id: uuid.UUID | None
    tenant: str
    month: date
    cost: float


def held(connection: Connection, batch_ids: Collection[int]) -> list[Held]:
    """The reservations of these batches, locked."""
    if not batch_ids:
        return []
    rows = connection.execute(
        """SELECT batch_id, job_id, tenant, date_trunc('month', created_at AT TIME ZONE 'UTC')::date AS month, cost
             FROM reservations WHERE batch_id = ANY(%s) ORDER BY batch_id FOR UPDATE""",
        (sorted(batch_ids),),
    ).fetchall()
    return [Held(**row) for row in rows]


def hold(connection: Connection, reservations: Collection[Held]) -> None:
    """Adds reservations to those that there are, and to the sums. They are of this month."""
    if not reservations:
        return
    connection.execute(
        """INSERT INTO reservations (batch_id, job_id, tenant, cost)
           SELECT * FROM unnest(%s::bigint[], %s::uuid[], %s::text[], %s::float8[])""",
        (
            [item.batch_id for item in reservations],
            [item.job_id for item in reservations],
            [item.tenant for item in reservations],
            [item.cost for item in reservations],
        ),
    )
    change = Change()
    for item in reservations:
        change.hold(item, item.cost)
    change.apply(connection)


def release(connection: Connection, reservations: Collection[Held]) -> None:
    """Takes (locked) reservations away, and out of the sums."""
    change = Change()
    change.release(reservations)
    change.apply(connection)
    connection.execute(
        "DELETE FROM reservations WHERE batch_id = ANY(%s)", (sorted(item.batch_id for item in reservations),)
    )


def lock(connection: Connection, job_ids: Collection[uuid.UUID], tenants: Collection[str]) -> date:
    """Takes the row locks of jobs, and of what tenants have spent; makes the rows of this month. Returns its first
    day."""
    if job_ids:
        connection.execute(
            "SELECT 1 FROM jobs WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE", (sorted(job_ids),)
        ).fetchall()
    connection.execute(
        f"""INSERT INTO spending (month, tenant) SELECT {MONTH}, t FROM unnest(%s::text[]) AS t ORDER BY t
            ON CONFLICT DO NOTHING""",
        (sorted(tenants),),
    )
    rows = connection.execute(
        f"""SELECT {MONTH} AS month FROM spending WHERE tenant = ANY(%s) AND (month = {MONTH} OR reserved <> 0)
             ORDER BY tenant, month FOR NO KEY UPDATE""",
        (sorted(tenants),),
    ).fetchall()
    month: date = rows[0]["month"]
    return month


class Change:
    """What is to be added to jobs and to the sums of months."""

    def __init__(self) -> None:
        self._cost: dict[uuid.UUID, float] = defaultdict(float)
        self._doubtful: dict[uuid.UUID, float] = defaultdict(float)
        self._reserved: dict[uuid.UUID, float] = defaultdict(float)
        # (tenant, month: None for this one) -> [cost, doubtful, reserved]
        self._sums: dict[tuple[str, date | None], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def spend(self, job_id: uuid.UUID | None, tenant: str, cost: float, doubtful: float) -> None:
        if not cost and not doubtful:
            return
        if job_id is not None:
            self._cost[job_id] += cost
            self._doubtful[job_id] += doubtful
        for name in {ALL, tenant}:
            self._sums[name, None][0] += cost
            self._sums[name, None][1] += doubtful

    def hold(self, item: Held, cost: float) -> None:
        """cost: what more is held back of a reservation's owner and month; negative: less."""
        if item.job_id is not None:
            self._reserved[item.job_id] += cost
        for name in {ALL, item.tenant}:
            self._sums[name, item.month][2] += cost

    def release(self, reservations: Iterable[Held]) -> None:
        for item in reservations:
            self.hold(item, -item.cost)

    def apply(self, connection: Connection) -> None:
        self._change_jobs(connection)
        self._change_months(connection)

    def _change_jobs(self, connection: Connection) -> None:
        job_ids = sorted(self._cost.keys() | self._reserved.keys())
        if not job_ids:
            return
        # What is left of sums of prices is no money.
        connection.execute(
            f"""WITH locked AS MATERIALIZED (
                  SELECT j.id, a.cost, a.doubtful, a.reserved
                    FROM jobs j JOIN unnest(%s::uuid[], %s::float8[], %s::float8[], %s::float8[])
                                       AS a (id, cost, doubtful, reserved) ON a.id = j.id
                   ORDER BY j.id FOR NO KEY UPDATE OF j)
               UPDATE jobs j SET cost = j.cost + a.cost, cost_doubtful = j.cost_doubtful + a.doubtful,
                      cost_reserved = CASE WHEN j.cost_reserved + a.reserved < {TOLERANCE} THEN 0
                                           ELSE j.cost_reserved + a.reserved END
                 FROM locked a WHERE j.id = a.id""",
            (
                job_ids,
                [self._cost.get(job_id, 0.0) for job_id in job_ids],
                [self._doubtful.get(job_id, 0.0) for job_id in job_ids],
                [self._reserved.get(job_id, 0.0) for job_id in job_ids],
            ),
        )

    def _change_months(self, connection: Connection) -> None:
        if not self._sums:
            return
        keys = list(self._sums)
        connection.execute(
            f"""INSERT INTO spending AS s (month, tenant, cost, doubtful, reserved)
                SELECT coalesce(a.month, {MONTH}), a.tenant, sum(a.cost), sum(a.doubtful), sum(a.reserved)
                  FROM unnest(%s::date[], %s::text[], %s::float8[], %s::float8[], %s::float8[])
                         AS a (month, tenant, cost, doubtful, reserved)
                 GROUP BY 1, 2 ORDER BY 2, 1
                ON CONFLICT (month, tenant) DO UPDATE
                   SET cost = s.cost + excluded.cost, doubtful = s.doubtful + excluded.doubtful,
                       reserved = CASE WHEN s.reserved + excluded.reserved < {TOLERANCE} THEN 0
                                       ELSE s.reserved + excluded.reserved END""",
            (
                [month for _, month in keys],
                [tenant for tenant, _ in keys],
                *([self._sums[key][place] for key in keys] for place in range(3)),
            ),
        )
