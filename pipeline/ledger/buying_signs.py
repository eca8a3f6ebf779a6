"""What health asks of the ledger about what is bought: few rows each, by index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.ledger.budgets import ALL, MONTH, PAUSED
from pipeline.ledger.circuits import Open
from pipeline.ledger.engine import Connection
from pipeline.ledger.routes import WILL_BE_LATE
from pipeline.settings import CostSettings

# So many of a kind are told of one by one.
_MOST_TOLD = 20
# A server may be some minutes late with an end that it has promised.
EXPIRED_SECONDS = 900.0
# What is to be done for a remote batch is begun within seconds where a worker has time.
UNTOUCHED_SECONDS = 900.0
# A step that failed so often in a row fails for a reason.
TRIED_IN_VAIN = 5
# Whether a batch was created is found out within minutes.
CREATING_SECONDS = 900.0
# A batch that may have been paid for twice is told of for so long after it was closed.
DOUBTFUL_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class RemoteSign:
    """A remote batch of which there is something to say, in words. inputs: texts in it."""

    id: int
    message: str
    inputs: int


def doubtful(connection: Connection) -> list[RemoteSign]:
    """Batches that may have been paid for more than once, or of which nobody knows whether they exist."""
    rows = connection.execute(
        """SELECT id, inputs, doubtful, jsonb_array_length(others) AS others, coalesce(error, '') AS error,
                  extract(epoch FROM clock_timestamp() - intent_at)::float8 AS seconds
             FROM remote_batches
            WHERE (closed_at IS NULL AND (doubtful
                     OR (state = 'creating' AND intent_at < clock_timestamp() - make_interval(secs => %(creating)s))))
               OR (doubtful AND closed_at > clock_timestamp() - make_interval(secs => %(told)s))
            ORDER BY id LIMIT %(most)s""",
        {"creating": CREATING_SECONDS, "told": DOUBTFUL_SECONDS, "most": _MOST_TOLD},
    ).fetchall()
    return [RemoteSign(row["id"], _doubt(row), row["inputs"]) for row in rows]


def _doubt(row: dict[str, object]) -> str:
    told = f"remote batch {row['id']} ({row['inputs']:,} texts) may have been paid for more than once"
    if not row["doubtful"]:
        told = f"nobody knows whether remote batch {row['id']} ({row['inputs']:,} texts) was created"
        told += f", for {row['seconds']:.0f} s" if isinstance(row["seconds"], float) else ""
    if row["others"]:
        told += f": {row['others']} more of its key were found"
    return told + (f"; {row['error']}" if row["error"] else "")


def stuck(connection: Connection) -> list[RemoteSign]:
    """Open batches that do not end when they should, or for which nobody does what is to be done."""
    rows = connection.execute(
        """SELECT * FROM (
             SELECT id, inputs, state, coalesce(status, state) AS status, tries, coalesce(error, '') AS error, next_at,
                    CASE WHEN ended_at IS NULL AND jsonb_typeof(remote -> 'expires_at') = 'number' THEN
                      extract(epoch FROM clock_timestamp())::float8 - (remote ->> 'expires_at')::float8 END AS expired,
                    CASE WHEN owner IS NULL OR lease_until < clock_timestamp() THEN
                      extract(epoch FROM clock_timestamp() - coalesce(next_at, created_at))::float8 END AS untouched
               FROM remote_batches WHERE closed_at IS NULL) AS r
            WHERE expired > %(expired)s OR untouched > %(untouched)s OR tries >= %(tries)s
            ORDER BY id LIMIT %(most)s""",
        {"expired": EXPIRED_SECONDS, "untouched": UNTOUCHED_SECONDS, "tries": TRIED_IN_VAIN, "most": _MOST_TOLD},
    ).fetchall()
    return [RemoteSign(row["id"], _stuck(row), row["inputs"]) for row in rows]


def _stuck(row: dict[str, object]) -> str:
    named = f"remote batch {row['id']} ({row['inputs']:,} texts)"
    expired, untouched = row["expired"], row["untouched"]
    if isinstance(expired, float) and expired > EXPIRED_SECONDS:
        told = f"{named} should have ended {expired / 3600:.1f} h ago and is {row['status']}"
    elif isinstance(untouched, float) and untouched > UNTOUCHED_SECONDS:
        told = f"nobody has looked after {named} for {untouched / 60:.0f} min ({row['state']})"
    else:
        told = f"{named} does not get on from {row['state']}: tried {row['tries']} times"
    return told + (f"; {row['error']}" if row["error"] else "")


@dataclass(frozen=True, slots=True)
class LateSign:
    """An unfinished job whose `need_by` is past (seconds: since then), or that is known to become late (seconds
    negative). why: what routing said of it, if anything."""

    job_id: str
    need_by: datetime
    seconds: float
    why: str | None


def late(connection: Connection) -> list[LateSign]:
    """The longest late first."""
    rows = connection.execute(
        """SELECT id::text AS job_id, need_by, extract(epoch FROM clock_timestamp() - need_by)::float8 AS seconds,
                  CASE WHEN starts_with(route_reason, %(late)s) THEN substr(route_reason, %(from)s) END AS why
             FROM jobs
            WHERE finished_at IS NULL AND need_by IS NOT NULL AND state <> 'cancelled'
              AND (need_by < clock_timestamp() OR starts_with(route_reason, %(late)s))
            ORDER BY need_by, id LIMIT %(most)s""",
        {"late": WILL_BE_LATE, "from": len(WILL_BE_LATE) + 1, "most": _MOST_TOLD},
    ).fetchall()
    return [LateSign(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class BudgetSign:
    """A budget of this month of which a large part is used, in US dollars. tenant: empty: that of all."""

    tenant: str
    used: float
    limit: float

    @property
    def percent(self) -> float:
        return 100.0 * self.used / self.limit


def used_budgets(connection: Connection, settings: CostSettings, percent: float) -> list[BudgetSign]:
    """Those of which this much is spent, doubtful or held back; the fullest first. A limit of 0 is somebody's wish."""
    rows = connection.execute(
        f"""WITH used AS (
             SELECT tenant, coalesce(sum(cost + doubtful) FILTER (WHERE month = {MONTH}), 0) + sum(reserved) AS used
               FROM spending WHERE month >= {MONTH} - interval '1 month' GROUP BY tenant)
           SELECT * FROM (
             SELECT u.tenant, u.used,
                    coalesce(b.month_usd, nullif(CASE WHEN u.tenant = %(all)s THEN %(month)s ELSE %(each)s END, 0))
                      AS "limit"
               FROM used u LEFT JOIN budgets b ON b.tenant = u.tenant) AS f
            WHERE "limit" > 0 AND "limit" < 'Infinity' AND used >= "limit" * %(percent)s / 100.0
            ORDER BY used / "limit" DESC, tenant LIMIT %(most)s""",
        {
            "all": ALL,
            "month": float(settings.month_usd),
            "each": float(settings.tenant_month_usd),
            "percent": percent,
            "most": _MOST_TOLD,
        },
    ).fetchall()
    return [BudgetSign(**row) for row in rows]


def paused_by_budget(connection: Connection, most: int = 1000) -> int:
    """Unfinished jobs that a budget has paused."""
    row = connection.execute(
        """SELECT count(*) AS n FROM (
             SELECT 1 FROM jobs WHERE finished_at IS NULL AND state = 'paused' AND starts_with(pause_reason, %s)
              LIMIT %s) AS j""",
        (PAUSED, most),
    ).fetchone()
    return int(row["n"]) if row else 0


# Of who embeds for money, by the class of the error that has opened its circuit.
_STATES = {"ProviderLimited": "rate-limited", "KeyRejected": "key rejected", "QuotaExhausted": "quota exhausted"}
PROVIDER_STATES = ("well", *_STATES.values(), "away")


def provider_state(circuit: Open | None) -> str:
    """One of PROVIDER_STATES; circuit: that of OPENAI, None: it is closed."""
    return "well" if circuit is None else _STATES.get(circuit.cause or "", "away")


@dataclass(frozen=True, slots=True)
class Month:
    """This month's US dollars, of all together."""

    spent: float
    doubtful: float
    reserved: float


def month(connection: Connection) -> Month:
    row = connection.execute(
        f"""SELECT coalesce(sum(cost) FILTER (WHERE month = {MONTH}), 0)::float8 AS spent,
                   coalesce(sum(doubtful) FILTER (WHERE month = {MONTH}), 0)::float8 AS doubtful,
                   coalesce(sum(reserved), 0)::float8 AS reserved
              FROM spending WHERE tenant = %s""",
        (ALL,),
    ).fetchone()
    assert row is not None
    return Month(**row)


# Texts that are not packed yet are counted up to here.
_MOST_COUNTED = 1_000_000


@dataclass(frozen=True, slots=True)
class OnOrder:
    """What the Batch API has, or is to get. states: of its open batches (the server's word, or ours before it has one),
    how many there are in each. inputs: texts in them; unpacked: texts that are in none yet."""

    states: Mapping[str, int]
    inputs: int
    oldest_seconds: float | None
    unpacked: int

    @property
    def anything(self) -> bool:
        return bool(self.states or self.unpacked)

    def to_json(self) -> dict[str, Any]:
        return {
            "batches": dict(self.states),
            "inputs": self.inputs,
            "oldest_seconds": round(self.oldest_seconds, 1) if self.oldest_seconds is not None else None,
            "unpacked": self.unpacked,
        }


def on_order(connection: Connection) -> OnOrder:
    rows = connection.execute(
        """SELECT coalesce(status, state) AS state, count(*) AS n, sum(inputs)::bigint AS inputs,
                  extract(epoch FROM clock_timestamp() - min(created_at))::float8 AS oldest
             FROM remote_batches WHERE closed_at IS NULL GROUP BY 1 ORDER BY 1"""
    ).fetchall()
    row = connection.execute(
        """SELECT count(*) AS n FROM (
             SELECT 1 FROM purchases WHERE remote_batch_id IS NULL AND epoch IS NULL LIMIT %s) AS p""",
        (_MOST_COUNTED,),
    ).fetchone()
    return OnOrder(
        {row["state"]: row["n"] for row in rows},
        sum(row["inputs"] for row in rows),
        max((row["oldest"] for row in rows), default=None),
        int(row["n"]) if row else 0,
    )
