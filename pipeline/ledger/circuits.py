"""What all workers know together of a dependency that is away: nobody computes, and nothing is sent, for it to wait.

A row with `opened_at` is an open circuit. Until `retry_at` no work that needs the dependency is sent or claimed; then
one batch goes as the probe (`probe_batch`), and `retry_at` moves on for the case that it is lost. Whoever gets an
answer closes the circuit for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pipeline.ledger.engine import Connection
from pipeline.ledger.pauses import paused

VECTORS = "qdrant"
LEDGER_ROOM = "postgres"
# Who embeds for money: OpenAI, or another server that speaks its protocol.
OPENAI = "openai"

# Seconds until the next probe after the first failure, the second in a row, ... and from then on.
RESTS = (1.0, 2.0, 4.0, 8.0, 15.0)
# While nobody answers at all the next probe is never further away than this; a reconcile run looks again before.
AWAY_SECONDS = 5.0
# A probe that is lost (its message, its worker) is followed by another one after this.
PROBE_SECONDS = 40.0
# One that nobody takes for so long is in a queue that nobody consumes, or whose workers are all busy.
_UNTAKEN_SECONDS = 15.0
# A full disk is met by whoever writes, and told for this long after each time.
_TOLD_SECONDS = 30.0
_MOST_LETTERS = 500

# Who embeds for money asks to be left alone until then. There is no probe: whoever comes next tries.
_PROVIDER_RESTS = f"""EXISTS (
    SELECT 1 FROM circuits c
     WHERE c.dependency = '{OPENAI}' AND c.opened_at IS NOT NULL AND c.retry_at > clock_timestamp())"""

# Of batches b that embed: whoever has to do it may be asked now.
_EMBEDDER_THERE = f"(b.provider <> '{OPENAI}' OR NOT {_PROVIDER_RESTS})"

# A batch b that needs what is away waits; the probe, and everything that needs it not, goes.
OPEN_TO_CLAIM = f"""(b.kind <> 'embed' OR (NOT EXISTS (
    SELECT 1 FROM circuits c
     WHERE c.dependency = '{VECTORS}' AND c.opened_at IS NOT NULL AND c.probe_batch IS DISTINCT FROM b.id)
    AND {_EMBEDDER_THERE}))"""


# Of batches b: those of a kind that may be sent now; the probe is picked by itself.
SENDABLE_KIND = f"""(b.kind <> 'embed' OR (NOT EXISTS (
    SELECT 1 FROM circuits c WHERE c.dependency = '{VECTORS}' AND c.opened_at IS NOT NULL) AND {_EMBEDDER_THERE}))"""


# Of batches b and their jobs j: those that could be the probe. As `batches.claim` asks: one that was handed back when
# its job was paused already is held by nobody while nothing is sent, and would be tried in vain for ever.
COULD_TRY = f"""b.state = 'ready' AND NOT b.held AND b.kind = 'embed' AND j.state NOT IN ('paused', 'cancelled')
              AND NOT {paused("b.collection_id")} AND {_EMBEDDER_THERE}"""


# Of an open circuit c: another batch may try. Also where the one that was to has ended, or is lost with its message or
# its worker.
PROBE_DUE = """(c.retry_at <= clock_timestamp() OR EXISTS (
    SELECT 1 FROM batches b
     WHERE b.id = c.probe_batch AND (b.ended_at IS NOT NULL OR (b.state = 'ready' AND b.sent_at IS NULL))))"""


@dataclass(frozen=True, slots=True)
class Open:
    """An open circuit. failures: in a row; error: the last one's words; cause: its class, where that was told. due:
    `retry_at` is past by the ledger's clock: whoever comes next tries."""

    dependency: str
    opened_at: datetime
    retry_at: datetime
    failures: int
    error: str
    cause: str | None = None
    due: bool = False

    @property
    def until(self) -> datetime | None:
        """When it will be tried again; None where that is now."""
        return None if self.due else self.retry_at

    def to_json(self) -> dict[str, str | int]:
        return {
            "dependency": self.dependency,
            "opened_at": self.opened_at.isoformat(),
            "retry_at": self.retry_at.isoformat(),
            "failures": self.failures,
            "error": self.error,
        }


def trip(
    connection: Connection, dependency: str, error: str, batch_ids: Sequence[int] = (), cause: str | None = None
) -> None:
    """It did not answer whoever works on these batches: open, until the next probe. What fails while it is open already
    changes nothing, but for the probe itself, after which the rest is longer. cause: the class of the error."""
    connection.execute(
        """INSERT INTO circuits AS c (dependency, opened_at, retry_at, failures, error, cause)
           VALUES (%(dependency)s, clock_timestamp(), clock_timestamp() + make_interval(secs => %(first)s),
                   1, %(error)s, %(cause)s)
           ON CONFLICT (dependency) DO UPDATE
              SET opened_at = coalesce(c.opened_at, clock_timestamp()), probe_batch = NULL, error = excluded.error,
                  cause = excluded.cause, failures = c.failures + 1,
                  retry_at = clock_timestamp() + make_interval(
                    secs => (%(rests)s::float8[])[least(c.failures + 1, cardinality(%(rests)s::float8[]))])
            WHERE c.opened_at IS NULL OR c.probe_batch = ANY(%(batches)s) OR c.retry_at <= clock_timestamp()""",
        {
            "dependency": dependency,
            "error": error,
            "cause": cause,
            "first": RESTS[0],
            "rests": list(RESTS),
            "batches": list(batch_ids),
        },
    )


def rest(connection: Connection, dependency: str, error: str, seconds: float | None, cause: str) -> None:
    """It takes nothing now, and nobody asks it for so many seconds; None: for longer after each failure in a row."""
    connection.execute(
        """INSERT INTO circuits AS c (dependency, opened_at, retry_at, failures, error, cause)
           VALUES (%(dependency)s, clock_timestamp(), clock_timestamp() + make_interval(secs => %(first)s),
                   1, %(error)s, %(cause)s)
           ON CONFLICT (dependency) DO UPDATE
              SET opened_at = coalesce(c.opened_at, clock_timestamp()), error = excluded.error,
                  cause = excluded.cause, failures = c.failures + 1,
                  retry_at = clock_timestamp() + make_interval(secs => coalesce(%(seconds)s,
                    (%(rests)s::float8[])[least(c.failures + 1, cardinality(%(rests)s::float8[]))]))
            WHERE c.opened_at IS NULL OR c.retry_at <= clock_timestamp()""",
        {
            "dependency": dependency,
            "error": error,
            "cause": cause,
            "first": RESTS[0] if seconds is None else seconds,
            "seconds": seconds,
            "rests": list(RESTS),
        },
    )


def forget_rest(connection: Connection, dependency: str, seconds: float) -> None:
    """Nobody has asked it for so long after its rest: there is nothing to be told of it any more."""
    connection.execute(
        """UPDATE circuits SET opened_at = NULL, retry_at = NULL, failures = 0, error = NULL, cause = NULL
            WHERE dependency = %s AND retry_at < clock_timestamp() - make_interval(secs => %s)""",
        (dependency, seconds),
    )


def defer(connection: Connection, dependency: str, seconds: float) -> None:
    """It is known to be away still: no probe before these seconds are over, and one then."""
    connection.execute(
        """UPDATE circuits SET retry_at = clock_timestamp() + make_interval(secs => %s), probe_batch = NULL
            WHERE dependency = %s AND opened_at IS NOT NULL""",
        (seconds, dependency),
    )


def close(connection: Connection, dependency: str) -> bool:
    """It answers. True where the circuit was open."""
    return (
        connection.execute(
            """UPDATE circuits SET opened_at = NULL, retry_at = NULL, probe_batch = NULL, failures = 0, error = NULL,
                      cause = NULL
                WHERE dependency = %s AND opened_at IS NOT NULL""",
            (dependency,),
        ).rowcount
        > 0
    )


def take_probe(connection: Connection, dependency: str, batch_id: int) -> bool:
    """Makes the batch the one that goes first. False where the circuit is closed, or another one is the probe."""
    # A statement of its own: whoever waited for the row must see what became of the batch that was chosen meanwhile.
    connection.execute("SELECT 1 FROM circuits WHERE dependency = %s FOR NO KEY UPDATE", (dependency,))
    return (
        connection.execute(
            f"""UPDATE circuits c
                  SET probe_batch = %s, retry_at = clock_timestamp() + make_interval(secs => %s)
                WHERE c.dependency = %s AND c.opened_at IS NOT NULL AND {PROBE_DUE}""",
            (batch_id, PROBE_SECONDS, dependency),
        ).rowcount
        > 0
    )


def listing(connection: Connection) -> list[Open]:
    """The circuits that are open."""
    rows = connection.execute(
        """SELECT dependency, opened_at, retry_at, failures, coalesce(error, '') AS error, cause,
                  retry_at <= clock_timestamp() AS due
             FROM circuits WHERE opened_at IS NOT NULL ORDER BY dependency"""
    ).fetchall()
    return [Open(**row) for row in rows]


def find(connection: Connection, dependency: str) -> Open | None:
    """The open circuit of a dependency; None where it is closed."""
    return next((found for found in listing(connection) if found.dependency == dependency), None)


def awaited(connection: Connection) -> bool:
    """Is there a batch that could try whether Qdrant is back, or one that is trying?

    None of them can where the one that was sent is taken by nobody: the others would wait for it in vain.
    """
    row = connection.execute(
        f"""WITH probe AS (
              SELECT b.state, b.sent_at FROM circuits c JOIN batches b ON b.id = c.probe_batch
               WHERE c.dependency = '{VECTORS}')
            SELECT EXISTS (SELECT 1 FROM probe WHERE state = 'running')
                OR (EXISTS (SELECT 1 FROM batches b JOIN jobs j ON j.id = b.job_id WHERE {COULD_TRY})
                    AND NOT EXISTS (SELECT 1 FROM probe
                                     WHERE state = 'ready'
                                       AND sent_at < clock_timestamp() - make_interval(secs => %s))) AS awaited""",
        (_UNTAKEN_SECONDS,),
    ).fetchone()
    return bool(row and row["awaited"])


def tell_full(connection: Connection, error: str) -> None:
    """The ledger's disk is full. There is room for these words all the same: their row is there from the start."""
    connection.execute(
        """INSERT INTO circuits AS c (dependency, opened_at, retry_at, failures, error)
           VALUES (%(dependency)s, clock_timestamp(), clock_timestamp() + make_interval(secs => %(told)s), 1, %(error)s)
           ON CONFLICT (dependency) DO UPDATE
              SET opened_at = coalesce(c.opened_at, clock_timestamp()), retry_at = excluded.retry_at,
                  failures = c.failures + 1, error = excluded.error""",
        {"dependency": LEDGER_ROOM, "error": error[:_MOST_LETTERS], "told": _TOLD_SECONDS},
    )


def forget_full(connection: Connection) -> None:
    """Nobody has met a full disk for a while."""
    connection.execute(
        """UPDATE circuits SET opened_at = NULL, retry_at = NULL, failures = 0, error = NULL
            WHERE dependency = %s AND retry_at < clock_timestamp()""",
        (LEDGER_ROOM,),
    )
