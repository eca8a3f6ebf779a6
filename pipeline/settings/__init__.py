"""Settings: one small frozen section per component.

Where a value comes from, first found first: what the code passes, the environment (`MILLRACE_SECTION__NAME`),
`millrace.toml` in the working directory (or the file that `MILLRACE_CONFIG` names), the run file of the embedded
stack (addresses only), the default. Secrets are masked wherever settings are printed.
"""

from __future__ import annotations

from pipeline.settings.base import Section
from pipeline.settings.loading import RUN_FILE, Settings, load_settings, names_a_file, read_run_file
from pipeline.settings.providers import (
    MAX_BATCH_BYTES,
    MAX_BATCH_INPUTS,
    MAX_REQUEST_INPUTS,
    MAX_REQUEST_TOKENS,
    CostSettings,
    OpenAIBatchSettings,
    OpenAISettings,
    Price,
    Provider,
)
from pipeline.settings.secrets import mask_url, webhook_key
from pipeline.settings.sections import (
    MAX_UPSERT_POINTS,
    AuditSettings,
    ChunkingSettings,
    EmbeddingSettings,
    ExtractionSettings,
    FlowerSettings,
    IngestSettings,
    PostgresSettings,
    QdrantSettings,
    RedisSettings,
    SearchSettings,
    SourceSettings,
    WebhookSettings,
    WorkerSettings,
    WorkSettings,
)
from pipeline.settings.watching import (
    AlertSettings,
    GarbageSettings,
    LogSettings,
    MemorySettings,
    MetricsSettings,
    Severity,
    StorageSettings,
)

__all__ = [
    "MAX_BATCH_BYTES",
    "MAX_BATCH_INPUTS",
    "MAX_REQUEST_INPUTS",
    "MAX_REQUEST_TOKENS",
    "MAX_UPSERT_POINTS",
    "RUN_FILE",
    "AlertSettings",
    "AuditSettings",
    "ChunkingSettings",
    "CostSettings",
    "EmbeddingSettings",
    "ExtractionSettings",
    "FlowerSettings",
    "GarbageSettings",
    "IngestSettings",
    "LogSettings",
    "MemorySettings",
    "MetricsSettings",
    "OpenAIBatchSettings",
    "OpenAISettings",
    "PostgresSettings",
    "Price",
    "Provider",
    "QdrantSettings",
    "RedisSettings",
    "SearchSettings",
    "Section",
    "Settings",
    "Severity",
    "SourceSettings",
    "StorageSettings",
    "WebhookSettings",
    "WorkSettings",
    "WorkerSettings",
    "load_settings",
    "mask_url",
    "names_a_file",
    "read_run_file",
    "webhook_key",
]
