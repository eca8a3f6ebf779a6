"""What is written down of an exception: for the job in one line, for the dead letter with its traceback."""

from __future__ import annotations

import re
import traceback

from pipeline.errors import MillraceError
from pipeline.ledger.dead_letters import storable

# A traceback is for a person; of a longer one the end says what happened.
MAX_TRACEBACK_CHARACTERS = 16_000
# An error becomes part of every status of its job.
MAX_ERROR_CHARACTERS = 2_000

# `scheme://user:password@`, as drivers put it into their messages.
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")


def tell(error: BaseException) -> str:
    """The error in words: one of Millrace by its message, any other with its type; without passwords."""
    told = str(error) if isinstance(error, MillraceError) else f"{type(error).__name__}: {error}"
    return _safe(told)[:MAX_ERROR_CHARACTERS]


def trace(error: BaseException) -> str:
    """The formatted traceback, its causes too, cut at the front; without passwords."""
    told = _safe("".join(traceback.format_exception(error)))
    if len(told) <= MAX_TRACEBACK_CHARACTERS:
        return told
    return "...\n" + told[-MAX_TRACEBACK_CHARACTERS:]


def _safe(text: str) -> str:
    return storable(_PASSWORD.sub(r"\1***@", text))
