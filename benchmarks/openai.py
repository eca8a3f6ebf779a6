"""OpenAI, online and by the Batch API, against the stand-in server of the tests: what the limiter makes of the limits,
whether workers add up, and what a full batch takes."""

from __future__ import annotations

from benchmarks import openai_batch, openai_online
from benchmarks.report import Figures, Options


def measure(options: Options) -> Figures:
    """See the two."""
    return {"online": openai_online.measure(options), "batch": openai_batch.measure(options)}
