"""Millrace: documents in, a searchable Qdrant index out; nothing is lost, nothing is paid for twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.async_client import AsyncClient
    from pipeline.client import Client
    from pipeline.document import Document
    from pipeline.errors import MillraceError, Permanent, Transient
    from pipeline.ledger.dead_letters import DeadLetter
    from pipeline.ledger.schedules import Schedule
    from pipeline.monitoring.window import SlowOperation, Window
    from pipeline.retries import Retried
    from pipeline.search import Result, SearchResult
    from pipeline.settings import Settings, load_settings
    from pipeline.sources.rows import Rows
    from pipeline.status import CollectionInfo, EmbedResult, JobStatus

__all__ = [
    "AsyncClient",
    "Client",
    "CollectionInfo",
    "DeadLetter",
    "Document",
    "EmbedResult",
    "JobStatus",
    "MillraceError",
    "Permanent",
    "Result",
    "Retried",
    "Rows",
    "Schedule",
    "SearchResult",
    "Settings",
    "SlowOperation",
    "Transient",
    "Window",
    "load_settings",
]

_HOMES = {
    "AsyncClient": "pipeline.async_client",
    "Client": "pipeline.client",
    "CollectionInfo": "pipeline.status",
    "DeadLetter": "pipeline.ledger.dead_letters",
    "Document": "pipeline.document",
    "EmbedResult": "pipeline.status",
    "JobStatus": "pipeline.status",
    "MillraceError": "pipeline.errors",
    "Permanent": "pipeline.errors",
    "Result": "pipeline.search",
    "Retried": "pipeline.retries",
    "Rows": "pipeline.sources.rows",
    "Schedule": "pipeline.ledger.schedules",
    "SearchResult": "pipeline.search",
    "Settings": "pipeline.settings",
    "SlowOperation": "pipeline.monitoring.window",
    "Transient": "pipeline.errors",
    "Window": "pipeline.monitoring.window",
    "load_settings": "pipeline.settings",
}


def __getattr__(name: str) -> Any:
    # A command that only prints help must not pay for importing a client.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
