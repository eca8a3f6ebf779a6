"""Texts on order with the Batch API, and the batches that wait for them.

An order is a row of `purchases` without an epoch. It is packed into a remote batch with others, and goes when its
vector is harvested; the batches that lack it are `waiting` meanwhile, and hold no worker.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence

from pipeline.ledger import batches, purchases
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import WantedPoint
from pipeline.ledger.engine import Connection
from pipeline.ledger.purchases import GIVEN_UP, LACKED, TEXTS, Begun, Doubt


def order(connection: Connection, claims: Sequence[Claim], missing: Iterable[WantedPoint], spec_hash: bytes) -> Begun:
    """Puts the missing texts on order with the Batch API, but for those that somebody is buying. `wait` comes next, in
    the same transaction. Raises LeaseLost."""
    batches.hold(connection, claims)
    points: dict[bytes, WantedPoint] = {}
    for point in missing:
        points.setdefault(point.embedding_key, point)
    if not points:
        return Begun()
    mine = _insert_orders(connection, points, spec_hash)
    taken: set[bytes] = set()
    elsewhere: set[bytes] = set()
    ordered: set[bytes] = set()
    failed: dict[bytes, str] = {}
    doubts: list[Doubt] = []
    own = {(claim.id, claim.epoch) for claim in claims}
    for row in purchases.meet(connection, points.keys() - mine):
        if row["given_up"]:
            failed[row["key"]] = row["error"] or "the Batch API has given it up"
        elif row["epoch"] is None:
            ordered.add(row["key"])
        elif row["live"] and (row["batch_id"], row["epoch"]) not in own:
            elsewhere.add(row["key"])
        else:
            taken.add(row["key"])
            doubts += purchases.doubts_of(row)
    _order_instead(connection, {key: points[key] for key in taken})
    _hurry(connection, {key: points[key].batch_id for key in ordered})
    return purchases.sort_out(connection, points.keys(), mine | taken, elsewhere, ordered, failed, doubts)


def _insert_orders(connection: Connection, points: Mapping[bytes, WantedPoint], spec_hash: bytes) -> set[bytes]:
    keys = sorted(points)
    rows = connection.execute(
        """INSERT INTO purchases (key, collection_id, batch_id, spec_hash, text, tokens, priority, need_by)
           SELECT w.key, b.collection_id, b.id, %(spec)s, w.text, w.tokens, b.priority, j.need_by
             FROM unnest(%(keys)s::bytea[], %(batches)s::bigint[], %(texts)s::text[], %(tokens)s::int[])
                    AS w (key, batch_id, text, tokens)
             JOIN batches b ON b.id = w.batch_id JOIN jobs j ON j.id = b.job_id
            ORDER BY w.key
           ON CONFLICT (key) DO NOTHING RETURNING key""",
        {
            "spec": spec_hash,
            "keys": keys,
            "batches": [points[key].batch_id for key in keys],
            "texts": [points[key].text for key in keys],
            "tokens": [points[key].tokens for key in keys],
        },
    ).fetchall()
    return {bytes(row["key"]) for row in rows}


def _order_instead(connection: Connection, points: Mapping[bytes, WantedPoint]) -> None:
    """Puts (locked) rows of the dead on order."""
    if not points:
        return
    connection.execute(
        """UPDATE purchases p
              SET batch_id = b.id, collection_id = b.collection_id, epoch = NULL, lease_until = NULL, text = w.text,
                  priority = b.priority, need_by = j.need_by, attempts = 0, error = NULL, created_at = clock_timestamp()
             FROM unnest(%s::bytea[], %s::bigint[], %s::text[]) AS w (key, batch_id, text)
             JOIN batches b ON b.id = w.batch_id JOIN jobs j ON j.id = b.job_id
            WHERE p.key = w.key""",
        (list(points), [point.batch_id for point in points.values()], [point.text for point in points.values()]),
    )


def _hurry(connection: Connection, wanting: Mapping[bytes, int]) -> None:
    """Of (locked) orders that are not packed yet (key -> a batch that wants it too), the most urgent that want one
    count."""
    if not wanting:
        return
    connection.execute(
        """UPDATE purchases p SET priority = least(p.priority, b.priority), need_by = least(p.need_by, j.need_by)
             FROM unnest(%s::bytea[], %s::bigint[]) AS w (key, batch_id)
             JOIN batches b ON b.id = w.batch_id JOIN jobs j ON j.id = b.job_id
            WHERE p.key = w.key AND p.remote_batch_id IS NULL
              AND (b.priority < p.priority OR j.need_by < coalesce(p.need_by, 'infinity'))""",
        (list(wanting), list(wanting.values())),
    )


def wait(connection: Connection, claims: Sequence[Claim], keys: Collection[bytes]) -> list[Claim]:
    """Claims wait for what is on order (their chunks lack these keys). Returns those that go on at once instead, ready
    again: what they lacked came meanwhile. Raises LeaseLost."""
    batches.hold(connection, claims)
    purchases.meet(connection, keys)
    rows = connection.execute(
        f"""UPDATE batches b
               SET state = CASE WHEN {purchases.ANSWERED} THEN 'ready' ELSE 'waiting' END,
                   lease_until = NULL, sent_at = NULL, next_attempt_at = NULL, error = NULL
             WHERE b.id = ANY(%s) AND b.state = 'running' RETURNING b.id, b.state""",
        ([claim.id for claim in claims],),
    ).fetchall()
    ready = {row["id"] for row in rows if row["state"] == "ready"}
    return [claim for claim in claims if claim.id in ready]


def withdraw(connection: Connection, keys: Iterable[bytes]) -> None:
    """Takes orders back that were made in this very transaction."""
    connection.execute("DELETE FROM purchases WHERE key = ANY(%s)", (sorted(keys),))


def forget(connection: Connection, keys: Iterable[bytes]) -> None:
    """Those of the keys that were given up, and that no batch lacks any more, may be tried anew by who comes later."""
    connection.execute(
        f"""DELETE FROM purchases WHERE key IN (
             SELECT p.key FROM purchases p
              WHERE p.key = ANY(%s) AND {GIVEN_UP}
                AND NOT {LACKED}
              ORDER BY p.key FOR UPDATE)""",
        (sorted(keys),),
    )


def leave(connection: Connection, job_id: uuid.UUID, limit: int) -> int:
    """The (cancelled) job wants none of what it has on order any more: up to `limit` orders that are not packed yet go;
    where another job lacks the text, they are that one's. Returns how many."""
    rows = connection.execute(
        """SELECT p.key FROM batches b JOIN purchases p ON p.batch_id = b.id
            WHERE b.job_id = %s AND b.ended_at IS NULL AND p.epoch IS NULL AND p.remote_batch_id IS NULL
            ORDER BY p.key LIMIT %s FOR UPDATE OF p""",
        (job_id, limit),
    ).fetchall()
    keys = [bytes(row["key"]) for row in rows]
    if not keys:
        return 0
    inherited = connection.execute(
        f"""UPDATE purchases p SET batch_id = o.id, collection_id = o.collection_id, priority = o.priority,
                   need_by = o.need_by
              FROM (SELECT DISTINCT ON (t.key) t.key, b.id, b.collection_id, b.priority, j.need_by
                      FROM {TEXTS} t JOIN batches b ON b.id = t.batch_id JOIN jobs j ON j.id = b.job_id
                     WHERE t.key = ANY(%s) AND b.ended_at IS NULL AND b.job_id <> %s
                     ORDER BY t.key, b.priority, b.id) AS o
             WHERE p.key = o.key RETURNING p.key""",
        (keys, job_id),
    ).fetchall()
    connection.execute(
        "DELETE FROM purchases WHERE key = ANY(%s)",
        (sorted(set(keys) - {bytes(row["key"]) for row in inherited}),),
    )
    return len(keys)


def follow(connection: Connection, job_id: uuid.UUID, limit: int) -> int:
    """Gives up to `limit` orders of the job that are not packed yet its priority. Returns how many."""
    return connection.execute(
        """WITH mine AS MATERIALIZED (
             SELECT p.key, j.priority FROM jobs j
               JOIN batches b ON b.job_id = j.id AND b.ended_at IS NULL JOIN purchases p ON p.batch_id = b.id
              WHERE j.id = %s AND p.epoch IS NULL AND p.remote_batch_id IS NULL AND p.priority <> j.priority
              ORDER BY p.key LIMIT %s FOR NO KEY UPDATE OF p)
           UPDATE purchases p SET priority = mine.priority FROM mine WHERE p.key = mine.key""",
        (job_id, limit),
    ).rowcount
