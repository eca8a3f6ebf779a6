"""Fixtures of every test: the services. Hypothesis without clocks: machines are noisy."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from services import (
    databases,
    module_postgres_url,
    openai_process,
    openai_server,
    postgres_server,
    postgres_url,
    qdrant_url,
    redis_server,
    redis_url,
    services,
    settings,
)

hypothesis_settings.register_profile("millrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("millrace")

# A shell has what it starts in the background ignore Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = [
    "databases",
    "module_postgres_url",
    "openai_process",
    "openai_server",
    "postgres_server",
    "postgres_url",
    "qdrant_url",
    "redis_server",
    "redis_url",
    "services",
    "settings",
]
