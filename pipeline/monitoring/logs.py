"""What processes write about themselves: one JSON object a line, of our own loggers and of every library's.

`configure` is called once, where a process starts. Loggers stay those of the standard library (`observe.logger`); what
comes of their records is the business of structlog's processors, in one order for all of them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import socket
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Literal

from pipeline import observe
from pipeline.monitoring.lines import FIRST, LEVELS, LISTS, for_people

Format = Literal["json", "text"]
Level = Literal["debug", "info", "warning", "error"]
Fields = MutableMapping[str, Any]

# What libraries tell of themselves at `info` is theirs to debug with; of Celery, a line when a task comes and one when
# it ends, where one of ours says what was done (`tasks/base.py`); and one for each tick that beat sends.
CHATTY = (
    "celery.beat",
    "celery.worker.strategy",
    "celery.app.trace",
    "httpx",
    "httpx2",
    "httpcore",
    "openai",
    "tornado.access",
    "urllib3",
)
# A value that would make a line of its own size: what it says is in its beginning.
MOST_CHARACTERS = 20_000

_MASK = "***"
_SECRET_KEY = re.compile(
    r"passw|secret|credential|authorization|cookie|api_?key|access_?key|private_?key|(^|_)(token|auth)$", re.IGNORECASE
)
_NAMED = r"passw(?:or)?d|secret|api[_-]?key|access[_-]?key|token|authorization|signature|credential"
# A password may hold what it should not, an @ or a slash: everything up to the last @ of the word is taken for it; but
# digits that end with the address are a port.
_IN_URL = re.compile(r"(?<=://)([^\s/:@\"'<>]*):(?!\d{1,5}(?:[/?#\s,;]|$))[^\s\"'<>]+@")
_IN_TEXT = re.compile(
    rf"((?:{_NAMED})[\"']?\s*[=:]\s*[\"']?)(?!\*\*\*|(?:bearer|basic)\s)[^\s\"'&,;)}}\]]+", re.IGNORECASE
)
_BEARER = re.compile(r"((?:authorization[\"']?\s*[=:]\s*[\"']?(?:bearer|basic)|\bbearer)\s+)[\w.~+/=-]+", re.IGNORECASE)
_KEYS = re.compile(r"\b(?:sk-|whsec_|AKIA|ghp_|xox[abp]-)[\w/+=-]{12,}")


class Rendering(logging.Formatter):
    """Renders whatever it is given, in one line: a record that structlog's formatter fails at is told of as it is."""

    def __init__(self, inner: logging.Formatter, process: str) -> None:
        super().__init__()
        self._inner = inner
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self._inner.format(record)
        except Exception as error:  # noqa: BLE001 - a log line must not be the reason why work fails
            told = {
                "time": _time(record),
                "level": record.levelname.lower(),
                "logger": record.name,
                "event": mask(str(record.msg) if isinstance(record.msg, str) else f"a {type(record.msg).__name__}"),
                "process": self._process,
                "pid": os.getpid(),
                **observe.context(),
                "unrenderable": type(error).__name__,
            }
            return json.dumps(told)


class Lines(logging.Handler):
    """Writes each record with one system call, so that the lines of processes that share a log do not mingle."""

    def __init__(self, descriptor: int, *, owned: bool = False) -> None:
        """owned: closed with this handler."""
        super().__init__()
        self._descriptor = descriptor
        self._owned = owned

    def close(self) -> None:
        super().close()
        if self._owned:
            self._owned = False
            os.close(self._descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            data = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - see `Rendering`
            return
        # A full disk, a pipe that nobody reads: there is nowhere to tell of it.
        with suppress(OSError):
            while data:
                data = data[os.write(self._descriptor, data) :]


def configure(process: str, *, format: Format = "json", level: Level = "info", descriptor: int = 2) -> None:
    """Makes every record of this process a line, to stderr. Called again it replaces what it made. process: the name
    of the part, as `millrace logs` knows it."""
    handler = Lines(descriptor)
    handler.setFormatter(formatter(process, format))
    root = logging.getLogger()
    for earlier in root.handlers[:]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    # Said for themselves, not by what they inherit: a library that sets its own level is not left to it.
    for name in CHATTY:
        logging.getLogger(name).setLevel(
            LEVELS["debug" if level == "debug" else "error" if level == "error" else "warning"]
        )
    logging.captureWarnings(True)


def formatter(process: str, format: Format = "json") -> logging.Formatter:
    """What makes lines of records, for a handler."""
    stdlib = _structlog()
    import structlog

    host = socket.gethostname()
    before: list[Any] = [
        _keep_event,
        stdlib.ExtraAdder(),
        partial(_about, process, host),
        _of_celery,
        structlog.processors.format_exc_info,
        mask_secrets,
        _tidy,
    ]
    inner = stdlib.ProcessorFormatter(
        foreign_pre_chain=before,
        processors=[stdlib.ProcessorFormatter.remove_processors_meta, _as_json if format == "json" else _as_text],
    )
    return Rendering(inner, process)


def _structlog() -> Any:
    """structlog imports Rich where it is there, for a development's console that is not used here: most of its import,
    and 10 MB of every process."""
    left_out = "rich" not in sys.modules
    if left_out:
        sys.modules["rich"] = None  # type: ignore[assignment] # how Python says: it cannot be imported
    try:
        from structlog import stdlib
    finally:
        if left_out:
            sys.modules.pop("rich", None)
    return stdlib


# Processors: each takes what a line will say, and returns it -------------------------------------------------------


def _keep_event(_: Any, __: str, fields: Fields) -> Fields:
    """What came in with `extra` may be called so too."""
    event = fields.pop("event")
    return {**fields, "_event": event}


def _about(process: str, host: str, _: Any, __: str, fields: Fields) -> Fields:
    record: logging.LogRecord = fields["_record"]
    told = {
        "time": _time(record),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": fields.pop("_event"),
        "process": process,
        "host": host,
        "pid": os.getpid(),
    }
    for key, value in observe.context().items():
        told[key] = value.split() if key in LISTS else value
    # What came in with `extra` may name nothing that the line itself says.
    return {**told, **{key if key not in FIRST else f"{key}_": value for key, value in fields.items()}}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


def _of_celery(_: Any, __: str, fields: Fields) -> Fields:
    """Celery adds everything that it knows of a task, its result among it; its name and id are what is wanted."""
    data = fields.get("data")
    if isinstance(data, Mapping) and str(fields["logger"]).startswith("celery."):
        del fields["data"]
        for key, name in (("task", "name"), ("task_id", "id")):
            if data.get(name):
                fields.setdefault(key, data[name])
    return fields


def mask_secrets(_: Any, __: str, fields: Fields) -> Fields:
    """Passwords in URLs, keys and tokens, wherever they are: in the words, in an exception, in a field of that name."""
    return {key: _masked(key, value) for key, value in fields.items()}


def _masked(key: str, value: Any, depth: int = 0) -> Any:
    if value is None or value == "" or isinstance(value, bool) or key.startswith("_"):
        return value
    if _is_secret(key):
        return _MASK
    if isinstance(value, int | float):
        return value
    if depth < 4 and isinstance(value, Mapping):
        return {str(name): _masked(str(name), inner, depth + 1) for name, inner in value.items()}
    if depth < 4 and isinstance(value, list | tuple | set | frozenset):
        return [_masked("", inner, depth + 1) for inner in value]
    return mask(str(value))


@lru_cache(maxsize=1_000)
def _is_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None


def mask(text: str) -> str:
    """A text without the secrets in it that can be told from their form."""
    if "://" in text:
        text = _IN_URL.sub(rf"\1:{_MASK}@", text)
    if "=" in text or ":" in text:
        text = _IN_TEXT.sub(rf"\1{_MASK}", text)
    return _KEYS.sub(_MASK, _BEARER.sub(rf"\1{_MASK}", text))


def _tidy(_: Any, __: str, fields: Fields) -> Fields:
    """Numbers that JSON has, and no line without end."""
    for key, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            fields[key] = str(value)
        elif isinstance(value, str) and len(value) > MOST_CHARACTERS:
            fields[key] = f"{value[:MOST_CHARACTERS]}... ({len(value):,} characters)"
    return fields


def _as_json(_: Any, __: str, fields: Fields) -> str:
    return json.dumps(dict(fields), ensure_ascii=False, default=str)


def _as_text(_: Any, __: str, fields: Fields) -> str:
    return for_people(fields)
