"""Timing, counting and the context of logs: the only thing that every layer may call."""

from __future__ import annotations

from pipeline.observe.context import CONTEXT_KEYS, bound, context, logger
from pipeline.observe.recorder import Measured, Recorder, Series, count, gauge, observe, operation, recorder
from pipeline.observe.sketch import RELATIVE_ERROR, Sketch
from pipeline.observe.timings import Timings

__all__ = [
    "CONTEXT_KEYS",
    "RELATIVE_ERROR",
    "Measured",
    "Recorder",
    "Series",
    "Sketch",
    "Timings",
    "bound",
    "context",
    "count",
    "gauge",
    "logger",
    "observe",
    "operation",
    "recorder",
]
