"""What routing reads and writes: how a job stands, who embeds for it, and which of its work is on order elsewhere."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pipeline.ledger.engine import Connection
from pipeline.ledger.fleet import ALIVE_SECONDS
from pipeline.ledger.jobs import PRIORITIES

# As the reason begins of a job that nobody can bring in time.
WILL_BE_LATE = "it will be late: "


@dataclass(frozen=True, slots=True)
class JobToRoute:
    """A job as routing sees it. seconds_left: until `need_by`, by the ledger's clock; negative: it is past.

    spent: US dollars, what is doubtful and what is held back for work that is under way included. to_prepare: documents
    whose chunks are not known yet. slots: of live workers that consume its queue.
    """

    id: uuid.UUID
    provider: str
    routed: str | None
    seconds_left: float | None
    max_cost: float | None
    spent: float
    to_prepare: int
    slots: int


def job_to_route(connection: Connection, job_id: uuid.UUID) -> JobToRoute:
    row = connection.execute(
        """SELECT j.id, j.provider, j.routed, j.max_cost, j.cost + j.cost_doubtful + j.cost_reserved AS spent,
                  extract(epoch FROM j.need_by - clock_timestamp())::float8 AS seconds_left,
                  greatest(0, j.documents_total - j.documents_unchanged - j.documents_prepared
                              - j.documents_superseded - j.documents_cancelled) AS to_prepare,
                  (SELECT coalesce(sum(w.slots), 0) FROM workers w
                    WHERE (%(queues)s::text[])[j.priority + 1] = ANY(string_to_array(w.queues, ','))
                      AND w.seen_at > clock_timestamp() - make_interval(secs => %(alive)s)) AS slots
             FROM jobs j WHERE j.id = %(id)s""",
        {"id": job_id, "queues": list(PRIORITIES), "alive": ALIVE_SECONDS},
    ).fetchone()
    assert row is not None
    return JobToRoute(**row)


def remember(connection: Connection, job_id: uuid.UUID, provider: str, reason: str) -> str:
    """Writes down who embeds for the job, unless another worker has by now. Returns who does."""
    row = connection.execute(
        """UPDATE jobs SET routed = %s, route_reason = %s, routed_at = clock_timestamp()
            WHERE id = %s AND routed IS NULL RETURNING routed""",
        (provider, reason, job_id),
    ).fetchone()
    if row is None:
        row = connection.execute("SELECT routed FROM jobs WHERE id = %s", (job_id,)).fetchone()
    assert row is not None
    return str(row["routed"])


def missing(connection: Connection, wanted: Mapping[bytes, int]) -> list[int]:
    """Of texts (key -> tokens), the tokens of each whose vector is not stored."""
    rows = connection.execute("SELECT key FROM embeddings WHERE key = ANY(%s)", (list(wanted),)).fetchall()
    stored = {bytes(row["key"]) for row in rows}
    return [tokens for key, tokens in wanted.items() if key not in stored]


# -- work that will be late ------------------------------------------------------------------------------------------

# Work of a job j that the Batch API has, or is to get. A re-embedding is needed by nobody: the old vectors serve.
_ELSEWHERE = """(b.job_id = j.id AND b.ended_at IS NULL AND b.kind = 'embed' AND b.state IN ('ready', 'waiting')
                 AND b.reembedding_id IS NULL AND (b.provider = 'openai_batch' OR b.state = 'waiting'))"""


@dataclass(frozen=True, slots=True)
class LateJob:
    """A job whose `need_by` is near, and that has work at the Batch API. moved: it was decided before that the rest
    goes online; told: and what was said of it then. model: of its collection. tokens: of that work, at most."""

    id: uuid.UUID
    tenant: str
    collection: str
    model: Mapping[str, object]
    need_by: datetime
    seconds_left: float
    max_cost: float | None
    spent: float
    moved: bool
    told: str | None
    told_seconds: float | None
    tokens: int


def near(connection: Connection, within_seconds: float, limit: int) -> list[LateJob]:
    """Those that are needed within these seconds, the most urgent first."""
    rows = connection.execute(
        f"""SELECT j.id, j.tenant, c.name AS collection, c.model, j.need_by, j.max_cost,
                   extract(epoch FROM j.need_by - clock_timestamp())::float8 AS seconds_left,
                   j.cost + j.cost_doubtful + j.cost_reserved AS spent,
                   coalesce(j.routed, j.provider) = 'openai' AS moved, j.route_reason AS told,
                   extract(epoch FROM clock_timestamp() - j.routed_at)::float8 AS told_seconds,
                   (SELECT coalesce(sum(b.tokens), 0) FROM batches b WHERE {_ELSEWHERE})::bigint AS tokens
              FROM jobs j JOIN collections c ON c.id = j.collection_id
             WHERE j.finished_at IS NULL AND j.need_by IS NOT NULL AND j.state NOT IN ('paused', 'cancelled')
               AND j.need_by < clock_timestamp() + make_interval(secs => %(within)s)
               AND EXISTS (SELECT 1 FROM batches b WHERE {_ELSEWHERE})
             ORDER BY j.need_by, j.id LIMIT %(limit)s""",
        {"within": within_seconds, "limit": limit},
    ).fetchall()
    return [LateJob(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class Rest:
    """What of a job is at the Batch API, or to get there. tokens: of texts without a vector. reserved: US dollars that
    are held back for it."""

    batch_ids: Sequence[int]
    tokens: int
    reserved: float


def rest(connection: Connection, job_id: uuid.UUID) -> Rest:
    """Of a job of any size: its chunks are counted, by index."""
    row = connection.execute(
        f"""WITH own AS MATERIALIZED (
              SELECT b.id FROM batches b, (SELECT %(job)s::uuid AS id) AS j WHERE {_ELSEWHERE}),
            texts AS (
              SELECT c.embedding_key, max(c.tokens) AS tokens FROM chunks c
               WHERE c.batch_id IN (SELECT id FROM own) AND c.died_version IS NULL
                 AND NOT EXISTS (SELECT 1 FROM embeddings e WHERE e.key = c.embedding_key)
               GROUP BY c.embedding_key)
            SELECT (SELECT coalesce(array_agg(id ORDER BY id), '{{}}') FROM own) AS batch_ids,
                   (SELECT coalesce(sum(tokens), 0) FROM texts)::bigint AS tokens,
                   (SELECT coalesce(sum(r.cost), 0) FROM reservations r
                     WHERE r.batch_id IN (SELECT id FROM own)) AS reserved""",
        {"job": job_id},
    ).fetchone()
    assert row is not None
    return Rest(**row)


def move_online(connection: Connection, job_id: uuid.UUID, reason: str) -> int:
    """From now on the job's work is done online: what is to be embedded, and what comes to be. Returns how many batches
    changed."""
    moved = connection.execute(
        """UPDATE batches SET provider = 'openai'
            WHERE id IN (SELECT id FROM batches
                          WHERE job_id = %s AND ended_at IS NULL AND kind = 'embed' AND provider = 'openai_batch'
                          ORDER BY id FOR NO KEY UPDATE)""",
        (job_id,),
    ).rowcount
    tell(connection, job_id, reason, "openai")
    return moved


def tell(connection: Connection, job_id: uuid.UUID, reason: str, routed: str | None = None) -> None:
    """Says how the job is embedded, and why. routed: by whom from now on; None: as before."""
    connection.execute(
        """UPDATE jobs SET routed = coalesce(%s, routed, provider), route_reason = %s, routed_at = clock_timestamp()
            WHERE id = %s""",
        (routed, reason, job_id),
    )


def withdraw(connection: Connection, batch_ids: Collection[int]) -> list[int]:
    """Marks the orders of what these (waiting) batches lack, whoever ordered it: they are not packed (again). Returns
    the remote batches that hold some of them."""
    rows = connection.execute(
        """WITH wanted AS MATERIALIZED (
             SELECT p.key FROM purchases p
              WHERE p.epoch IS NULL
                AND p.key IN (SELECT c.embedding_key FROM chunks c
                               WHERE c.batch_id = ANY(%s) AND c.died_version IS NULL)
              ORDER BY p.key FOR NO KEY UPDATE OF p),
           marked AS (
             UPDATE purchases p SET withdrawn = true FROM wanted w WHERE p.key = w.key RETURNING p.remote_batch_id)
           SELECT DISTINCT remote_batch_id FROM marked WHERE remote_batch_id IS NOT NULL ORDER BY remote_batch_id""",
        (sorted(batch_ids),),
    ).fetchall()
    return [row["remote_batch_id"] for row in rows]


def release(connection: Connection, batch_ids: Collection[int]) -> int:
    """Makes those of these waiting batches ready of which no text is in a remote batch any more. Returns how many."""
    return connection.execute(
        """UPDATE batches SET state = 'ready', sent_at = NULL, next_attempt_at = NULL
            WHERE id IN (SELECT b.id FROM batches b
                          WHERE b.id = ANY(%s) AND b.state = 'waiting'
                            AND NOT EXISTS (SELECT 1 FROM chunks c JOIN purchases p ON p.key = c.embedding_key
                                             WHERE c.batch_id = b.id AND c.died_version IS NULL
                                               AND p.remote_batch_id IS NOT NULL)
                          ORDER BY b.id FOR NO KEY UPDATE)""",
        (sorted(batch_ids),),
    ).rowcount


def restore(connection: Connection, limit: int) -> int:
    """Withdrawn orders that nobody buys online any more (their job was cancelled, or is paused) go to the Batch API
    after all: other jobs may wait for them. Returns how many."""
    return connection.execute(
        """UPDATE purchases SET withdrawn = false
            WHERE key IN (
              SELECT p.key FROM purchases p
               WHERE p.withdrawn AND p.epoch IS NULL
                 AND NOT EXISTS (
                   SELECT 1 FROM chunks c JOIN batches b ON b.id = c.batch_id JOIN jobs j ON j.id = b.job_id
                    WHERE c.embedding_key = p.key AND c.died_version IS NULL AND b.ended_at IS NULL
                      AND b.provider = 'openai' AND j.state NOT IN ('paused', 'cancelled'))
               ORDER BY p.key LIMIT %s FOR NO KEY UPDATE OF p)""",
        (limit,),
    ).rowcount
