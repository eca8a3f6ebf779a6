"""Fixtures of every test: the services."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from services import (
    module_postgres_url,
    postgres_server,
    postgres_template,
    postgres_url,
    qdrant_url,
    redis_server,
    redis_url,
    services,
    settings,
)

__all__ = [
    "module_postgres_url",
    "postgres_server",
    "postgres_template",
    "postgres_url",
    "qdrant_url",
    "redis_server",
    "redis_url",
    "services",
    "settings",
]
