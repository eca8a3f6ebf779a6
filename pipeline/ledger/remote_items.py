"""What is in remote batches: rows of `purchases` without an epoch, and what becomes of each.

A row is wanted (`remote_batch_id` is null) until it is packed into a remote batch, and is that one's alone until its
line was read: then it goes, in the transaction that stores its vector, or is wanted again. So what a remote batch has
left at the end is what neither of its files had. Nobody else deletes a row that is packed.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.ledger.engine import Connection
from pipeline.ledger.pauses import paused

# Of one text: after so many failures at the provider it is given up.
MOST_ATTEMPTS = 3

_WANTED = "p.remote_batch_id IS NULL AND p.epoch IS NULL"
# Of rows p that are wanted: not those that were given up, which wait for their batches to read why; nor those that are
# to be bought online instead, since they would be late.
BUYABLE = f"{_WANTED} AND p.attempts < {MOST_ATTEMPTS} AND NOT p.withdrawn"

# Of rows p: somebody needs the text still. One row's question each time, by index, however many chunks there are.
_NEEDED = """((SELECT 1 FROM batches b WHERE b.id = p.batch_id AND b.ended_at IS NULL) IS NOT NULL
    OR (SELECT 1 FROM chunks c JOIN batches b ON b.id = c.batch_id
         WHERE c.embedding_key = p.key AND c.died_version IS NULL AND b.ended_at IS NULL LIMIT 1) IS NOT NULL
    OR (SELECT 1 FROM reembed_chunks r JOIN batches b ON b.id = r.batch_id
         WHERE r.embedding_key = p.key AND NOT r.done AND b.ended_at IS NULL LIMIT 1) IS NOT NULL)"""


# -- packing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pool:
    """Texts that are wanted and could share a remote batch. bytes: of the texts alone; oldest_seconds: since the first
    of them was ordered; need_by_seconds: until the soonest is needed, None: it is not said."""

    spec_hash: bytes
    inputs: int
    tokens: int
    bytes: int
    oldest_seconds: float
    need_by_seconds: float | None


def waiting(connection: Connection) -> bool:
    """Whether any text waits to be packed."""
    row = connection.execute(f"SELECT EXISTS (SELECT 1 FROM purchases p WHERE {BUYABLE}) AS some").fetchone()
    return bool(row and row["some"])


def resting(connection: Connection) -> list[int]:
    """The batches that wait for what they have ordered, and whose job, collection or everything is paused."""
    rows = connection.execute(
        f"""SELECT b.id FROM batches b JOIN jobs j ON j.id = b.job_id
             WHERE b.state = 'waiting' AND (j.state = 'paused' OR {paused("b.collection_id")})"""
    ).fetchall()
    return [row["id"] for row in rows]


def pools(connection: Connection, resting: Sequence[int] = ()) -> list[Pool]:
    """What waits to be packed, the most urgent first; without what these batches have ordered."""
    rows = connection.execute(
        f"""SELECT p.spec_hash, count(*) AS inputs, sum(p.tokens)::bigint AS tokens,
                   coalesce(sum(octet_length(p.text)), 0)::bigint AS bytes,
                   extract(epoch FROM clock_timestamp() - min(p.created_at))::float8 AS oldest_seconds,
                   extract(epoch FROM min(p.need_by) - clock_timestamp())::float8 AS need_by_seconds
              FROM purchases p WHERE {BUYABLE} AND p.batch_id <> ALL (%s::bigint[]) GROUP BY p.spec_hash
             ORDER BY min(p.need_by) NULLS LAST, min(p.priority), min(p.created_at)""",
        (list(resting),),
    ).fetchall()
    return [Pool(**{**row, "spec_hash": bytes(row["spec_hash"])}) for row in rows]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A text that waits. bytes: of the text alone."""

    key: bytes
    tokens: int
    bytes: int
    priority: int
    need_by: datetime | None
    batch_id: int


_NEXT = f"""
SELECT p.key, p.batch_id, p.tokens, p.priority, p.need_by FROM purchases p
 WHERE {BUYABLE} AND p.spec_hash = %(spec_hash)s AND p.batch_id <> ALL (%(resting)s::bigint[])
 ORDER BY p.need_by NULLS LAST, p.priority, p.created_at, p.key LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED"""


def drop_unneeded(connection: Connection, spec_hash: bytes, limit: int, resting: Sequence[int] = ()) -> int:
    """Of the texts that would be packed next, forgets those that nobody needs any more (their jobs were cancelled), and
    those that were embedded here meanwhile. Returns how many."""
    return connection.execute(
        # An array: each of them is asked about once, whatever the planner thinks of how many are not needed.
        f"""WITH next AS MATERIALIZED ({_NEXT})
            DELETE FROM purchases WHERE key = ANY (ARRAY(
              SELECT p.key FROM next p
               WHERE NOT {_NEEDED} OR (SELECT 1 FROM embeddings e WHERE e.key = p.key) IS NOT NULL))""",
        {"spec_hash": spec_hash, "limit": limit, "resting": list(resting)},
    ).rowcount


def take(connection: Connection, spec_hash: bytes, limit: int, resting: Sequence[int] = ()) -> list[Wanted]:
    """Up to `limit` of the pool, locked: the soonest needed first, then by priority and age."""
    rows = connection.execute(
        f"""WITH next AS MATERIALIZED ({_NEXT})
            SELECT n.*, octet_length(p.text) AS bytes
              FROM next n JOIN purchases p ON p.key = n.key
             ORDER BY n.need_by NULLS LAST, n.priority, p.created_at, n.key""",
        {"spec_hash": spec_hash, "limit": limit, "resting": list(resting)},
        binary=True,
    ).fetchall()
    return [Wanted(**{**row, "key": bytes(row["key"])}) for row in rows]


def sample(connection: Connection, spec_hash: bytes) -> tuple[bytes, str]:
    """(key, text) of one of the pool."""
    row = connection.execute(
        f"SELECT p.key, p.text FROM purchases p WHERE {BUYABLE} AND p.spec_hash = %s LIMIT 1", (spec_hash,)
    ).fetchone()
    return (bytes(row["key"]), row["text"]) if row else (b"", "")


def pack(connection: Connection, remote_id: int, keys: Sequence[bytes]) -> None:
    """Puts texts that `take` has locked into a remote batch."""
    connection.execute(
        "UPDATE purchases SET remote_batch_id = %b WHERE key = ANY(%b)", (remote_id, sorted(keys)), binary=True
    )


def jobs_of(connection: Connection, batch_ids: Sequence[int]) -> list[uuid.UUID]:
    """The jobs of these (ledger) batches."""
    rows = connection.execute(
        "SELECT DISTINCT job_id FROM batches WHERE id = ANY(%s) ORDER BY job_id", (sorted(set(batch_ids)),)
    ).fetchall()
    return [row["job_id"] for row in rows]


def models(connection: Connection) -> list[Mapping[str, Any]]:
    """The models that texts may be embedded with: of the collections, and those that they are changing to."""
    rows = connection.execute(
        """SELECT DISTINCT model FROM (
             SELECT model FROM collections UNION ALL SELECT model FROM reembeddings WHERE ended_at IS NULL) AS m"""
    ).fetchall()
    return [row["model"] for row in rows]


# -- rendering -------------------------------------------------------------------------------------------------------


def page(connection: Connection, remote_id: int, after: bytes, limit: int) -> list[tuple[bytes, str]]:
    """(key, text) of a remote batch's texts by key, behind that one: the same at every call, until it is harvested."""
    rows = connection.execute(
        """SELECT key, text FROM purchases WHERE remote_batch_id = %s AND key > %s ORDER BY key LIMIT %s""",
        (remote_id, after, limit),
    ).fetchall()
    return [(bytes(row["key"]), row["text"]) for row in rows]


@dataclass(frozen=True, slots=True)
class Held:
    """What a remote batch holds: inputs, and their tokens as counted before."""

    inputs: int
    tokens: int


def held(connection: Connection, remote_id: int) -> Held:
    row = connection.execute(
        """SELECT count(*) AS inputs, coalesce(sum(tokens), 0)::bigint AS tokens FROM purchases
            WHERE remote_batch_id = %s""",
        (remote_id,),
    ).fetchone()
    assert row is not None
    return Held(**row)


def needed(connection: Connection, remote_id: int) -> bool:
    """Whether somebody needs any of its texts still. That ends with the first that is; else it looks at all."""
    row = connection.execute(
        f"""SELECT (SELECT 1 FROM purchases p WHERE p.remote_batch_id = %s AND {_NEEDED} LIMIT 1) IS NOT NULL
                AS needed""",
        (remote_id,),
    ).fetchone()
    return bool(row and row["needed"])


# -- harvesting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Payer:
    """Whose text it was: who pays for it. job_id, batch_id: None where its batch is gone."""

    batch_id: int | None
    job_id: uuid.UUID | None
    tenant: str
    collection: str


def waiting_for(connection: Connection, remote_id: int, keys: Sequence[bytes]) -> dict[bytes, int]:
    """key -> tokens as counted before, for those of the keys that the remote batch has left. Nobody but its claim takes
    any of them away."""
    rows = connection.execute(
        "SELECT key, tokens FROM purchases WHERE remote_batch_id = %s AND key = ANY(%s)", (remote_id, sorted(keys))
    ).fetchall()
    return {bytes(row["key"]): row["tokens"] for row in rows}


def stored(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, int]:
    """key -> tokens, for those of the keys that have their vector."""
    rows = connection.execute("SELECT key, tokens FROM embeddings WHERE key = ANY(%s)", (sorted(keys),)).fetchall()
    return {bytes(row["key"]): row["tokens"] for row in rows}


_PAYER = """b.id AS batch_id, b.job_id, coalesce(b.tenant, '') AS tenant, coalesce(c.name, '') AS collection"""


def arrived(connection: Connection, remote_id: int, keys: Sequence[bytes]) -> dict[bytes, Payer]:
    """The vectors of these are stored: their rows go. Returns who pays for each."""
    rows = connection.execute(
        f"""WITH locked AS MATERIALIZED (
              SELECT key FROM purchases WHERE remote_batch_id = %s AND key = ANY(%s) ORDER BY key FOR UPDATE),
            gone AS (
              DELETE FROM purchases p USING locked l WHERE p.key = l.key
              RETURNING p.key, p.batch_id, p.collection_id)
            SELECT g.key, {_PAYER}
              FROM gone g LEFT JOIN batches b ON b.id = g.batch_id LEFT JOIN collections c ON c.id = g.collection_id""",
        (remote_id, sorted(keys)),
    ).fetchall()
    return {bytes(row.pop("key")): Payer(**row) for row in rows}


def payers(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, Payer]:
    """Who ordered, or uses, these texts: of duplicates, and of answers without a vector, which are paid for as well."""
    rows = connection.execute(
        f"""WITH wanted AS (SELECT key FROM unnest(%s::bytea[]) AS w (key))
            SELECT DISTINCT ON (w.key) w.key, {_PAYER}
              FROM wanted w LEFT JOIN purchases p ON p.key = w.key LEFT JOIN chunks k ON k.embedding_key = w.key
              LEFT JOIN reembed_chunks r ON r.embedding_key = w.key
              LEFT JOIN batches b ON b.id = coalesce(p.batch_id, r.batch_id, k.batch_id)
              LEFT JOIN collections c ON c.id = coalesce(p.collection_id, b.collection_id)
             ORDER BY w.key, b.id""",
        (sorted(keys),),
    ).fetchall()
    return {bytes(row.pop("key")): Payer(**row) for row in rows}


def note(connection: Connection, remote_id: int, outcomes: Mapping[bytes, tuple[str, str]]) -> None:
    """key -> (outcome of its line, what it says): what is decided on when all lines are read. A vector that comes in a
    later line is one all the same."""
    keys = sorted(outcomes)
    connection.execute(
        """UPDATE purchases p SET outcome = t.outcome, error = t.error
             FROM (SELECT q.key FROM purchases q
                    WHERE q.remote_batch_id = %s AND q.key = ANY(%s) ORDER BY q.key FOR NO KEY UPDATE) AS l
             JOIN unnest(%s::bytea[], %s::text[], %s::text[]) AS t (key, outcome, error) ON t.key = l.key
            WHERE p.key = l.key""",
        (remote_id, keys, keys, [outcomes[key][0] for key in keys], [outcomes[key][1] for key in keys]),
    )


def unanswered(connection: Connection, remote_id: int) -> int:
    """How many of what the remote batch has left have no outcome of a line."""
    row = connection.execute(
        "SELECT count(*) AS n FROM purchases WHERE remote_batch_id = %s AND outcome IS NULL", (remote_id,)
    ).fetchone()
    return int(row["n"]) if row else 0


# -- what is left ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Left:
    """A text without a vector when all lines are read. outcome: of its line; None: there was none."""

    key: bytes
    tokens: int
    outcome: str | None
    error: str | None
    attempts: int


def left(connection: Connection, remote_id: int) -> list[Left]:
    """All that the remote batch has left, by key; locked."""
    rows = connection.execute(
        """SELECT key, tokens, outcome, error, attempts FROM purchases WHERE remote_batch_id = %s
            ORDER BY key FOR UPDATE""",
        (remote_id,),
    ).fetchall()
    return [Left(**{**row, "key": bytes(row["key"])}) for row in rows]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a text. attempts: that it has failed now; MOST_ATTEMPTS: it is given up. error: why."""

    key: bytes
    attempts: int
    error: str | None


def put_back(connection: Connection, remote_id: int, verdicts: Sequence[Verdict]) -> list[bytes]:
    """Makes these texts wanted again, or given up. Returns the keys of those that are given up."""
    ordered = sorted(verdicts, key=lambda verdict: verdict.key)
    rows = connection.execute(
        """UPDATE purchases p
              SET remote_batch_id = NULL, outcome = NULL, error = t.error, attempts = least(t.attempts, %(most)s),
                  created_at = clock_timestamp()
             FROM (SELECT q.key FROM purchases q
                    WHERE q.remote_batch_id = %(remote)s AND q.key = ANY(%(keys)s) ORDER BY q.key FOR UPDATE) AS l
             JOIN unnest(%(keys)s::bytea[], %(attempts)s::int[], %(errors)s::text[]) AS t (key, attempts, error)
               ON t.key = l.key
            WHERE p.key = l.key
        RETURNING p.key, p.attempts""",
        {
            "remote": remote_id,
            "keys": [verdict.key for verdict in ordered],
            "attempts": [verdict.attempts for verdict in ordered],
            "errors": [verdict.error for verdict in ordered],
            "most": MOST_ATTEMPTS,
        },
    ).fetchall()
    return [bytes(row["key"]) for row in rows if row["attempts"] >= MOST_ATTEMPTS]


def put_back_after(connection: Connection, remote_id: int, after: bytes) -> int:
    """Makes the texts behind this key wanted again, which did not fit into the file. Returns how many."""
    return connection.execute(
        "UPDATE purchases SET remote_batch_id = NULL WHERE remote_batch_id = %s AND key > %s", (remote_id, after)
    ).rowcount
