"""What is told of jobs that wait for the Batch API: which batches have their texts, and what is packed in none yet."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pipeline.ledger.engine import Connection

# Of a job's waiting batches so many are looked at for orders that are not packed: those that it ordered last.
_LOOKED_AT = 20


@dataclass(frozen=True, slots=True)
class OnOrder:
    """About one job. batches: open remote batches with texts of it; oldest_seconds: since the first was planned.
    states: of them, the server's word or ours; done: of their texts (inputs), as the server last told.

    unpacked: texts, of those that were looked at; ordered_seconds: since the first of these was ordered.
    """

    batches: int = 0
    oldest_seconds: float | None = None
    states: Sequence[str] = ()
    inputs: int = 0
    done: int = 0
    unpacked: int = 0
    ordered_seconds: float | None = None

    def __str__(self) -> str:
        """For people."""
        told = []
        if self.batches:
            count = f"{self.batches} batch{'' if self.batches == 1 else 'es'}"
            oldest = f"{'' if self.batches == 1 else 'the oldest '}{_age(self.oldest_seconds or 0.0)} old"
            states = ", ".join(state.replace("_", " ") for state in self.states)
            told.append(f"the Batch API: {count}, {oldest}, {states}, {self.done:,} of {self.inputs:,} texts")
        if self.unpacked:
            ordered = _age(self.ordered_seconds or 0.0)
            told.append(f"{self.unpacked:,} texts wait to be packed with others, ordered {ordered} ago")
        return "; ".join(told) or "another job has its texts on order with the Batch API"


NOTHING = OnOrder()


def _age(seconds: float) -> str:
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def on_order(connection: Connection, job_ids: Sequence[uuid.UUID]) -> Mapping[uuid.UUID, OnOrder]:
    """Of each of the jobs. The open remote batches are few; of orders that are not packed the newest are looked at."""
    rows = connection.execute(
        """WITH held AS (
             SELECT w.id, count(*) AS batches, sum(r.inputs)::bigint AS inputs,
                    extract(epoch FROM clock_timestamp() - min(r.created_at))::float8 AS oldest_seconds,
                    array_agg(DISTINCT coalesce(r.status, r.state)) AS states,
                    sum(coalesce((r.remote -> 'request_counts' ->> 'completed')::bigint, 0))::bigint AS done
               FROM unnest(%(jobs)s::uuid[]) AS w (id)
               JOIN remote_batches r ON r.closed_at IS NULL AND r.jobs ? w.id::text GROUP BY w.id)
           SELECT w.id, coalesce(h.batches, 0) AS batches, coalesce(h.inputs, 0) AS inputs, h.oldest_seconds,
                  coalesce(h.states, '{}') AS states, coalesce(h.done, 0) AS done, u.unpacked,
                  extract(epoch FROM clock_timestamp() - u.since)::float8 AS ordered_seconds
             FROM unnest(%(jobs)s::uuid[]) AS w (id) LEFT JOIN held h ON h.id = w.id
             CROSS JOIN LATERAL (
               SELECT count(*) AS unpacked, min(p.created_at) AS since
                 FROM (SELECT b.id FROM batches b
                        WHERE b.job_id = w.id AND b.ended_at IS NULL AND b.state = 'waiting'
                        ORDER BY b.id DESC LIMIT %(looked)s) AS b
                 JOIN purchases p ON p.batch_id = b.id AND p.remote_batch_id IS NULL AND p.epoch IS NULL) AS u""",
        {"jobs": list(job_ids), "looked": _LOOKED_AT},
    ).fetchall()
    return {cast(uuid.UUID, row.pop("id")): OnOrder(**row) for row in rows}
