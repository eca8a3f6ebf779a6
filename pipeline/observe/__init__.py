"""Timing, counting and the context of logs: the only thing that every layer may call."""

from __future__ import annotations

from pipeline.observe.context import CONTEXT_KEYS, bound, context, logger
from pipeline.observe.measured import MOST_SERIES, Measured, Series, Slow
from pipeline.observe.recorder import Recorder, count, error_class, gauge, observe, operation, record, recorder
from pipeline.observe.sketch import RELATIVE_ERROR, Sketch
from pipeline.observe.timings import Timings

__all__ = [
    "CONTEXT_KEYS",
    "MOST_SERIES",
    "RELATIVE_ERROR",
    "Measured",
    "Recorder",
    "Series",
    "Sketch",
    "Slow",
    "Timings",
    "bound",
    "context",
    "count",
    "error_class",
    "gauge",
    "logger",
    "observe",
    "operation",
    "record",
    "recorder",
]
