"""Budgets: what may be spent in a calendar month (UTC) by all, in a month by one tenant, and by one job.

A limit is the operator's (`millrace cost --set-budget`), or else the settings'. What was spent, what may have been
spent without an answer, and what is reserved for work under way all count against it.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

from pipeline.errors import InvalidRequest, UnknownJob
from pipeline.ledger.engine import Connection
from pipeline.settings import CostSettings

# The tenant of what all spend together.
ALL = ""
# How the reason begins of a job that a budget has paused.
PAUSED = "over budget: "
# A sum of many prices is not exact; less than a token of the cheapest model.
TOLERANCE = 1e-12

# SQL: the first day of this month, as the transaction's own time has it.
MONTH = "date_trunc('month', now() AT TIME ZONE 'UTC')::date"

Scope = Literal["month", "tenant", "job"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent, and what is, in US dollars. month: its first day; none for a job.

    limit: None where there is none. source: who says so: `operator`, `settings` or `job`. doubtful: paid or not, nobody
    knows. reserved: held back for work under way.
    """

    scope: Scope
    tenant: str
    limit: float | None
    spent: float
    doubtful: float
    reserved: float
    source: Literal["operator", "settings", "job"]
    month: date | None = None
    job_id: uuid.UUID | None = None
    reason: str | None = None
    changed_at: datetime | None = None

    @property
    def left(self) -> float:
        """What may still be spent."""
        if self.limit is None:
            return math.inf
        return max(0.0, self.limit - self.spent - self.doubtful - self.reserved)

    @property
    def exhausted(self) -> bool:
        return self.limit is not None and self.left <= TOLERANCE

    def has_room(self, cost: float) -> bool:
        return self.limit is None or self.spent + self.doubtful + self.reserved + cost <= self.limit + TOLERANCE

    @property
    def name(self) -> str:
        """For people."""
        match self.scope:
            case "month":
                return f"the budget of {self.month:%B %Y}"
            case "tenant":
                return f"tenant {self.tenant}'s budget of {self.month:%B %Y}"
            case "job":
                return f"the budget of job {self.job_id}"

    @property
    def option(self) -> str:
        """What of `millrace cost` sets it."""
        match self.scope:
            case "month":
                return "--set-budget USD"
            case "tenant":
                return f"--set-budget USD --tenant {self.tenant}"
            case "job":
                return f"--set-budget USD --job {self.job_id}"

    def __str__(self) -> str:
        parts = [f"{dollars(self.spent)} spent"]
        if self.doubtful > TOLERANCE:
            parts.append(f"{dollars(self.doubtful)} doubtful")
        if self.reserved > TOLERANCE:
            parts.append(f"{dollars(self.reserved)} reserved")
        limit = "no limit" if self.limit is None else f"of {dollars(self.limit)}"
        return f"{self.name}: {', '.join(parts)}, {limit}"

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (docs/cost.md)."""
        return {
            "scope": self.scope,
            "tenant": self.tenant or None,
            "job_id": str(self.job_id) if self.job_id else None,
            "month": self.month.isoformat()[:7] if self.month else None,
            "limit": self.limit,
            "spent": self.spent,
            "doubtful": self.doubtful,
            "reserved": self.reserved,
            "left": None if self.limit is None else self.left,
            "source": self.source,
            "reason": self.reason,
            "changed_at": self.changed_at.isoformat() if self.changed_at else None,
        }


def dollars(amount: float) -> str:
    """`$12.34`; what is less than a dollar with two digits that say something: `$0.00042`."""
    if amount == 0 or abs(amount) >= 1:
        return f"${amount:,.2f}"
    digits = 1 - math.floor(math.log10(abs(amount)))
    return f"${amount:.{max(2, digits)}f}"


# -- reading ----------------------------------------------------------------------------------------------------------


def of_month(connection: Connection, tenants: Collection[str], settings: CostSettings) -> dict[str, Budget]:
    """tenant (`ALL`: of all together) -> its budget of this month. To rely on it, lock the rows of `spending` first."""
    rows = connection.execute(
        f"""SELECT t.tenant, {MONTH} AS month, b.month_usd, b.reason, b.changed_at,
                   coalesce(sum(s.cost) FILTER (WHERE s.month = {MONTH}), 0) AS spent,
                   coalesce(sum(s.doubtful) FILTER (WHERE s.month = {MONTH}), 0) AS doubtful,
                   coalesce(sum(s.reserved), 0) AS reserved
              FROM unnest(%s::text[]) AS t (tenant)
              LEFT JOIN budgets b ON b.tenant = t.tenant LEFT JOIN spending s ON s.tenant = t.tenant
             GROUP BY t.tenant, b.month_usd, b.reason, b.changed_at""",
        (sorted(tenants),),
    ).fetchall()
    return {row["tenant"]: _budget(row, settings) for row in rows}


def _budget(row: Mapping[str, Any], settings: CostSettings) -> Budget:
    everybody = row["tenant"] == ALL
    limit = row["month_usd"]
    if limit is None:
        limit = (settings.month_usd if everybody else settings.tenant_month_usd) or math.inf
    return Budget(
        "month" if everybody else "tenant",
        row["tenant"],
        limit if math.isfinite(limit) else None,
        row["spent"],
        row["doubtful"],
        row["reserved"],
        "settings" if row["month_usd"] is None else "operator",
        month=row["month"],
        reason=row["reason"],
        changed_at=row["changed_at"],
    )


def of_jobs(connection: Connection, job_ids: Collection[uuid.UUID], settings: CostSettings) -> dict[uuid.UUID, Budget]:
    """job -> its budget; nothing for a job that is not there."""
    rows = connection.execute(
        "SELECT id, tenant, max_cost, cost, cost_doubtful, cost_reserved FROM jobs WHERE id = ANY(%s)",
        (sorted(job_ids),),
    ).fetchall()
    return {row["id"]: _job_budget(row, settings) for row in rows}


def _job_budget(row: Mapping[str, Any], settings: CostSettings) -> Budget:
    limit = row["max_cost"] if row["max_cost"] is not None else settings.job_usd or math.inf
    return Budget(
        "job",
        row["tenant"],
        limit if math.isfinite(limit) else None,
        row["cost"],
        row["cost_doubtful"],
        row["cost_reserved"],
        "settings" if row["max_cost"] is None else "job",
        job_id=row["id"],
    )


def listing(connection: Connection, settings: CostSettings) -> list[Budget]:
    """The budgets of this month: that of all first, then of tenants that spent something or have one of their own,
    by name."""
    rows = connection.execute(
        f"SELECT tenant FROM budgets UNION SELECT tenant FROM spending WHERE month = {MONTH} OR reserved <> 0"
    ).fetchall()
    found = of_month(connection, {ALL, *(row["tenant"] for row in rows)}, settings)
    return [found[tenant] for tenant in sorted(found)]


def exhausted(connection: Connection, settings: CostSettings) -> list[str]:
    """What people should know of budgets that hold up work: one line for each budget that is used up, and one for each
    job that is paused by one. Empty where all is well."""
    lines = [f"{budget}" for budget in listing(connection, settings) if budget.exhausted]
    rows = connection.execute(
        """SELECT id, pause_reason FROM jobs
            WHERE finished_at IS NULL AND state = 'paused' AND starts_with(pause_reason, %s)
            ORDER BY id LIMIT 100""",
        (PAUSED,),
    ).fetchall()
    return lines + [f"job {row['id']} is paused: {row['pause_reason']}" for row in rows]


# -- setting ----------------------------------------------------------------------------------------------------------


def check_limit(usd: float) -> float:
    """Raises InvalidRequest for what is no amount of money. Infinity: no limit."""
    if math.isnan(usd) or usd < 0:
        raise InvalidRequest(f"a budget is an amount of US dollars from 0 on, not {usd:g}")
    return usd


def set_budget(connection: Connection, tenant: str, usd: float, reason: str | None = None) -> None:
    """Puts a limit of this and every following month in place of the settings'. Infinity: no limit; 0: nothing may be
    spent."""
    connection.execute(
        """INSERT INTO budgets (tenant, month_usd, reason) VALUES (%s, %s, %s)
           ON CONFLICT (tenant) DO UPDATE
              SET month_usd = excluded.month_usd, reason = excluded.reason, changed_at = clock_timestamp()""",
        (tenant, usd, reason),
    )


def clear_budget(connection: Connection, tenant: str) -> bool:
    """What the settings say counts again. False where there was no other."""
    return connection.execute("DELETE FROM budgets WHERE tenant = %s", (tenant,)).rowcount > 0


def set_job_budget(connection: Connection, job_id: uuid.UUID, usd: float | None) -> None:
    """What the job may spend; None: as the settings say. Raises UnknownJob."""
    if connection.execute("UPDATE jobs SET max_cost = %s WHERE id = %s", (usd, job_id)).rowcount == 0:
        raise UnknownJob(f"there is no job {job_id}; `millrace jobs` lists them")
