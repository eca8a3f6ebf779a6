"""What a log line is about: bound where work begins, carried through everything that it calls, in this thread alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

# The last three, of work that was taken together: all of its ids, parted by spaces. The first one's stand alone, too.
Key = Literal[
    "correlation_id",
    "job_id",
    "batch_id",
    "task_id",
    "duty",
    "schedule_id",
    "tenant",
    "collection",
    "batches",
    "jobs",
    "correlation_ids",
]
CONTEXT_KEYS: tuple[Key, ...] = get_args(Key)

_context: ContextVar[Mapping[str, str]] = ContextVar("millrace_context", default={})  # noqa: B039 - never changed in place


@contextmanager
def bound(**values: object) -> Iterator[None]:
    """Log lines within carry these (names of CONTEXT_KEYS; None: not known, and left out), and those around it."""
    known = {key: str(value) for key, value in values.items() if value is not None}
    token = _context.set({**_context.get(), **known})
    try:
        yield
    finally:
        _context.reset(token)


def context() -> Mapping[str, str]:
    """What is bound here; for handing on to another thread, with `bound(**context())`."""
    return _context.get()


def logger(name: str) -> logging.Logger:
    """The logger of a part, below `millrace`."""
    return logging.getLogger(f"millrace.{name}")
