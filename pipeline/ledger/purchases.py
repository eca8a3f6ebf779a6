"""Purchases: texts that are being bought, so that each is bought once. A row goes in the transaction that stores its
vector.

Whose a text is, its row says:

- with an epoch it is bought online, by the claim that holds `batch_id` under that epoch (or, without a batch, by who
  has it until `lease_until`). Once that one is gone whoever wants the text takes the row over: it may have been paid.
- without one it is on order with the Batch API (`orders`): packed (`remote_batch_id`), and nobody else's until it is
  harvested; or not packed yet, and free for whoever would buy it online now.

Lock order: batches, embeddings, purchases, jobs; keys ascending. Who is going to wait locks the rows that it waits for,
so that who deletes them sees it waiting (`wake`).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.ledger import batches
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import WantedPoint
from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.remote_items import MOST_ATTEMPTS

# How long who buys without a batch (a search, a repair) is taken to be at it: longer than its requests take.
LEASE_SECONDS = 180.0
# Of who buys without one.
NO_BATCH = 0

# Of rows p: ordered again and again in vain. `error` says why; who wants it reads that, and fails.
GIVEN_UP = f"(p.epoch IS NULL AND p.remote_batch_id IS NULL AND p.attempts >= {MOST_ATTEMPTS})"

# Of rows p, for a batch b that waits: it is on order (online work takes what is not sent yet), or who buys it online is
# still at it.
_UNDERWAY = """((p.epoch IS NULL AND (p.remote_batch_id IS NOT NULL OR b.provider <> 'openai'))
    OR p.lease_until > clock_timestamp()
    OR EXISTS (SELECT 1 FROM batches o WHERE o.id = p.batch_id AND o.epoch = p.epoch AND o.state = 'running'))"""

# (batch_id, key) of every text that a batch is to bring into an index: of new chunks, and of those that get the vectors
# of another model.
TEXTS = """(SELECT batch_id, embedding_key AS key FROM chunks WHERE died_version IS NULL
            UNION ALL SELECT batch_id, embedding_key FROM reembed_chunks WHERE NOT done)"""

# Of rows p: a text that some batch still has to bring.
LACKED = f"""EXISTS (
    SELECT 1 FROM {TEXTS} t JOIN batches o ON o.id = t.batch_id WHERE t.key = p.key AND o.ended_at IS NULL)"""

# Of waiting batches b: nothing that they lack is being bought any more, or something was given up. The former ends with
# the first text that is; the latter begins with what was given up, once for all batches: that is little, or nothing.
# OFFSET 0: the chunks of each by its key; Postgres would read all there are.
ANSWERED = f"""(
    (SELECT 1 FROM {TEXTS} t JOIN purchases p ON p.key = t.key WHERE t.batch_id = b.id AND {_UNDERWAY} LIMIT 1) IS NULL
    OR b.id = ANY (ARRAY(
      SELECT t.batch_id FROM purchases p CROSS JOIN LATERAL (
        SELECT batch_id FROM {TEXTS} w WHERE w.key = p.key OFFSET 0) t WHERE {GIVEN_UP})))"""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A text that may have been paid for by somebody who died before the vector was stored. batch_id, job_id, tenant:
    of that one; the last two None where it had no batch, or its batch is gone."""

    key: bytes
    tokens: int
    batch_id: int
    job_id: uuid.UUID | None
    tenant: str | None


@dataclass(frozen=True, slots=True)
class Begun:
    """Whose the wanted texts are; each key is in one of them.

    mine: to be bought by these claims now; or, of `order`, ordered newly. elsewhere: somebody else buys them online
    now. ordered: on order with the Batch API. failed: it has given them up, and why. came: stored meanwhile.
    doubts: of those that were taken over from the dead.
    """

    mine: frozenset[bytes] = frozenset()
    elsewhere: frozenset[bytes] = frozenset()
    ordered: frozenset[bytes] = frozenset()
    failed: Mapping[bytes, str] = field(default_factory=dict)
    came: frozenset[bytes] = frozenset()
    doubts: Sequence[Doubt] = ()


@dataclass(frozen=True, slots=True)
class Loner:
    """Who buys without a batch. epoch: a number of its own, by chance."""

    collection_id: int
    epoch: int
    priority: int = 0
    lease_seconds: float = LEASE_SECONDS

    @property
    def id(self) -> int:
        return NO_BATCH


Buyer = Claim | Loner


def begin(connection: Connection, claims: Sequence[Claim], missing: Iterable[WantedPoint], spec_hash: bytes) -> Begun:
    """Decides which of the missing texts these claims buy online. Commit it before anything is asked for.

    What is on order and not packed yet is theirs too, and what the Batch API has given up. Raises LeaseLost.
    """
    batches.hold(connection, claims)
    by_id = {claim.id: claim for claim in claims}
    wanted = {point.embedding_key: (point.tokens, by_id[point.batch_id]) for point in missing}
    return _begin(connection, wanted, spec_hash)


def begin_alone(connection: Connection, loner: Loner, wanted: Mapping[bytes, int], spec_hash: bytes) -> Begun:
    """As `begin`, for who has no batch. wanted: key -> tokens."""
    return _begin(connection, {key: (tokens, loner) for key, tokens in wanted.items()}, spec_hash)


def _begin(connection: Connection, wanted: Mapping[bytes, tuple[int, Buyer]], spec_hash: bytes) -> Begun:
    if not wanted:
        return Begun()
    mine = _insert(connection, wanted, spec_hash)
    own = {(buyer.id, buyer.epoch) for _, buyer in wanted.values()}
    taken: set[bytes] = set()
    elsewhere: set[bytes] = set()
    ordered: set[bytes] = set()
    doubts: list[Doubt] = []
    for row in meet(connection, wanted.keys() - mine):
        if row["epoch"] is not None and (row["batch_id"], row["epoch"]) in own:
            mine.add(row["key"])
        elif row["epoch"] is not None and row["live"]:
            elsewhere.add(row["key"])
        elif row["remote_batch_id"] is not None:
            ordered.add(row["key"])
        else:
            taken.add(row["key"])
            doubts += doubts_of(row)
    _take(connection, {key: wanted[key][1] for key in taken})
    return sort_out(connection, wanted.keys(), mine | taken, elsewhere, ordered, {}, doubts)


def _insert(connection: Connection, wanted: Mapping[bytes, tuple[int, Buyer]], spec_hash: bytes) -> set[bytes]:
    keys = sorted(wanted)
    buyers = [wanted[key][1] for key in keys]
    rows = connection.execute(
        """INSERT INTO purchases (key, collection_id, batch_id, epoch, spec_hash, tokens, priority, lease_until)
           SELECT w.key, w.collection_id, w.batch_id, w.epoch, %(spec)s, w.tokens, w.priority,
                  clock_timestamp() + make_interval(secs => w.lease)
             FROM unnest(%(keys)s::bytea[], %(collections)s::int[], %(batches)s::bigint[], %(epochs)s::int[],
                         %(tokens)s::int[], %(priorities)s::smallint[], %(leases)s::float8[])
               AS w (key, collection_id, batch_id, epoch, tokens, priority, lease)
            ORDER BY w.key
           ON CONFLICT (key) DO NOTHING RETURNING key""",
        {
            "spec": spec_hash,
            "keys": keys,
            "collections": [buyer.collection_id for buyer in buyers],
            "batches": [buyer.id for buyer in buyers],
            "epochs": [buyer.epoch for buyer in buyers],
            "tokens": [wanted[key][0] for key in keys],
            "priorities": [buyer.priority for buyer in buyers],
            "leases": [_lease(buyer) for buyer in buyers],
        },
    ).fetchall()
    return {bytes(row["key"]) for row in rows}


def _lease(buyer: Buyer) -> float | None:
    return buyer.lease_seconds if isinstance(buyer, Loner) else None


def meet(connection: Connection, keys: Collection[bytes]) -> list[Row]:
    """The rows that are there of these keys, locked; `live`: whether who buys it online is still at it."""
    if not keys:
        return []
    connection.execute(
        "SELECT 1 FROM purchases WHERE key = ANY(%s) ORDER BY key FOR NO KEY UPDATE", (sorted(keys),)
    ).fetchall()
    rows = connection.execute(
        # A statement of its own: it sees what was committed while the locks were waited for.
        f"""SELECT p.key, p.batch_id, p.epoch, p.remote_batch_id, p.tokens, p.error, {GIVEN_UP} AS given_up,
                   b.job_id, b.tenant,
                   CASE WHEN p.lease_until IS NULL THEN coalesce(b.state = 'running' AND b.epoch = p.epoch, false)
                        ELSE p.lease_until > clock_timestamp() END AS live
              FROM purchases p LEFT JOIN batches b ON b.id = p.batch_id
             WHERE p.key = ANY(%s) ORDER BY p.key""",
        (sorted(keys),),
    ).fetchall()
    return [{**row, "key": bytes(row["key"])} for row in rows]


def doubts_of(row: Row) -> list[Doubt]:
    if row["epoch"] is None:
        return []
    return [Doubt(row["key"], row["tokens"], row["batch_id"], row["job_id"], row["tenant"])]


def _take(connection: Connection, buyers: Mapping[bytes, Buyer]) -> None:
    """Makes (locked) rows those of others."""
    if not buyers:
        return
    connection.execute(
        """UPDATE purchases p
              SET batch_id = w.batch_id, epoch = w.epoch, collection_id = w.collection_id, withdrawn = false,
                  attempts = 0, error = NULL, created_at = clock_timestamp(),
                  lease_until = clock_timestamp() + make_interval(secs => w.lease)
             FROM unnest(%(keys)s::bytea[], %(batches)s::bigint[], %(epochs)s::int[], %(collections)s::int[],
                         %(leases)s::float8[]) AS w (key, batch_id, epoch, collection_id, lease)
            WHERE p.key = w.key""",
        {
            "keys": list(buyers),
            "batches": [buyer.id for buyer in buyers.values()],
            "epochs": [buyer.epoch for buyer in buyers.values()],
            "collections": [buyer.collection_id for buyer in buyers.values()],
            "leases": [_lease(buyer) for buyer in buyers.values()],
        },
    )


def sort_out(
    connection: Connection,
    wanted: Collection[bytes],
    mine: set[bytes],
    elsewhere: set[bytes],
    ordered: set[bytes],
    failed: Mapping[bytes, str],
    doubts: Sequence[Doubt],
) -> Begun:
    """What of it was stored between the look for it and now needs no row. What is neither here nor there was somebody's
    a moment ago, and is looked for again soon."""
    gone = set(wanted) - mine - elsewhere - ordered - failed.keys()
    asked = sorted(mine | gone)
    rows = connection.execute("SELECT key FROM embeddings WHERE key = ANY(%s)", (asked,)).fetchall()
    came = {bytes(row["key"]) for row in rows}
    if came & mine:
        connection.execute("DELETE FROM purchases WHERE key = ANY(%s)", (sorted(came & mine),))
    return Begun(
        frozenset(mine - came),
        frozenset(elsewhere | (gone - came)),
        frozenset(ordered),
        dict(failed),
        frozenset(came),
        tuple(doubts),
    )


# -- what came of it -------------------------------------------------------------------------------------------------


def end(connection: Connection, keys: Iterable[bytes]) -> None:
    """The vectors of these keys are stored, in this transaction: their rows go, whosever they are by now. But those
    that are packed stay until they are harvested: a remote batch is told complete by what it has left."""
    connection.execute(
        """DELETE FROM purchases WHERE key IN (
             SELECT key FROM purchases WHERE key = ANY(%s) AND remote_batch_id IS NULL ORDER BY key FOR UPDATE)""",
        (sorted(keys),),
    )


def drop(connection: Connection, buyers: Sequence[Buyer], keys: Iterable[bytes]) -> None:
    """These were not asked for, or were refused: whoever wants them may buy them at once, and nothing is doubtful."""
    rows = connection.execute(
        """DELETE FROM purchases WHERE key IN (
             SELECT p.key FROM purchases p JOIN unnest(%s::bigint[], %s::int[]) AS m (batch_id, epoch)
                 ON p.batch_id = m.batch_id AND p.epoch = m.epoch
              WHERE p.key = ANY(%s) ORDER BY p.key FOR UPDATE OF p)
           RETURNING key""",
        ([buyer.id for buyer in buyers], [buyer.epoch for buyer in buyers], sorted(keys)),
    ).fetchall()
    # What was on order when it was taken over is ordered anew by who waits for it.
    wake(connection, [bytes(row["key"]) for row in rows])


def wake(connection: Connection, keys: Iterable[bytes]) -> int:
    """Makes waiting batches ready that lack some of these keys, and of which nothing is being bought any more, or
    something was given up. Returns how many. Call it where rows of these keys have gone or were given up.

    It waits for nobody: who has a batch locked decides itself, or `wake_forgotten` finds it.
    """
    return connection.execute(
        f"""WITH lacking AS MATERIALIZED (
             SELECT DISTINCT t.batch_id FROM {TEXTS} t
              WHERE t.key = ANY(%s) AND EXISTS (SELECT 1 FROM batches WHERE state = 'waiting')),
           {_WAKE.format(where="b.id = ANY (ARRAY(SELECT batch_id FROM lacking))")}""",
        (sorted(keys),),
    ).rowcount


def wake_forgotten(connection: Connection, after: int, limit: int) -> tuple[int, int | None]:
    """Looks at up to `limit` waiting batches behind the id `after`: those that wait for nothing are made ready. Returns
    how many, and behind which to go on (None: there are no more)."""
    rows = connection.execute(
        "SELECT id FROM batches WHERE state = 'waiting' AND id > %s ORDER BY id LIMIT %s", (after, limit)
    ).fetchall()
    ids = [row["id"] for row in rows]
    woken = connection.execute(f"WITH {_WAKE.format(where='b.id = ANY(%s)')}", (ids,)).rowcount if ids else 0
    return woken, ids[-1] if len(ids) == limit else None


_WAKE = f"""free AS (
             SELECT b.id FROM batches b WHERE {{where}} AND b.state = 'waiting' AND {ANSWERED}
              ORDER BY b.id FOR NO KEY UPDATE OF b SKIP LOCKED)
           UPDATE batches b SET state = 'ready', sent_at = NULL, next_attempt_at = NULL
             FROM free WHERE b.id = free.id"""
