"""What must be true of the ledger after every step of anything, asked in SQL of the tests' own."""

from __future__ import annotations

from typing import Any

from workshop import Workshop

from pipeline.lifecycle import check

TABLES = (
    "staged, chunks, batches, embeddings, versions, documents, dead_letters, webhook_deliveries, pauses, circuits, "
    "duties, workers, schedules, jobs, collections, steps"
)

_VISIBLE = """
    SELECT c.document_id, c.point_id FROM chunks c
      JOIN versions born ON born.id = c.born_version LEFT JOIN versions died ON died.id = c.died_version
     WHERE born.published_gen IS NOT NULL AND died.published_gen IS NULL"""

_SHOWN = """
    SELECT v.document_id, p.point::uuid AS point_id FROM documents d
      JOIN versions v ON v.id = d.published_version AND v.kind = 'ingest'
     CROSS JOIN LATERAL jsonb_array_elements_text(v.manifest -> 'points') AS p (point)"""

# What is wrong -> the rows of which it is.
_FAULTS = {
    "an open version whose `pending` is not its chunks that are in no indexed batch, or that nobody published": """
        SELECT v.* FROM versions v WHERE v.state = 'open' AND (v.pending = 0 OR v.pending <> (
            SELECT count(*) FROM chunks c JOIN batches b ON b.id = c.batch_id
             WHERE c.born_version = v.id AND b.state <> 'indexed'))""",
    "a chunk of an open version in a batch that will never be done": """
        SELECT c.point_id, b.* FROM chunks c JOIN versions v ON v.id = c.born_version
          JOIN batches b ON b.id = c.batch_id
         WHERE v.state = 'open' AND b.state IN ('dead', 'cancelled')""",
    "a staged version that nobody will prepare": """
        SELECT v.* FROM versions v WHERE v.state = 'staged' AND NOT EXISTS (
            SELECT 1 FROM staged s LEFT JOIN batches b ON b.id = s.batch_id
             WHERE s.version_id = v.id AND (s.batch_id IS NULL OR b.ended_at IS NULL))""",
    "staged content of a version that has ended": """
        SELECT v.* FROM staged s JOIN versions v ON v.id = s.version_id WHERE v.state NOT IN ('staged', 'open')""",
    "several open or several staged versions of a document": """
        SELECT document_id, state, count(*) FROM versions WHERE state IN ('open', 'staged')
         GROUP BY document_id, state HAVING count(*) > 1""",
    "a batch that has ended and goes on, or has not and is not": """
        SELECT * FROM batches WHERE (ended_at IS NOT NULL) <> (state IN ('indexed', 'dead', 'cancelled'))
            OR (state = 'running' AND (owner IS NULL OR lease_until IS NULL))""",
    "a counter of documents that is not the number of them": """
        SELECT j.* FROM jobs j CROSS JOIN LATERAL (
            SELECT count(*) AS all_of, count(*) FILTER (WHERE state = 'published' AND kind = 'ingest') AS indexed,
                   count(*) FILTER (WHERE state = 'published' AND kind = 'delete') AS deleted,
                   count(*) FILTER (WHERE state = 'unchanged') AS unchanged,
                   count(*) FILTER (WHERE state = 'failed') AS failed,
                   count(*) FILTER (WHERE state = 'superseded') AS superseded,
                   count(*) FILTER (WHERE state = 'cancelled') AS cancelled
              FROM versions v WHERE v.job_id = j.id) AS n
         WHERE documents_total - documents_unchanged <> n.all_of - n.unchanged OR documents_unchanged < n.unchanged
            OR (documents_indexed, documents_deleted, documents_failed, documents_superseded, documents_cancelled)
               <> (n.indexed, n.deleted, n.failed, n.superseded, n.cancelled)""",
    "a counter of chunks that is out of bounds": """
        SELECT * FROM jobs WHERE chunks_indexed > chunks_total OR chunks_embedded > chunks_total""",
    "a finished job with unfinished documents, or a sealed one that nobody finished": """
        SELECT * FROM (SELECT j.*, EXISTS (SELECT 1 FROM versions v WHERE v.job_id = j.id
                                              AND v.state IN ('staged', 'open')) AS unfinished FROM jobs j) AS j
         WHERE (finished_at IS NOT NULL AND (unfinished OR state IN ('queued', 'running', 'paused')))
            -- Cancelled and unfinished: whoever cancelled it was killed before it had ended all of it.
            OR (finished_at IS NULL AND (state IN ('succeeded', 'partial', 'failed')
               OR (sealed_at IS NOT NULL AND NOT unfinished AND state <> 'cancelled'
                   AND coalesce(error, '') NOT LIKE 'the enqueuer went silent%%')))""",
    "versions of a document that were published in another order than that of their ids": """
        SELECT a.id, b.id AS later FROM versions a JOIN versions b ON b.document_id = a.document_id AND b.id > a.id
         WHERE a.published_gen IS NOT NULL AND b.published_gen <= a.published_gen""",
    "a document that does not show the newest of its published versions": """
        SELECT d.* FROM documents d WHERE d.published_version IS DISTINCT FROM (
            SELECT max(v.id) FROM versions v WHERE v.document_id = d.id AND v.state = 'published')""",
    "a document whose newest version is neither the last unfinished one nor the published one": """
        SELECT d.* FROM documents d WHERE d.newest_version IS DISTINCT FROM coalesce((
            SELECT max(v.id) FROM versions v WHERE v.document_id = d.id AND v.state IN ('staged', 'open')),
            d.published_version)""",
    "a version published in a generation that its collection has not reached": """
        SELECT v.* FROM versions v JOIN collections k ON k.id = v.collection_id WHERE v.published_gen > k.generation""",
    "a chunk that can be seen and is not of the published version": f"{_VISIBLE} EXCEPT {_SHOWN}",
    "a chunk of the published version that cannot be seen": f"{_SHOWN} EXCEPT {_VISIBLE}",
    "a chunk removed by a version that did not come to be": """
        SELECT c.* FROM chunks c JOIN versions v ON v.id = c.died_version
         WHERE c.died_version <> c.born_version AND v.state NOT IN ('open', 'published')""",
    "a live chunk of a version that did not come to be": """
        SELECT c.* FROM chunks c JOIN versions v ON v.id = c.born_version
         WHERE c.died_version IS NULL AND v.state NOT IN ('open', 'published')""",
    "a chunk that will never be contracted": """
        SELECT c.* FROM chunks c JOIN versions v ON v.id = c.died_version
         WHERE v.ended_at IS NOT NULL AND v.contracted > 1""",
    "an embedding that was counted not once": """
        SELECT * FROM (SELECT (SELECT count(*) FROM embeddings) AS stored,
                              (SELECT coalesce(sum(chunks_embedded), 0) FROM jobs) AS counted) AS n
         WHERE stored <> counted""",
}


def watch_steps(workshop: Workshop) -> None:
    """Writes down every change of a state, and refuses an epoch that goes back, or stays when work changes hands."""
    workshop.sql("CREATE TABLE steps (machine text, before text, after text)")
    workshop.sql(
        """CREATE FUNCTION write_step() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN INSERT INTO steps VALUES (TG_ARGV[0], OLD.state, NEW.state); RETURN NULL; END $$"""
    )
    workshop.sql(
        """CREATE FUNCTION check_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN RAISE EXCEPTION 'batch %%: epoch %% after %%', OLD.id, NEW.epoch, OLD.epoch; END $$"""
    )
    for machine, table in (("job", "jobs"), ("version", "versions"), ("batch", "batches")):
        workshop.sql(
            f"""CREATE TRIGGER watch AFTER UPDATE ON {table} FOR EACH ROW
                WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION write_step('{machine}')"""
        )
    workshop.sql(
        """CREATE TRIGGER fence BEFORE UPDATE ON batches FOR EACH ROW
           WHEN (NEW.epoch < OLD.epoch OR (NEW.epoch = OLD.epoch AND (OLD.state, NEW.state)
                   IN (('ready', 'running'), ('ready', 'cancelled'), ('running', 'cancelled'))))
           EXECUTE FUNCTION check_epoch()"""
    )


def assert_steps_are_legal(workshop: Workshop) -> set[tuple[str, str, str]]:
    """Every step since the last call was one of lifecycle.py. Returns them."""
    rows = workshop.sql("DELETE FROM steps RETURNING machine, before, after")
    steps = {(row["machine"], row["before"], row["after"]) for row in rows}
    for machine, before, after in steps:
        check(machine, before, after)
    return steps


def faults(workshop: Workshop) -> dict[str, list[dict[str, Any]]]:
    """What is wrong in the ledger -> the rows; empty where nothing is."""
    parts = " UNION ALL ".join(
        f"SELECT {number} AS fault, to_jsonb(f) AS found FROM ({query}) AS f"
        for number, query in enumerate(_FAULTS.values())
    )
    names = list(_FAULTS)
    told: dict[str, list[dict[str, Any]]] = {}
    for row in workshop.sql(parts):
        told.setdefault(names[row["fault"]], []).append(row["found"])
    return told
