"""The one table of what is measured: every metric, its labels, its unit; and every operation.

What is recorded under a name that is not here, or with other labels, is shown nowhere: a test runs the system and looks
for such. Labels take their values from closed sets, so that there is an end to the series. docs/metrics.md is made of
this table (`scripts/metrics_table.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.observe.sketch import upper_bound

Kind = Literal["counter", "histogram", "gauge"]
Unit = Literal["seconds", "bytes", "tokens", "points", ""]

PREFIX = "millrace_"
# What the ledger says of the whole: every worker that is asked says the same.
CLUSTER_PREFIX = "millrace_cluster_"

# Bounds of histograms are bounds of the buckets of sketches, so that no value is told to be on the wrong side of one:
# each is 1.97 times the one before, and 1 is among them.
_STEP = 17
SECONDS_BOUNDS = tuple(upper_bound(_STEP * step) for step in range(-11, 9))
COUNT_BOUNDS = tuple(upper_bound(_STEP * step) for step in range(18))


@dataclass(frozen=True, slots=True)
class Metric:
    """name: as it is recorded, without the prefix. labels: their names, in the order in which values are given.

    values: of each label, what it can be; in words where they are too many to name. source: `process`: recorded by
    each process with `pipeline.observe`; `cluster`: read from the ledger when somebody asks.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: Unit
    help: str
    values: tuple[str, ...] = ()
    source: Literal["process", "cluster"] = "process"

    @property
    def exposed(self) -> str:
        """Under what Prometheus has it."""
        prefix = PREFIX if self.source == "process" else CLUSTER_PREFIX
        return f"{prefix}{self.name}{'_total' if self.kind == 'counter' else ''}"

    @property
    def bounds(self) -> tuple[float, ...]:
        return SECONDS_BOUNDS if self.unit == "seconds" else COUNT_BOUNDS


# Those of tasks/duties.py, which this layer does not know; a test compares.
_DUTIES = (
    "reconcile",
    "contract",
    "sync",
    "webhooks",
    "openai.poll",
    "gc.data",
    "reembed",
    "gc.interpreter",
    "cache.expire",
    "memory.report",
    "alerts",
    "storage.sample",
)

# What can be measured in seconds, and fail. One word for each everywhere: logs, `millrace stats`, Prometheus.
OPERATIONS: Mapping[str, str] = {
    "ingest.stage": "a group of documents is hashed, compared with the ledger, and staged",
    "delete.stage": "a group of deletions is staged",
    "dispatch": "the queues are topped up",
    "broker.send": "messages are sent to Redis, all of one dispatch",
    "claim": "a batch is claimed, and what can go with it",
    "prepare": "a claimed batch of documents becomes chunks",
    "extract": "text is taken from the documents of a batch",
    "chunk": "texts are cut into chunks",
    "prepare.open": "chunks are compared with the published ones, and the versions opened: one transaction",
    "delete": "a claimed batch of documents is ended",
    "embed": "claimed batches of chunks are embedded, indexed and completed",
    "embed.lookup": "stored vectors are looked up",
    "embed.compute": "a model computes vectors, half a second's work at a time",
    "embed.store": "computed or bought vectors are made durable",
    "embed.buy": "texts of claimed batches are bought online, as many requests as that takes",
    "buying.begin": "it is decided which claim buys which text online, and what it may cost: one transaction",
    "buying.order": "texts are put on order with the Batch API: one transaction",
    "openai.request": "one request to the online API, as many texts as go into it",
    "openai.limit": "a request waits for the limits of the whole cluster",
    "upsert": "points are put into Qdrant",
    "complete": "batches are ended: one transaction",
    "publish": "complete versions become visible, within the transaction of `complete` or `prepare.open`",
    "contract": "points of replaced chunks are taken out of Qdrant",
    "search": "a search, from the question to the results",
    "search.ledger": "the collection and its generation are read",
    "search.embed": "the question is embedded",
    "search.retrieve": "Qdrant is asked",
    "search.verify": "Postgres is asked what of it is visible",
    "embed.texts": "an application asks for vectors of texts",
    "ledger.transaction": "a transaction in Postgres, with the wait for a connection and what is done within",
    "webhook": "an attempt to deliver a webhook",
    "openai.batch": "all that can be done now for a remote batch of the Batch API",
    "openai.pack": "texts that wait are put into a remote batch: one transaction",
    "openai.render": "the file of a remote batch is written to disk",
    "openai.upload": "it is uploaded",
    "openai.create": "the batch is created",
    "openai.look": "the provider is asked how far it is, or to cancel it",
    "openai.harvest": "a few hundred lines of a result are stored: one transaction",
    "sync.run": "a run of a schedule lists its source and stages what is new",
    **{f"duty.{name}": "a run of this duty" for name in _DUTIES},
}

_OPERATION = "an operation"
_KIND = "prepare, embed, delete"
_PROVIDERS = "local, openai, openai_batch"


def _cluster(name: str, labels: tuple[str, ...], unit: Unit, told: str, *values: str) -> Metric:
    return Metric(name, "gauge", labels, unit, told, values, "cluster")


_RECORDED = (
    Metric(
        "operation_seconds",
        "histogram",
        ("operation",),
        "seconds",
        "How long operations took, failed ones too.",
        (_OPERATION,),
    ),
    Metric(
        "operation_errors",
        "counter",
        ("operation", "error"),
        "",
        "Operations that failed.",
        (_OPERATION, "a class of pipeline/errors.py, or other"),
    ),
    Metric(
        "documents_enqueued",
        "counter",
        ("outcome",),
        "",
        "Documents that applications enqueued.",
        ("staged, unchanged, rejected, deleted, absent",),
    ),
    Metric("staged_bytes", "counter", (), "bytes", "Content of documents that were staged."),
    Metric("ingest_groups_halved", "counter", (), "", "Times that groups were made smaller, above memory.ingest_mb."),
    Metric(
        "documents_prepared",
        "counter",
        ("outcome",),
        "",
        "Documents that workers read and cut.",
        ("drafted, unchanged, failed",),
    ),
    Metric(
        "chunks_prepared",
        "counter",
        ("outcome",),
        "",
        "Chunks of the documents that were prepared.",
        ("new, kept, removed",),
    ),
    Metric("claims", "counter", ("kind",), "", "Batches that were claimed.", (_KIND,)),
    Metric("claim_size", "histogram", ("kind",), "", "Documents or chunks that were claimed together.", (_KIND,)),
    Metric("claim_tokens", "histogram", ("kind",), "tokens", "Tokens that were claimed together.", (_KIND,)),
    Metric(
        "work",
        "counter",
        ("kind", "outcome"),
        "",
        "Claimed batches by what became of them.",
        (_KIND, "done, waiting, skipped, failed"),
    ),
    Metric("attempts_failed", "counter", ("kind",), "", "Batches whose work failed and was blamed.", (_KIND,)),
    Metric("leases_expired", "counter", (), "", "Claims that were taken back, their processes lost or hanging."),
    Metric("batches_exhausted", "counter", (), "", "Of these, batches out of attempts: split, or given up."),
    Metric(
        "cache_lookups",
        "counter",
        ("cache", "tier", "result"),
        "",
        "What was looked for in a cache.",
        ("embedding", "postgres", "hit, miss"),
    ),
    Metric("embedded_texts", "counter", ("provider",), "", "Texts that were computed or bought.", (_PROVIDERS,)),
    Metric("embedded_tokens", "counter", ("provider",), "tokens", "Their tokens, as billed.", (_PROVIDERS,)),
    Metric(
        "openai_requests",
        "counter",
        ("outcome",),
        "",
        "Requests to the online API; limited: it asked to wait (429).",
        ("answered, limited, failed",),
    ),
    Metric(
        "openai_model_changes",
        "counter",
        (),
        "",
        "Times that a process found a server answering under another model's name than before.",
    ),
    Metric("routes", "counter", ("provider",), "", "Jobs of provider auto, by who embeds for them.", (_PROVIDERS,)),
    Metric(
        "reroutes",
        "counter",
        ("outcome",),
        "",
        "Jobs that the Batch API would have made late: they went online, or it would have cost too much.",
        ("online, late",),
    ),
    Metric(
        "remote_batches",
        "counter",
        ("event",),
        "",
        "Batches of the Batch API.",
        ("packed, created, adopted, ended, closed",),
    ),
    Metric(
        "remote_texts",
        "counter",
        ("outcome",),
        "",
        "Texts that a remote batch brought no vector for.",
        ("again, dead",),
    ),
    Metric("points_upserted", "counter", (), "points", "Points that were put into Qdrant."),
    Metric("points_deleted", "counter", (), "points", "Points that were taken out by `contract`."),
    Metric("broker_messages", "counter", ("queue",), "", "Messages that were sent.", ("high, normal, low, control",)),
    Metric(
        "trigger_actions",
        "counter",
        ("action",),
        "",
        "What the system did by itself because memory was short or something too slow (docs/operations.md).",
        ("shrink, grow, collect, tune",),
    ),
    Metric("webhook_deliveries", "counter", ("outcome",), "", "Attempts to deliver a webhook.", ("delivered, failed",)),
    Metric(
        "memory_collections", "counter", ("why",), "", "Times that a process gave memory back.", ("soft, hard, asked",)
    ),
    Metric("memory_collection_seconds", "histogram", (), "seconds", "How long each took."),
    Metric("memory_collected_bytes", "counter", (), "bytes", "What was resident less after it."),
    Metric("memory_replacements", "counter", (), "", "Pool children that were replaced at the hard limit of memory."),
    Metric("process_cpu_seconds", "counter", (), "seconds", "Processor time of the processes, those that ended too."),
    Metric(
        "network_bytes",
        "counter",
        ("direction", "interface"),
        "bytes",
        "Bytes of the machine, or of the container that the worker is in; of its main process alone.",
        ("sent, received", "loopback, other"),
    ),
    Metric(
        "application_value",
        "histogram",
        ("name",),
        "",
        "Values of the application's own (`client.metrics.record`).",
        ("what the application calls it",),
    ),
    Metric(
        "application_count",
        "counter",
        ("name",),
        "",
        "Counts of the application's own (`client.metrics.count`).",
        ("what the application calls it",),
    ),
)

_PROCESS = "main, or the number of the pool child"


def _process_gauge(name: str, unit: Unit, told: str) -> Metric:
    return Metric(name, "gauge", ("process",), unit, told, (_PROCESS,))


# Of `ProcessMemory` (pipeline/monitoring/process.py): name of its field -> metric.
PROCESS_GAUGES: Mapping[str, Metric] = {
    "rss": _process_gauge("process_resident_bytes", "bytes", "Resident memory."),
    "peak": _process_gauge("process_peak_bytes", "bytes", "The most that was resident so far."),
    "uss": _process_gauge("process_unique_bytes", "bytes", "Memory that no other process shares."),
    "c_heap": _process_gauge("process_c_heap_bytes", "bytes", "In use in the C heap, models and vectors included."),
    "python_blocks": _process_gauge("process_python_blocks", "", "Blocks in use of Python's allocator."),
    "model": _process_gauge("process_model_bytes", "bytes", "Files of the models that are loaded."),
    "threads": _process_gauge("process_threads", "", "Threads."),
    "files": _process_gauge("process_open_files", "", "Open files and sockets."),
}

_CLUSTER = (
    _cluster("queue_messages", ("queue",), "", "Messages that wait in Redis.", "high, normal, low, control"),
    _cluster(
        "queue_ready_batches",
        ("queue",),
        "",
        "Batches that are ready in Postgres: the whole backlog.",
        "high, normal, low",
    ),
    _cluster("queue_oldest_seconds", ("queue",), "seconds", "Age of the oldest ready batch.", "high, normal, low"),
    _cluster(
        "jobs", ("state",), "", "Jobs, by state.", "queued, running, paused, succeeded, partial, failed, cancelled"
    ),
    _cluster("leases", ("kind",), "", "Batches that are claimed now.", _KIND),
    _cluster("batches_tried", (), "", "Unfinished batches with a failed attempt or a lost worker."),
    _cluster("dead_letters", (), "", "Open dead letters."),
    _cluster("staged_bytes", (), "bytes", "Content that is staged, and waits to be chunked."),
    _cluster("webhooks_owed", (), "", "Webhooks that are still to be delivered."),
    _cluster("webhooks_dead", (), "", "Webhooks that were given up, and are still kept."),
    _cluster(
        "operation_seconds",
        ("operation", "quantile"),
        "seconds",
        "How long operations took in the last five minutes, in all processes, applications too, within 2 %.",
        _OPERATION,
        "0.5, 0.95, 0.99",
    ),
    _cluster("operation_runs", ("operation",), "", "How many there were of each.", _OPERATION),
    _cluster(
        "operation_errors",
        ("operation", "error"),
        "",
        "How many of these failed.",
        _OPERATION,
        "a class of pipeline/errors.py, or other",
    ),
    _cluster(
        "provider",
        ("state",),
        "",
        "1 for the state that OpenAI's circuit is in, 0 for the others.",
        "well, rate-limited, key rejected, quota exhausted, away",
    ),
    _cluster(
        "remote_batches",
        ("state",),
        "",
        "Batches of the Batch API that are not closed, by the server's word for their state, or our own.",
        "as docs/batch-api.md has them",
    ),
    _cluster("remote_texts", (), "", "Texts in them."),
    _cluster("unpacked_texts", (), "", "Texts on order that are in none of them yet."),
    _cluster("remote_batches_stuck", (), "", "Of the open ones, those that do not get on; up to 20 are counted."),
    _cluster("remote_batches_doubtful", (), "", "Those that may have been paid for twice; up to 20 are counted."),
    _cluster("jobs_late", (), "", "Unfinished jobs past their `need_by`, or that will be; up to 20 are counted."),
    _cluster("jobs_over_budget", (), "", "Unfinished jobs that a budget has paused."),
    _cluster(
        "month_dollars",
        ("kind",),
        "",
        "This month's US dollars: spent, perhaps spent besides, held back for work under way.",
        "spent, doubtful, reserved",
    ),
    _cluster(
        "budget_used",
        ("scope",),
        "",
        "Share of the month's budget that is used: of all together, and of the tenant that has used most of its own.",
        "all, tenant",
    ),
    _cluster("workers", (), "", "Live workers."),
    _cluster("slots", (), "", "Pool children of live workers."),
    _cluster("duty_seconds_since_run", ("duty",), "seconds", "Since the last run of a duty ended.", "a duty"),
    _cluster("duty_overdue", ("duty",), "", "1 where a duty is overdue.", "a duty"),
    _cluster("duty_failed", ("duty",), "", "1 where the last run of a duty failed.", "a duty"),
    _cluster("duty_last_seconds", ("duty",), "seconds", "How long its last run took.", "a duty"),
    _cluster(
        "alerts", ("severity",), "", "Alerts that are raised, not acknowledged ones too.", "low, medium, high, critical"
    ),
    _cluster(
        "batch_share",
        (),
        "",
        "Share of their size that batches have: less than 1 while memory is short or work too slow.",
    ),
    _cluster("health_score", (), "", "Health, 0 to 100, as of the last look of the duty `alerts`."),
    _cluster(
        "storage", ("sample",), "", "The newest sample of each measure of storage.", "a measure of docs/storage.md"
    ),
)

METRICS: tuple[Metric, ...] = (*_RECORDED, *PROCESS_GAUGES.values(), *_CLUSTER)

# What is recorded, by its name.
RECORDED: Mapping[str, Metric] = {metric.name: metric for metric in _RECORDED}
CLUSTER: Mapping[str, Metric] = {metric.name: metric for metric in _CLUSTER}
