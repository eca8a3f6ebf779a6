"""What was spent and saved, as it was recorded by day; kept when the jobs are gone."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, get_args

from pipeline.errors import InvalidRequest
from pipeline.ledger.budgets import MONTH, Budget
from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.jobs import Job

By = Literal["day", "month", "tenant", "collection", "job", "provider", "model"]
BY: tuple[By, ...] = get_args(By)

# What a row of a report is told by, as SQL of usage u.
_GROUPS: Mapping[By, str] = {
    "day": "u.day::text",
    "month": "to_char(u.day, 'YYYY-MM')",
    "tenant": "u.tenant",
    "collection": "u.collection",
    "job": "u.job_id::text",
    "provider": "u.provider",
    "model": "u.model",
}

_SUMS = ", ".join(
    f"coalesce(sum(u.{name}), 0)::{'float8' if name.endswith(('cost', 'saved')) else 'bigint'} AS {name}"
    for name in (
        *("requests", "texts", "tokens", "cost", "cached_texts", "cached_tokens", "cached_cost"),
        *("batch_saved", "doubtful_texts", "doubtful_cost"),
    )
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums, in texts, tokens and US dollars. texts, tokens, cost, requests: bought. cached_*: found stored, and what
    they would have cost online. batch_saved: what the bought ones would have cost more online. doubtful_*: may have
    been paid for without an answer, besides."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    cost: float = 0.0
    cached_texts: int = 0
    cached_tokens: int = 0
    cached_cost: float = 0.0
    batch_saved: float = 0.0
    doubtful_texts: int = 0
    doubtful_cost: float = 0.0

    @classmethod
    def from_row(cls, row: Row) -> Usage:
        return cls(**{name: row[name] for name in cls.__slots__})

    def counts(self) -> dict[str, int]:
        """All that is no money."""
        return {
            "requests": self.requests,
            "texts": self.texts,
            "tokens": self.tokens,
            "cached_texts": self.cached_texts,
            "cached_tokens": self.cached_tokens,
            "doubtful_texts": self.doubtful_texts,
        }

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (docs/cost.md)."""
        return {
            "spent": self.cost,
            "saved_by_cache": self.cached_cost,
            "saved_by_batch": self.batch_saved,
            "doubtful": self.doubtful_cost,
            **self.counts(),
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of what is to be told; None: of all. month: its first day."""

    job_id: uuid.UUID | None = None
    tenant: str | None = None
    collection: str | None = None
    month: date | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "job_id": str(self.job_id) if self.job_id else None,
            "tenant": self.tenant,
            "collection": self.collection,
            "month": self.month.isoformat()[:7] if self.month else None,
        }


@dataclass(frozen=True, slots=True)
class CostReport:
    """What was spent and saved. total: of all that is wanted; rows: (day, tenant, ... as `by` says, its part); None as
    the job of what was no job's. reserved: held back for work under way, US dollars. budgets: of this month."""

    wanted: Wanted
    total: Usage
    reserved: float
    by: By
    rows: Sequence[tuple[str | None, Usage]]
    budgets: Sequence[Budget]

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (docs/cost.md)."""
        return {
            **self.wanted.to_json(),
            **self.total.to_json(),
            "reserved": self.reserved,
            "by": self.by,
            "rows": [{self.by: name, **usage.to_json()} for name, usage in self.rows],
            "budgets": [budget.to_json() for budget in self.budgets],
        }


def parse_month(given: str) -> date:
    """`2026-11` as its first day. Raises InvalidRequest."""
    try:
        return date.fromisoformat(f"{given}-01")
    except ValueError:
        raise InvalidRequest(f"a month is written like 2026-11, not {given!r}") from None


def this_month(connection: Connection) -> date:
    """Its first day, in UTC, by the ledger's clock."""
    row = connection.execute(f"SELECT {MONTH} AS month").fetchone()
    assert row is not None
    found: date = row["month"]
    return found


_WHERE = """
    WHERE (%(job)s::uuid IS NULL OR u.job_id = %(job)s) AND (%(tenant)s::text IS NULL OR u.tenant = %(tenant)s)
      AND (%(collection)s::text IS NULL OR u.collection = %(collection)s)
      AND (%(month)s::date IS NULL OR u.day >= %(month)s AND u.day < (%(month)s + interval '1 month')::date)"""


def total(connection: Connection, wanted: Wanted) -> Usage:
    row = connection.execute(f"SELECT {_SUMS} FROM usage u {_WHERE}", _given(wanted)).fetchone()
    assert row is not None
    return Usage.from_row(row)


def grouped(connection: Connection, wanted: Wanted, by: By, limit: int) -> list[tuple[str | None, Usage]]:
    """(what it is told by, sums): the newest first of times, else the dearest first."""
    order = "1 DESC" if by in ("day", "month") else "cost DESC, 1"
    rows = connection.execute(
        f"SELECT {_GROUPS[by]} AS name, {_SUMS} FROM usage u {_WHERE} GROUP BY 1 ORDER BY {order} LIMIT %(limit)s",
        {**_given(wanted), "limit": limit},
    ).fetchall()
    return [(row["name"], Usage.from_row(row)) for row in rows]


def of_jobs(connection: Connection, jobs: Collection[Job]) -> dict[uuid.UUID, Usage]:
    """job -> its sums. What is embedded here costs nothing, and is not asked for."""
    job_ids = [job.id for job in jobs if job.provider != "local"]
    found = {job.id: Usage() for job in jobs}
    if not job_ids:
        return found
    rows = connection.execute(
        f"SELECT u.job_id, {_SUMS} FROM usage u WHERE u.job_id = ANY(%s) GROUP BY u.job_id", (sorted(job_ids),)
    ).fetchall()
    return found | {row["job_id"]: Usage.from_row(row) for row in rows}


def reserved(connection: Connection, wanted: Wanted) -> float:
    """US dollars that are held back for work under way, of whatever month."""
    row = connection.execute(
        """SELECT coalesce(sum(r.cost), 0)::float8 AS cost FROM reservations r
            WHERE (%(job)s::uuid IS NULL OR r.job_id = %(job)s) AND (%(tenant)s::text IS NULL OR r.tenant = %(tenant)s)
              AND (%(collection)s::text IS NULL OR EXISTS (
                   SELECT 1 FROM jobs j JOIN collections c ON c.id = j.collection_id
                    WHERE j.id = r.job_id AND c.name = %(collection)s))""",
        _given(wanted),
    ).fetchone()
    assert row is not None
    return float(row["cost"])


def _given(wanted: Wanted) -> dict[str, Any]:
    return {
        "job": wanted.job_id,
        "tenant": wanted.tenant,
        "collection": wanted.collection,
        "month": wanted.month,
    }
