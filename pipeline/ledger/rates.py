"""How fast jobs are: sampled by `reconcile`, so that one that has become slow is told from one that always was.

A rate is measured over an interval that is long enough to say something: batches complete in lumps, and what is in
flight may be a lump that is just about to come. It is over when so much has come that the lumps don't matter, or after
`_LONGEST_SECONDS`; a job that would be saturated even with all that is in flight is so already before. Where the job is
not embedding at its end (it is paused, or only prepares, or waits for what is away), the interval does not count.

The best rate is one that two intervals in a row have reached: one burst says nothing.
"""

from __future__ import annotations

from pipeline.ledger.engine import Connection

# How much of the newest interval is in the rate.
_NEWEST = 0.6
# So many times what is in flight: the ends of the interval then err by a fourth at most.
_LUMPS = 4
_LONGEST_SECONDS = 120.0
# Below this share of its best rate, a job is saturated; `diagnosis` says so.
SATURATED = 0.5


def sample(connection: Connection, interval_seconds: float, limit: int) -> int:
    """Measures the jobs that are at work and were last measured so long ago. Returns how many intervals counted."""
    row = connection.execute(
        """WITH running AS MATERIALIZED (
             SELECT job_id, kind, size, wedged_at IS NULL AND lease_until > clock_timestamp() AS proper
               FROM batches WHERE state = 'running'),
           flight AS (
             SELECT job_id, sum(size) AS chunks FROM running GROUP BY job_id
             HAVING bool_and(kind = 'embed' AND proper)),
           due AS (
             SELECT id FROM jobs
              WHERE finished_at IS NULL AND state = 'running' AND indexing_since IS NOT NULL
                AND (sampled_at IS NULL OR sampled_at < clock_timestamp() - make_interval(secs => %(interval)s))
              ORDER BY id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED),
           measured AS (
             SELECT j.id, j.rate AS before, j.best_rate, j.chunks_indexed, f.chunks AS flight, j.sampled_at,
                    j.chunks_indexed - j.sampled_chunks AS come,
                    greatest(extract(epoch FROM clock_timestamp() - j.sampled_at), 0.001)::float8 AS seconds,
                    f.job_id IS NOT NULL
                      AND NOT EXISTS (SELECT 1 FROM circuits c WHERE c.opened_at IS NOT NULL)
                      AND NOT EXISTS (SELECT 1 FROM pauses p
                                       WHERE p.collection_id IS NULL OR p.collection_id = j.collection_id) AS works
               FROM jobs j JOIN due d ON d.id = j.id LEFT JOIN flight f ON f.job_id = j.id),
           told AS (
             SELECT m.*, works AND sampled_at IS NOT NULL
                      AND (come >= flight * %(lumps)s OR seconds >= %(longest)s) AS counts,
                    works AND sampled_at IS NOT NULL
                      AND coalesce((come + flight) / seconds < best_rate * %(saturated)s, false) AS slow
               FROM measured m),
           rated AS (
             SELECT t.*, CASE WHEN slow AND NOT counts THEN (come + flight) / seconds ELSE come / seconds END AS now
               FROM told t),
           changed AS (
             UPDATE jobs j
                SET rate = CASE WHEN slow THEN now
                                WHEN counts THEN coalesce(before, now) * (1 - %(newest)s) + now * %(newest)s
                                ELSE j.rate END,
                    best_rate = CASE WHEN counts THEN greatest(j.best_rate, least(before, now)) ELSE j.best_rate END,
                    sampled_at = CASE WHEN NOT works THEN NULL
                                      WHEN counts OR j.sampled_at IS NULL THEN clock_timestamp()
                                      ELSE j.sampled_at END,
                    sampled_chunks = CASE WHEN slow AND NOT counts THEN j.sampled_chunks ELSE j.chunks_indexed END
               FROM rated r WHERE j.id = r.id AND (counts OR slow OR works <> (r.sampled_at IS NOT NULL))
          RETURNING counts OR slow AS counted)
           SELECT count(*) FILTER (WHERE counted) AS n FROM changed""",
        {
            "interval": interval_seconds,
            "limit": limit,
            "lumps": _LUMPS,
            "longest": _LONGEST_SECONDS,
            "saturated": SATURATED,
            "newest": _NEWEST,
        },
    ).fetchone()
    return int(row["n"]) if row else 0
