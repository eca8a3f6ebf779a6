"""Duties: what beat asks for on a timer. Each run is claimed on its row: a second beat or a late tick is harmless.

The row also says what the code knows of the duty (`defaults`) and what an operator has set in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.fleet import ALIVE_SECONDS
from pipeline.ledger.services import BEAT, SILENT_SECONDS

# A beat that ticks a little early must not find the duty not yet due and wait a whole interval.
EARLY = 0.8

# Beat lives, and a duty is due since so long and a share of its interval: its ticks are lost, or nobody takes them.
_LATE_SECONDS = 10.0
_LATE_SHARE = 0.3
# Between two requests of workers for one duty, of all workers together.
_ASK_SECONDS = 3.0

_INTERVAL = "coalesce(interval_seconds, (defaults->>'interval_seconds')::float8)"


@dataclass(frozen=True, slots=True)
class DutyClaim:
    """limit, budget_seconds: as an operator set them; None: as the code has it."""

    name: str
    epoch: int
    limit: int | None = None
    budget_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """A duty as the code has it. what: it does, in a sentence; dry_runs: it can say what it would do."""

    name: str
    interval_seconds: float
    limit: int
    budget_seconds: float
    dry_runs: bool
    what: str

    def to_json(self) -> dict[str, Any]:
        return {
            "interval_seconds": self.interval_seconds,
            "limit": self.limit,
            "budget_seconds": self.budget_seconds,
            "dry_runs": self.dry_runs,
            "what": self.what,
        }


@dataclass(frozen=True, slots=True)
class DutyState:
    """A duty and its last run; all times by Postgres' clock.

    interval_seconds, limit, budget_seconds: in effect; changed: which of them, and `enabled`, an operator has set.
    last_run: when it ended; took_seconds, result (counts, or `error`), failed: of that run. failures: in a row.
    due_seconds: until the next run may begin, negative where it should have. waited_seconds: since it ended a run, or
    since one can be expected. owner: who runs it now.
    """

    name: str
    what: str
    interval_seconds: float
    limit: int
    budget_seconds: float
    dry_runs: bool
    enabled: bool
    changed: tuple[str, ...]
    last_run: datetime | None
    ran_seconds_ago: float | None
    took_seconds: float | None
    result: Mapping[str, Any]
    failed: bool
    failures: int
    due_seconds: float
    waited_seconds: float
    owner: str | None


def register(connection: Connection, definitions: Sequence[Definition], *, retire: bool = False) -> None:
    """Writes down what the code knows of duties; changes nothing where that is so already.

    retire: a duty that is not among them is of an older version; it is not asked for or missed any more.
    """
    names = [definition.name for definition in definitions]
    connection.execute(
        """INSERT INTO duties (name, defaults) SELECT * FROM unnest(%s::text[], %s::jsonb[]) ORDER BY 1
           ON CONFLICT (name) DO UPDATE SET defaults = excluded.defaults WHERE duties.defaults <> excluded.defaults""",
        (names, [Jsonb(definition.to_json()) for definition in definitions]),
    )
    if retire:
        connection.execute("UPDATE duties SET defaults = '{}' WHERE name <> ALL(%s) AND defaults <> '{}'", (names,))


def claim(
    connection: Connection, name: str, owner: str, interval_seconds: float, lease_seconds: float, *, asked: bool = False
) -> DutyClaim | None:
    """Takes the duty if it is due, not disabled, and nobody holds it; None otherwise.

    The next run is due after the interval: the one given, unless the row has another. asked: somebody wants it now,
    due or not, disabled or not.
    """
    connection.execute("INSERT INTO duties (name) VALUES (%s) ON CONFLICT (name) DO NOTHING", (name,))
    row = connection.execute(
        """UPDATE duties
              SET owner = %(owner)s, epoch = epoch + 1,
                  lease_until = clock_timestamp() + make_interval(secs => %(lease)s),
                  due_at = clock_timestamp()
                         + make_interval(secs => coalesce(interval_seconds, %(interval)s) * %(early)s)
            WHERE name = %(name)s AND (%(asked)s OR enabled AND due_at <= clock_timestamp())
              AND (lease_until IS NULL OR lease_until < clock_timestamp())
        RETURNING epoch, row_limit, budget_seconds""",
        {
            "name": name,
            "owner": owner,
            "lease": lease_seconds,
            "interval": interval_seconds,
            "early": EARLY,
            "asked": asked,
        },
    ).fetchone()
    return DutyClaim(name, row["epoch"], row["row_limit"], row["budget_seconds"]) if row else None


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
        """UPDATE duties SET lease_until = NULL, ran_at = clock_timestamp(), seconds = %(seconds)s, result = %(result)s,
                             failed = %(failed)s, failures = CASE WHEN %(failed)s THEN failures + 1 ELSE 0 END
            WHERE name = %(name)s AND epoch = %(epoch)s""",
        {
            "seconds": seconds,
            "result": Jsonb(dict(result)),
            "failed": failed,
            "name": claim.name,
            "epoch": claim.epoch,
        },
    )


def release(connection: Connection, claim: DutyClaim) -> None:
    """Hands the duty back without a run: it is due at once."""
    connection.execute(
        "UPDATE duties SET lease_until = NULL, due_at = clock_timestamp() WHERE name = %s AND epoch = %s",
        (claim.name, claim.epoch),
    )


def change(
    connection: Connection,
    name: str,
    *,
    interval_seconds: float | None = None,
    limit: int | None = None,
    budget_seconds: float | None = None,
    enabled: bool | None = None,
    reset: bool = False,
) -> bool:
    """Sets what is given; what is None stays. reset: first, all is as the code has it. False: there is no such duty.

    The next run is due the new interval after the last one; what is enabled again is due at once.
    """
    row = connection.execute(
        """SELECT interval_seconds, row_limit, budget_seconds, enabled, defaults FROM duties
            WHERE name = %s AND defaults <> '{}' FOR NO KEY UPDATE""",
        (name,),
    ).fetchone()
    if row is None:
        return False
    before = {} if reset else row
    chosen = {
        "interval": interval_seconds if interval_seconds is not None else before.get("interval_seconds"),
        "limit": limit if limit is not None else before.get("row_limit"),
        "budget": budget_seconds if budget_seconds is not None else before.get("budget_seconds"),
        "enabled": enabled if enabled is not None else before.get("enabled", True),
    }
    by_code = row["defaults"]["interval_seconds"]
    every, before_every = (
        by_code if given is None else given for given in (chosen["interval"], row["interval_seconds"])
    )
    connection.execute(
        """UPDATE duties
              SET interval_seconds = %(interval)s, row_limit = %(limit)s, budget_seconds = %(budget)s,
                  awaited_since = CASE WHEN %(enabled)s AND NOT enabled THEN clock_timestamp() ELSE awaited_since END,
                  due_at = CASE WHEN %(enabled)s AND NOT enabled THEN clock_timestamp()
                                WHEN epoch > 0 THEN due_at + make_interval(secs => %(later)s) ELSE due_at END,
                  enabled = %(enabled)s
            WHERE name = %(name)s""",
        {**chosen, "name": name, "later": (every - before_every) * EARLY},
    )
    return True


# Nobody can run a duty where no worker takes ticks: it is awaited since one of those that live does.
_STATES = f"""
SELECT name, defaults, {_INTERVAL} AS interval_seconds,
       coalesce(row_limit, (defaults->>'limit')::int) AS row_limit,
       coalesce(budget_seconds, (defaults->>'budget_seconds')::float8) AS budget_seconds,
       enabled, seconds, result, failed, failures, ran_at,
       array_remove(ARRAY[CASE WHEN interval_seconds IS NOT NULL THEN 'interval_seconds' END,
                          CASE WHEN row_limit IS NOT NULL THEN 'limit' END,
                          CASE WHEN duties.budget_seconds IS NOT NULL THEN 'budget_seconds' END,
                          CASE WHEN NOT enabled THEN 'enabled' END], NULL) AS changed,
       extract(epoch FROM clock_timestamp() - ran_at)::float8 AS ago,
       extract(epoch FROM due_at - clock_timestamp())::float8 AS due,
       extract(epoch FROM clock_timestamp() - greatest(ran_at, awaited_since, takers.since))::float8 AS waited,
       CASE WHEN lease_until > clock_timestamp() THEN owner END AS owner
  FROM duties,
       (SELECT min(started_at) AS since FROM workers
         WHERE seen_at > clock_timestamp() - interval '{ALIVE_SECONDS} seconds'
           AND 'control' = ANY(string_to_array(queues, ','))) AS takers
 WHERE defaults <> '{{}}' AND (%(name)s::text IS NULL OR name = %(name)s)
 ORDER BY name"""


def states(connection: Connection, name: str | None = None) -> list[DutyState]:
    """Every duty that the code knows, by name; or the one of this name."""
    return [_state(row) for row in connection.execute(_STATES, {"name": name}).fetchall()]


def _state(row: Row) -> DutyState:
    interval = row["interval_seconds"]
    return DutyState(
        name=row["name"],
        what=row["defaults"]["what"],
        interval_seconds=interval,
        limit=row["row_limit"],
        budget_seconds=row["budget_seconds"],
        dry_runs=row["defaults"]["dry_runs"],
        enabled=row["enabled"],
        changed=tuple(row["changed"]),
        last_run=row["ran_at"],
        ran_seconds_ago=row["ago"],
        took_seconds=row["seconds"],
        result=row["result"] or {},
        failed=row["failed"],
        failures=row["failures"],
        due_seconds=row["due"] + ((1 - EARLY) * interval if row["ran_at"] is not None else 0.0),
        waited_seconds=max(0.0, row["waited"]),
        owner=row["owner"],
    )


def holder(connection: Connection, name: str) -> tuple[str, float] | None:
    """Who runs the duty now, and for how many seconds it holds it without a further heartbeat; None: nobody."""
    row = connection.execute(
        """SELECT owner, extract(epoch FROM lease_until - clock_timestamp())::float8 AS seconds FROM duties
            WHERE name = %s AND lease_until > clock_timestamp()""",
        (name,),
    ).fetchone()
    return (row["owner"], row["seconds"]) if row else None


def ask_late(connection: Connection) -> list[tuple[str, float]]:
    """What a worker is to ask for in beat's place, with the intervals in seconds: where no beat lives, all that is
    due; where one does, what is due for long. What one worker has asked for, the others leave alone for a while."""
    rows = connection.execute(
        f"""UPDATE duties d SET asked_at = clock_timestamp()
              FROM (SELECT name, {_INTERVAL} AS every FROM duties
                     WHERE enabled AND defaults <> '{{}}' AND due_at < clock_timestamp()
                       AND (lease_until IS NULL OR lease_until < clock_timestamp())
                       AND (asked_at IS NULL OR asked_at < clock_timestamp() - make_interval(secs => %(ask)s))
                       AND (NOT EXISTS (SELECT FROM services
                                         WHERE name = %(beat)s
                                           AND seen_at > clock_timestamp() - make_interval(secs => %(silent)s))
                            OR due_at < clock_timestamp() - make_interval(secs => %(late)s + {_INTERVAL} * %(share)s))
                     ORDER BY name FOR NO KEY UPDATE SKIP LOCKED) AS l
             WHERE d.name = l.name
         RETURNING d.name, l.every""",
        {
            "ask": _ASK_SECONDS * EARLY,
            "beat": BEAT,
            "silent": SILENT_SECONDS,
            "late": _LATE_SECONDS,
            "share": _LATE_SHARE,
        },
    ).fetchall()
    return [(row["name"], row["every"]) for row in rows]
