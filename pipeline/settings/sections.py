"""The sections of the settings that the work itself needs: one small frozen class per component."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator

from pipeline.settings.base import Section
from pipeline.settings.providers import Provider
from pipeline.settings.secrets import url_of, whole_credentials, whole_webhook_secret, with_password

MAX_UPSERT_POINTS = 10_000


class PostgresSettings(Section):
    # Before the url, which takes it in.
    password: SecretStr = Field(SecretStr(""), description="password, where the url carries none")
    url: Annotated[SecretStr, url_of("postgresql", "postgres")] = Field(
        SecretStr(""), description="postgresql://user:password@host:port/database; empty: the embedded stack's"
    )
    pool_size: int = Field(2, ge=1, le=100, description="connections of one process, opened when needed")
    connect_timeout: float = Field(5.0, gt=0, description="seconds to wait for a connection")
    timeout: float = Field(30.0, ge=1, le=30, description="seconds for one statement; what takes longer is given up")
    prepared_statements: bool = Field(True, description="false behind a PgBouncer that cannot keep them")

    @field_validator("url")
    @classmethod
    def _whole(cls, url: SecretStr, info: ValidationInfo) -> SecretStr:
        return with_password(url, info.data.get("password"))


class RedisSettings(Section):
    password: SecretStr = Field(SecretStr(""), description="password, where the url carries none")
    url: Annotated[SecretStr, url_of("redis", "rediss")] = Field(
        SecretStr(""), description="redis://:password@host:port/0; empty: the embedded stack's"
    )
    prefix: str = Field("millrace:", description="what every key in Redis begins with")
    timeout: float = Field(5.0, gt=0, description="seconds before a send is given up (the job is safe in Postgres)")

    @field_validator("url")
    @classmethod
    def _whole(cls, url: SecretStr, info: ValidationInfo) -> SecretStr:
        return with_password(url, info.data.get("password"))


class QdrantSettings(Section):
    url: Annotated[SecretStr, url_of("grpc", "grpcs", "http", "https")] = Field(
        SecretStr(""),
        description="grpc://:api-key@host:6334 (grpcs for TLS), or http(s)://host:6333 of a Qdrant whose gRPC port "
        "is `grpc_port`; empty: the embedded stack's",
    )
    grpc_port: int = Field(6334, ge=1, le=65535, description="the gRPC port where the url is http(s)")
    api_key: SecretStr = Field(SecretStr(""), description="API key, where the url carries none")
    timeout: float = Field(30.0, gt=0, description="seconds for one request")
    upsert_points: int = Field(256, ge=1, le=MAX_UPSERT_POINTS, description="points in one upsert request")
    upserts_in_flight: int = Field(2, ge=1, le=64, description="upsert requests of one batch under way at once")
    channels: int = Field(1, ge=1, le=16, description="gRPC channels of one process")


class EmbeddingSettings(Section):
    provider: Provider = Field(
        "local", description="who embeds a collection that is made by a request that names no provider"
    )
    model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="a model that FastEmbed knows by name; the default one is carried by the lock and needs no network",
    )
    path: Path | None = Field(
        None, description="a local directory with the ONNX model and its tokenizer, under `model`"
    )
    precision: Literal["float32", "int8"] = Field(
        "float32",
        description="of the offline model: int8 is 2.3 times as fast, and its vectors agree with float32's to a mean "
        "cosine of 0.994 (`python -m benchmarks precision`)",
    )
    threads: int = Field(1, ge=1, le=64, description="ONNX threads of one process")
    min_batch_tokens: int = Field(384, ge=16, description="padded tokens of one model run, at least")
    max_batch_tokens: int = Field(4096, ge=16, description="padded tokens of one model run, at most")
    target_seconds: float = Field(
        0.06, gt=0, description="seconds one model run should take; the batch size adapts to it"
    )
    max_wait_seconds: float = Field(
        2.0, gt=0, description="seconds of work that a claim may gather before it embeds, at most"
    )


class ChunkingSettings(Section):
    max_tokens: int | None = Field(
        None,
        ge=8,
        description="tokens of a chunk, at most; none: the model's own limit, and `openai.chunk_tokens` of OpenAI's",
    )
    overlap_tokens: int = Field(0, ge=0, description="tokens that neighbouring chunks share")


class SourceSettings(Section):
    roots: tuple[Path, ...] = Field((), description="directories that files may come from; empty: anywhere")
    max_bytes: int = Field(64 * 1024 * 1024, ge=1, description="bytes of one document, at most")
    follow_links: bool = Field(False, description="follow symbolic links inside a directory")
    ignore: tuple[str, ...] = Field(
        (".git/", ".venv/", "node_modules/", "__pycache__/", ".millrace/"),
        description="gitignore patterns that are always left out of a directory",
    )
    archives: bool = Field(
        True, description="open archives that are met inside a directory; those named themselves are opened anyway"
    )
    archive_depth: int = Field(2, ge=1, le=16, description="archives inside one another that are opened, at most")
    archive_members: int = Field(
        200_000, ge=1, description="files in one archive and those inside it together, at most"
    )
    archive_bytes: int = Field(
        4 * 1024**3, ge=1, description="bytes that one archive and those inside it unpack to together, at most"
    )
    archive_ratio: int = Field(
        200, ge=1, description="times its own size that an archive may unpack to (from 16 MiB on; a bomb is more)"
    )
    web_timeout: float = Field(30.0, gt=0, description="seconds for one page")
    web_redirects: int = Field(5, ge=0, description="redirects followed for one page")
    web_private: bool = Field(False, description="allow addresses of private and loopback networks")
    store_timeout: float = Field(
        120.0, gt=0, description="seconds for one object of an object store, or one page of its listing"
    )
    store_reads: int = Field(8, ge=1, le=64, description="objects of an object store that are read at once")
    store_anonymous: bool = Field(False, description="ask object stores without credentials, as for public buckets")


class ExtractionSettings(Section):
    """What one document may take of the process that reads it; over a limit, the document fails and names it."""

    cpu_seconds: float = Field(
        60.0,
        gt=0,
        description="seconds of CPU time that reading one document may take (ten times as many by the clock)",
    )
    memory_mb: int = Field(
        1024, ge=64, description="resident memory of the process that reads documents, at most; each pool child has one"
    )
    max_text_bytes: int = Field(64 * 1024 * 1024, ge=1, description="bytes of text of one document, at most")


class IngestSettings(Section):
    group_documents: int = Field(500, ge=1, description="documents staged in one transaction, at most")
    group_bytes: int = Field(8 * 1024 * 1024, ge=1, description="bytes staged in one transaction, about")
    prepare_documents: int = Field(50, ge=1, description="documents of one prepare batch, at most")
    prepare_bytes: int = Field(8 * 1024 * 1024, ge=1, description="bytes of one prepare batch, about")
    embed_chunks: int = Field(
        32, ge=1, description="chunks of one embed batch; more where the model takes less than a second for them"
    )
    max_fields: int = Field(32, ge=0, description="metadata keys of a collection that become filter fields, at most")
    max_staged_bytes: int = Field(
        1024**3,
        ge=1,
        description="bytes of documents on their way (staged, and not indexed yet), of which more are not taken: who "
        "enqueues waits, or is refused",
    )
    max_ready_batches: int = Field(
        100_000, ge=1, description="batches that wait for a worker, beyond which no documents are taken either"
    )


class WorkSettings(Section):
    """The clocks of claims; they belong together (a lease outlives two missed heartbeats)."""

    lease_seconds: float = Field(9.0, gt=0, description="seconds a claim is held without a heartbeat")
    heartbeat_seconds: float = Field(3.0, gt=0, description="seconds between heartbeats")
    stall_seconds: float = Field(
        120.0, gt=0, description="seconds without progress after which work is interrupted, and the attempt counted"
    )
    sample_seconds: float = Field(10.0, gt=0, description="seconds between two measurements of how fast a job is")
    max_attempts: int = Field(3, ge=1, description="failures of a batch before it is split or given up")
    max_losses: int = Field(10, ge=1, description="workers lost on a batch before it is split or given up")
    backoff_seconds: float = Field(1.0, gt=0, description="seconds before the second attempt; doubles each time")
    resend_seconds: float = Field(
        60.0, gt=0, description="seconds after which a message that nobody took is sent again"
    )
    window: int | None = Field(
        None,
        ge=1,
        description="messages in one queue, at most; the rest of the backlog waits in Postgres; none: four for each "
        "live slot that consumes it, and at least sixteen",
    )
    rise_seconds: float = Field(
        600.0, gt=0, description="seconds after which waiting work gets a share of the next higher queue"
    )
    unsealed_seconds: float = Field(
        300.0, gt=0, description="seconds an enqueuer may be silent before its job is closed"
    )
    contract_seconds: float = Field(
        60.0, gt=0, description="seconds before the points of a replaced version are deleted"
    )
    recontract_seconds: float = Field(900.0, gt=0, description="seconds before they are deleted again, and forgotten")


class SearchSettings(Section):
    hnsw_ef: int = Field(128, ge=1, description="width of the graph search")
    max_rounds: int = Field(4, ge=1, description="retrievals made to fill a page of visible results, at most")
    max_limit: int = Field(1000, ge=1, description="results of one search, at most")


class AuditSettings(Section):
    """How the index is compared with the ledger, and mended; searches and workers need both meanwhile."""

    page_points: int = Field(2000, ge=1, le=100_000, description="points that are compared, or put back, in one step")
    sample: int = Field(
        200, ge=0, description="points of a collection whose vector and payload are compared too, by chance"
    )
    points_per_second: float = Field(0.0, ge=0, description="points compared or put back in a second; 0: as many as go")
    patience_seconds: float = Field(
        60.0, ge=0, description="seconds that Postgres or Qdrant may be away before it is given up"
    )


class WorkerSettings(Section):
    count: int = Field(1, ge=0, le=64, description="general worker processes of the embedded stack")
    concurrency: int = Field(2, ge=1, le=64, description="pool children of one general worker")
    max_tasks_per_child: int = Field(2000, ge=1, description="tasks after which a pool child is replaced")


class WebhookSettings(Section):
    secret: Annotated[SecretStr, AfterValidator(whole_webhook_secret)] = Field(
        SecretStr(""),
        description="whsec_ and 24 to 64 bytes in base64, that completion webhooks are signed with; the same for "
        "clients and workers; empty: the embedded stack's",
    )
    private: bool = Field(False, description="allow http and addresses of private and loopback networks")
    timeout: float = Field(10.0, gt=0, description="seconds for one delivery, from connecting to the answer")
    max_attempts: int = Field(12, ge=1, description="deliveries of one webhook before it is given up")
    backoff_seconds: float = Field(
        5.0, gt=0, description="seconds before the second delivery; 2.5 times as many each time, to about a day in all"
    )


class FlowerSettings(Section):
    auth: Annotated[SecretStr, AfterValidator(whole_credentials)] = Field(
        SecretStr(""), description="user:password; empty: the embedded stack's"
    )
    url: Annotated[SecretStr, url_of("http", "https")] = Field(
        SecretStr(""), description="where it answers, for health to ask it; empty: the embedded stack's, if any"
    )
    read_only: bool = Field(
        True, description="show, and change nothing; false lets who has the password send tasks and stop workers"
    )
    max_tasks: int = Field(10_000, ge=100, description="tasks that it remembers (about 2 KB each)")
    purge_seconds: int = Field(
        3600, ge=1, description="seconds after which a worker that is gone leaves its pages and its metrics"
    )
