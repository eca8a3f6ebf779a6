"""Rows that nothing needs any more: which they are, kind by kind, and the one way in which all of them go.

A page of rows is looked at in the order of a key. Those that seem unneeded are locked, without waiting for anybody;
then the question is asked again, by a new statement, which sees whatever was committed before the locks were had; and
only then they go, in the same transaction. Nothing that has ended is ever referred to anew, but for embeddings: who
begins to need one locks it (`embeddings.use`). So nobody finds a row that is going, and none goes that somebody has
found. A page is one transaction of some milliseconds, and takes row locks of one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ledger.engine import Connection
from pipeline.ledger.schedules import KEY_PREFIX
from pipeline.settings import GarbageSettings

_DAY_SECONDS = 86_400.0
# A day of runs that changed nothing shows that a schedule works; more of them would only hide the others.
_IDLE_JOB_SECONDS = _DAY_SECONDS
# Deliveries are kept for whoever asks why nothing arrived.
_DELIVERED_SECONDS = _DAY_SECONDS
_DEAD_WEBHOOK_SECONDS = 30 * _DAY_SECONDS
# OpenAI keeps files for 30 days: what is older has nothing to be found there.
_REMOTE_SECONDS = 31 * _DAY_SECONDS
# A process that has not been seen for so long is not coming back under its name.
_GONE_SECONDS = _DAY_SECONDS
# Nothing indexes the batches by their job, and with each job that goes Postgres asks all of them whether they refer to
# it: a few milliseconds for 100,000.
_MOST_JOBS = 50


@dataclass(frozen=True, slots=True)
class Kind:
    """Rows t of one table.

    key: the primary key, column -> type. order: in which they are looked at, column -> type; it ends with the key, and
    an index has it, or the table is small. old: which come into question; unneeded: of those, which go; both over t.
    change: what is set in them instead of deleting them. most: rows of one page, at most.
    """

    table: str
    key: Mapping[str, str]
    unneeded: str
    old: str = "true"
    order: Mapping[str, str] | None = None
    change: str = ""
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """taken: rows that went, or would. after: the key of the last one looked at; None where that was the end."""

    taken: int
    after: tuple[str, ...] | None


def _ago(name: str) -> str:
    """The moment that lies this parameter back, in seconds."""
    # now() and not clock_timestamp(), by which no index can be asked.
    return f"(now() - make_interval(secs => %({name})s))"


# What refers to a row is asked for as one row, which Postgres looks up by an index; for NOT EXISTS it may read all.

# A job j that may still be gone on with, or asked how it went: an enqueuer that was cut off goes on under its key, and
# is told by its versions what it had done.
_UNSETTLED = f"(j.finished_at IS NULL OR (j.error IS NOT NULL AND j.finished_at >= {_ago('jobs')}))"

_OUTDATED_LETTERS = Kind(
    "dead_letters",
    {"id": "bigint"},
    old="t.resolved_at IS NULL",
    unneeded="""(SELECT 1 FROM versions n WHERE n.document_id = t.document_id AND n.id > t.version_id
                           AND n.state IN ('published', 'unchanged') LIMIT 1) IS NOT NULL""",
    change="resolved_at = clock_timestamp(), resolution = 'superseded', content = NULL",
)

_LETTER_CONTENTS = Kind(
    "dead_letters",
    {"id": "bigint"},
    old="t.resolved_at IS NOT NULL AND t.content IS NOT NULL",
    # Cancelled before its end, the job that tries it again gives it back.
    unneeded="(SELECT 1 FROM jobs j WHERE j.id = t.retried_by AND j.finished_at IS NULL LIMIT 1) IS NULL",
    change="content = NULL",
)

_DEAD_LETTERS = Kind(
    "dead_letters",
    {"id": "bigint"},
    old="t.resolved_at IS NOT NULL",
    unneeded=f"t.resolved_at < {_ago('letters')} AND t.content IS NULL",
)

_WEBHOOKS = Kind(
    "webhook_deliveries",
    {"id": "bigint"},
    old="t.state <> 'ready'",
    unneeded=f"t.ended_at < CASE t.state WHEN 'dead' THEN {_ago('given_up')} ELSE {_ago('delivered')} END",
)

_STAGED = Kind(
    "staged",
    {"version_id": "bigint"},
    unneeded="""(SELECT 1 FROM versions v
                  WHERE v.id = t.version_id AND v.state NOT IN ('staged', 'open') LIMIT 1) IS NOT NULL""",
)

_BATCHES = Kind(
    "batches",
    {"id": "bigint"},
    old=f"t.ended_at < {_ago('settled')}",
    # Of an unfinished job: a chunk that is not published yet is told by its batch whether it is in the index.
    unneeded="""(SELECT 1 FROM jobs j WHERE j.id = t.job_id AND j.finished_at IS NOT NULL LIMIT 1) IS NOT NULL
            AND (SELECT 1 FROM staged s WHERE s.batch_id = t.id LIMIT 1) IS NULL
            -- What it has on order is paid for by its job.
            AND (SELECT 1 FROM purchases p WHERE p.batch_id = t.id LIMIT 1) IS NULL""",
)

_VERSIONS = Kind(
    "versions",
    {"id": "bigint"},
    old=f"t.contracted >= 2 AND t.ended_at < {_ago('settled')}",
    unneeded=f"""(SELECT 1 FROM documents d WHERE d.id = t.document_id
                                AND t.id IN (d.published_version, d.newest_version) LIMIT 1) IS NULL
            AND (SELECT 1 FROM chunks c WHERE c.born_version = t.id LIMIT 1) IS NULL
            AND (SELECT 1 FROM chunks c WHERE c.died_version = t.id LIMIT 1) IS NULL
            AND (SELECT 1 FROM dead_letters l WHERE l.version_id = t.id LIMIT 1) IS NULL
            -- It says of the letter that its document has been brought since.
            AND NOT (t.state = 'unchanged' AND (
                    SELECT 1 FROM dead_letters l WHERE l.document_id = t.document_id AND l.resolved_at IS NULL
                       AND l.version_id < t.id LIMIT 1) IS NOT NULL)
            -- A search that has begun before the next one was published shows this one.
            AND (t.state <> 'published' OR (
                    SELECT 1 FROM versions n WHERE n.document_id = t.document_id AND n.published_gen > t.published_gen
                       AND n.ended_at < {_ago("settled")} LIMIT 1) IS NOT NULL)
            -- What failed is told by the job for as long as there is the job.
            AND (SELECT 1 FROM jobs j WHERE j.id = t.job_id AND NOT {_UNSETTLED}
                           AND (t.state <> 'failed' OR j.finished_at < {_ago("jobs")}) LIMIT 1) IS NOT NULL
            -- By the version before its own a job that goes on tells what was there before it.
            AND (SELECT 1 FROM versions n JOIN jobs j ON j.id = n.job_id
                             WHERE n.document_id = t.document_id AND n.id > t.id AND {_UNSETTLED} LIMIT 1) IS NULL""",
)

_JOBS = Kind(
    "jobs",
    {"id": "uuid"},
    old=f"t.finished_at < {_ago('idle')}",
    unneeded=f"""(t.finished_at < {_ago("jobs")}
               OR (t.kind = 'sync' AND t.state = 'succeeded' AND starts_with(t.idempotency_key, %(prefix)s)
                   AND t.documents_total = t.documents_unchanged))
            AND (SELECT 1 FROM versions v WHERE v.job_id = t.id LIMIT 1) IS NULL
            AND (SELECT 1 FROM batches b WHERE b.job_id = t.id LIMIT 1) IS NULL
            AND (SELECT 1 FROM dead_letters l WHERE l.job_id = t.id LIMIT 1) IS NULL
            AND (SELECT 1 FROM dead_letters l WHERE l.retried_by = t.id LIMIT 1) IS NULL
            AND (SELECT 1 FROM jobs r WHERE r.retry_of = t.id LIMIT 1) IS NULL
            AND (SELECT 1 FROM webhook_deliveries w WHERE w.job_id = t.id LIMIT 1) IS NULL
            AND (SELECT 1 FROM schedules s WHERE s.last_job = t.id LIMIT 1) IS NULL""",
    most=_MOST_JOBS,
)

# No search sees them, and no contraction finds them; their points are then known to nobody.
_CHUNKS = Kind(
    "chunks",
    {"point_id": "uuid"},
    unneeded="(SELECT 1 FROM versions v WHERE v.id = t.born_version LIMIT 1) IS NULL",
)

# Any chunk at all: also one that is leaving may be wanted again, where the version that removed it is cancelled.
# And where a collection is being re-embedded, its chunks have another one each, beside.
_NO_CHUNK = """((SELECT 1 FROM chunks c WHERE c.embedding_key = t.key LIMIT 1) IS NULL
            AND (SELECT 1 FROM reembed_chunks r WHERE r.embedding_key = t.key LIMIT 1) IS NULL)"""
_BY_USE = {"last_used": "timestamptz", "key": "bytea"}

# An age of 0 stands for never.
_EMBEDDINGS = Kind(
    "embeddings",
    {"key": "bytea"},
    order=_BY_USE,
    old=f"t.last_used < greatest({_ago('free')}, {_ago('paid')})",
    unneeded=f"t.last_used < CASE WHEN t.cost > 0 THEN {_ago('paid')} ELSE {_ago('free')} END AND {_NO_CHUNK}",
)

EXCESS = Kind("embeddings", {"key": "bytea"}, order=_BY_USE, unneeded=f"t.cost = 0 AND {_NO_CHUNK}")

# One that is closed is looked for no more; a late second one under its key is found for as long as files are kept.
_REMOTE_BATCHES = Kind(
    "remote_batches",
    {"id": "bigint"},
    old=f"t.closed_at < {_ago('remote')}",
    unneeded="(SELECT 1 FROM purchases p WHERE p.remote_batch_id = t.id LIMIT 1) IS NULL",
)

_ALERTS = Kind(
    "alerts",
    {"id": "bigint"},
    old=f"t.cleared_at < {_ago('alerts')}",
    unneeded="""NOT t.raise_owed AND NOT t.clear_owed
            AND (SELECT 1 FROM webhook_deliveries w WHERE w.alert_id = t.id AND w.state = 'ready' LIMIT 1) IS NULL""",
)

_SAMPLES = Kind("samples", {"name": "text", "at": "timestamptz"}, old=f"t.at < {_ago('samples')}", unneeded="true")

_WORKERS = Kind("workers", {"id": "text"}, old=f"t.seen_at < {_ago('gone')}", unneeded="true")

_SERVICES = Kind(
    "services", {"name": "text", "host": "text", "pid": "integer"}, old=f"t.seen_at < {_ago('gone')}", unneeded="true"
)

# name -> what goes under it. What refers to others comes before them, so that one run takes both.
KINDS: Mapping[str, Kind] = {
    "superseded_letters": _OUTDATED_LETTERS,
    "letter_contents": _LETTER_CONTENTS,
    "dead_letters": _DEAD_LETTERS,
    "webhooks": _WEBHOOKS,
    "staged": _STAGED,
    "batches": _BATCHES,
    "versions": _VERSIONS,
    "jobs": _JOBS,
    "chunks": _CHUNKS,
    "embeddings": _EMBEDDINGS,
    "remote_batches": _REMOTE_BATCHES,
    "alerts": _ALERTS,
    "samples": _SAMPLES,
    "workers": _WORKERS,
    "services": _SERVICES,
}


def ages(kept: GarbageSettings, settled_seconds: float) -> dict[str, Any]:
    """The parameters of all kinds. settled_seconds: after which no search and no paused writer comes back."""
    never = 1e9  # seconds; 31 years
    return {
        "settled": settled_seconds,
        "jobs": kept.jobs_days * _DAY_SECONDS,
        "remote": max(kept.jobs_days * _DAY_SECONDS, _REMOTE_SECONDS),
        "idle": min(kept.jobs_days * _DAY_SECONDS, _IDLE_JOB_SECONDS),
        "letters": kept.dead_letters_days * _DAY_SECONDS,
        "alerts": kept.alerts_days * _DAY_SECONDS,
        "samples": kept.samples_days * _DAY_SECONDS,
        "free": kept.embeddings_days * _DAY_SECONDS or never,
        "paid": kept.paid_embeddings_days * _DAY_SECONDS or never,
        "delivered": _DELIVERED_SECONDS,
        "given_up": _DEAD_WEBHOOK_SECONDS,
        "gone": _GONE_SECONDS,
        "prefix": KEY_PREFIX,
    }


def page(
    connection: Connection,
    kind: Kind,
    given: Mapping[str, Any],
    *,
    after: Sequence[str] | None,
    rows: int,
    dry_run: bool,
) -> Page:
    """Looks at up to `rows` rows behind `after` (None: from the first on), and lets those go that nothing needs."""
    rows = min(rows, kind.most or rows)
    order = kind.order or kind.key
    columns = ", ".join(f"t.{name}" for name in order)
    places = ", ".join(f"%(after_{number})s::{type_}" for number, type_ in enumerate(order.values()))
    behind = f"AND ({columns}) > ({places})" if after is not None else ""
    looked = connection.execute(
        # The order by the plain columns once more: what is asked of each row does not change it.
        f"""SELECT {_texts(order)} AS place, {_texts(kind.key)} AS key, ({kind.unneeded}) AS unneeded
              FROM (SELECT t.* FROM {kind.table} t WHERE {kind.old} {behind} ORDER BY {columns} LIMIT %(rows)s) AS t
             ORDER BY {columns}""",
        {**given, **{f"after_{number}": value for number, value in enumerate(after or ())}, "rows": rows},
    ).fetchall()
    last = tuple(looked[-1]["place"]) if len(looked) == rows else None
    found = [row["key"] for row in looked if row["unneeded"]]
    if found and not dry_run:
        return Page(_take(connection, kind, given, found), last)
    return Page(len(found), last)


def _take(connection: Connection, kind: Kind, given: Mapping[str, Any], found: Sequence[Sequence[str]]) -> int:
    names = ", ".join(f"t.{name}" for name in kind.key)
    chosen = f"({names}) IN (SELECT * FROM unnest({_lists(kind)}))"
    if len(kind.key) == 1:  # answered from the index whatever the statistics say
        chosen = f"{names} = ANY ({_lists(kind)})"
    locked = connection.execute(
        f"SELECT {_texts(kind.key)} AS key FROM {kind.table} t WHERE {chosen} ORDER BY {names} FOR UPDATE SKIP LOCKED",
        _chosen(found),
    ).fetchall()
    if not locked:
        return 0
    verb = f"UPDATE {kind.table} t SET {kind.change}" if kind.change else f"DELETE FROM {kind.table} t"
    return connection.execute(
        # IS TRUE: no index is to answer it; the rows are found by their key, and nothing else is read.
        f"{verb} WHERE {chosen} AND ({kind.old}) IS TRUE AND {kind.unneeded}",
        {**given, **_chosen([row["key"] for row in locked])},
    ).rowcount


def _texts(columns: Mapping[str, str]) -> str:
    return f"ARRAY[{', '.join(f't.{name}::text' for name in columns)}]"


def _lists(kind: Kind) -> str:
    return ", ".join(f"%(key_{number})s::{type_}[]" for number, type_ in enumerate(kind.key.values()))


def _chosen(keys: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    return {f"key_{number}": list(values) for number, values in enumerate(zip(*keys, strict=True))}


# -- walks -----------------------------------------------------------------------------------------------------------


def place(connection: Connection, step: str) -> tuple[str, ...] | None:
    """Where the run before has come to; None: it came to the end."""
    row = connection.execute("SELECT after FROM walks WHERE step = %s", (step,)).fetchone()
    return tuple(row["after"]) if row else None


def note_place(connection: Connection, step: str, after: Sequence[str] | None) -> None:
    """Says how far this run has come. None: to the end; the next one begins anew."""
    if after is None:
        connection.execute("DELETE FROM walks WHERE step = %s", (step,))
        return
    connection.execute(
        "INSERT INTO walks (step, after) VALUES (%s, %s) ON CONFLICT (step) DO UPDATE SET after = EXCLUDED.after",
        (step, list(after)),
    )


# -- embeddings by size ----------------------------------------------------------------------------------------------

# Of a row beside its vector: its header, the other columns, and its entries in two indexes.
_ROW_BYTES = 180
# Pages of 8 kB whose rows tell how long vectors are.
_SAMPLED_PAGES = 50


def embeddings_size(connection: Connection) -> tuple[int, float]:
    """(about how many embeddings there are, bytes of one). Costs milliseconds: Postgres' own count of live rows, which
    lags behind by a second or so, and the vectors in a few pages. (0, 0.0) where Postgres has not counted yet."""
    row = connection.execute(
        f"""SELECT greatest(0, pg_stat_get_live_tuples('embeddings'::regclass)) AS rows,
                   (SELECT avg(octet_length(vector)) FROM embeddings TABLESAMPLE SYSTEM (
                      least(100, 100.0 * {_SAMPLED_PAGES} * 8192 / greatest(1, pg_relation_size('embeddings')))
                      ))::float8 AS bytes"""
    ).fetchone()
    if row is None or not row["rows"] or row["bytes"] is None:
        return 0, 0.0
    return row["rows"], row["bytes"] + _ROW_BYTES


# -- points ----------------------------------------------------------------------------------------------------------


def settled_versions(connection: Connection, version_ids: Sequence[int], settled_seconds: float) -> set[int]:
    """Those of the versions to which no point is to come any more: ended so long ago, or gone.

    A number that no version has had yet is none of them: the ledger was set back to a backup, and will give it again.
    """
    rows = connection.execute(
        """SELECT w.id FROM unnest(%s::bigint[]) AS w (id) LEFT JOIN versions v ON v.id = w.id
            WHERE CASE WHEN v.id IS NULL THEN w.id < (SELECT max(id) FROM versions)
                       ELSE v.ended_at < clock_timestamp() - make_interval(secs => %s) END""",
        (list(version_ids), settled_seconds),
    ).fetchall()
    return {row["id"] for row in rows}
