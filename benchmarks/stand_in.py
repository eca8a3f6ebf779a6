"""The tests' stand-in for OpenAI's servers, for benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai_server import OpenAIServer

TESTS = Path(__file__).parents[1] / "tests"
MODEL = "text-embedding-3-small"
LATENCY_SECONDS = 0.05
# Vectors that are rendered once: what is measured is who asks, and not who answers.
DISTINCT_VECTORS = 64


@contextmanager
def stand_in() -> Iterator[OpenAIServer]:
    """A server that takes 50 ms for each request, in a directory that is removed afterwards."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    from openai_server import running

    with TemporaryDirectory(prefix="millrace-openai-") as directory, running(Path(directory)) as server:
        server.control.set(latency=LATENCY_SECONDS, pool=DISTINCT_VECTORS)
        yield server
