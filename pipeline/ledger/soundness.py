"""Whether the ledger agrees with itself: what no transaction leaves behind, looked for in steps.

Each step is one statement, so one snapshot: work that is under way cannot look like a fault.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.ledger.engine import Transaction

# Documents, versions or jobs of one step.
_STEP = 500

_DOCUMENTS = """
WITH step AS MATERIALIZED (
  SELECT id, collection_id, published_version FROM documents WHERE id > %(after)s ORDER BY id LIMIT %(limit)s),
mine AS (SELECT * FROM step WHERE collection_id = %(collection)s)
SELECT d.id::text AS id,
       CASE WHEN newest.id IS DISTINCT FROM d.published_version THEN 'published'
            WHEN shown.chunks <> live.chunks THEN 'chunks' END AS issue,
       NULL::bigint AS last
  FROM mine d
  LEFT JOIN LATERAL (SELECT v.id FROM versions v WHERE v.document_id = d.id AND v.published_gen IS NOT NULL
                      ORDER BY v.published_gen DESC LIMIT 1) newest ON true
  LEFT JOIN LATERAL (SELECT CASE kind WHEN 'ingest' THEN coalesce(jsonb_array_length(manifest -> 'points'), 0)
                                      ELSE 0 END AS chunks
                       FROM versions WHERE id = d.published_version) shown ON true
  LEFT JOIN LATERAL (SELECT (SELECT count(*) FROM chunks c JOIN versions b ON b.id = c.born_version
                              WHERE c.document_id = d.id AND c.died_version IS NULL AND b.published_gen IS NOT NULL)
                          + (SELECT count(*) FROM versions o JOIN chunks c ON c.died_version = o.id
                              WHERE o.document_id = d.id AND o.state = 'open' AND c.born_version <> o.id) AS chunks
             ) live ON true
UNION ALL SELECT NULL, NULL, max(id) FROM step"""

_OPEN = """
WITH step AS MATERIALIZED (
  SELECT id, document_id, collection_id, pending FROM versions
   WHERE state = 'open' AND document_id > %(after)s ORDER BY document_id LIMIT %(limit)s),
mine AS (SELECT * FROM step WHERE collection_id = %(collection)s)
SELECT v.id::text AS id,
       CASE WHEN (SELECT count(*) FROM versions o WHERE o.document_id = v.document_id AND o.state = 'open') > 1
            THEN 'open_twice'
            WHEN v.pending <> left_over.chunks OR v.pending = 0 THEN 'pending'
       END AS issue, NULL::bigint AS last
  FROM mine v
 CROSS JOIN LATERAL (SELECT count(*) AS chunks FROM chunks c LEFT JOIN batches b ON b.id = c.batch_id
                      WHERE c.born_version = v.id AND c.died_version IS NULL
                        AND b.state IS DISTINCT FROM 'indexed') left_over
UNION ALL SELECT NULL, NULL, max(document_id) FROM step"""

_JOBS = """
WITH step AS MATERIALIZED (
  SELECT id, collection_id, finished_at, cost, cost_doubtful, cost_reserved
    FROM jobs WHERE id > %(after)s ORDER BY id LIMIT %(limit)s),
mine AS (SELECT * FROM step WHERE collection_id = %(collection)s),
held AS (SELECT job_id, sum(cost) AS cost FROM reservations GROUP BY job_id)
SELECT j.id::text AS id, 'jobs' AS issue, NULL::uuid AS last
  FROM mine j
 WHERE j.finished_at IS NOT NULL
   AND EXISTS (SELECT 1 FROM versions v WHERE v.job_id = j.id AND v.state IN ('staged', 'open'))
UNION ALL
SELECT j.id::text, 'costs', NULL
  FROM mine j LEFT JOIN held h ON h.job_id = j.id
 CROSS JOIN LATERAL (SELECT coalesce(sum(u.cost), 0) AS cost, coalesce(sum(u.doubtful_cost), 0) AS doubtful
                       FROM usage u WHERE u.job_id = j.id) AS used
 WHERE greatest(abs(j.cost - used.cost), abs(j.cost_doubtful - used.doubtful),
                abs(j.cost_reserved - coalesce(h.cost, 0))) > 1e-9 + 1e-8 * j.cost
UNION ALL SELECT NULL, NULL, (SELECT id FROM step ORDER BY id DESC LIMIT 1)"""

_CHECKS = ((_DOCUMENTS, 0), (_OPEN, 0), (_JOBS, "00000000-0000-0000-0000-000000000000"))


def issues(transaction: Transaction, collection_id: int) -> Iterator[tuple[str, str]]:
    """(issue, id) of what the ledger has wrong.

    published: a document whose published version is not the newest one that was published. chunks: a document that has
    other chunks than its published version's manifest names. open_twice: versions of which a document may have but one
    open. pending: an open version that waits for another number of chunks than are left to be indexed. jobs: ended,
    with versions that have not. costs: jobs whose cost is not the sum of what was used for them, or that have reserved
    another sum than their batches.
    """
    for statement, first in _CHECKS:
        yield from _in_steps(transaction, statement, first, collection_id)


def _in_steps(transaction: Transaction, statement: str, first: object, collection_id: int) -> Iterator[tuple[str, str]]:
    after: object | None = first
    while after is not None:
        with transaction() as connection:
            rows = connection.execute(
                statement, {"after": after, "collection": collection_id, "limit": _STEP}
            ).fetchall()
        yield from ((row["issue"], row["id"]) for row in rows if row["issue"])
        after = next(row["last"] for row in rows if row["id"] is None)
