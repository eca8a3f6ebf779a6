"""The child of an extractor with readers that misbehave, each a format that nothing but these tests can reach.

Run as a program: `python -P tests/hostile_extraction.py ...`; the rest is `pipeline.extract.isolation.child`.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pipeline import extract, media
from pipeline.extract import Extracted
from pipeline.extract.isolation import child

PROGRAM = (sys.executable, "-P", __file__)


def hostile(name: str) -> str:
    """The media type of a reader below."""
    return f"application/x-hostile-{name}"


def endless(data: bytes) -> str:
    while True:
        pass


def endless_in_c(data: bytes) -> str:
    """Holds the interpreter all the time, so that no other thread of the child gets a turn."""
    return str(re.match(r"(a|aa)+$", "a" * 200 + "b"))


def asleep(data: bytes) -> str:
    time.sleep(3600)
    return ""


def eats_memory(data: bytes) -> str:
    eaten = []
    while True:
        eaten.append(b"x" * 1_000_000)


def eats_memory_at_once(data: bytes) -> str:
    return str(len(b"x" * 1_000_000_000_000))


def segfault(data: bytes) -> str:
    return str(ctypes.string_at(0))


def abort(data: bytes) -> str:
    os.abort()


def leaves(data: bytes) -> str:
    os._exit(3)


def killed_at_first(data: bytes) -> str:
    """data: the path of a file that is made at the first time."""
    try:
        Path(data.decode()).touch(exist_ok=False)
    except FileExistsError:
        return "read at the second time"
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


class Panic(BaseException):
    """As a panic of a reader in Rust comes through."""


def panics(data: bytes) -> str:
    raise Panic("a panic")


def breaks(data: bytes) -> str:
    raise ZeroDivisionError("a bug")


def recursion(data: bytes) -> str:
    return recursion(data)


def chatters(data: bytes) -> str:
    for _ in range(1000):
        print("x" * 1000)  # noqa: T201
        print("y" * 1000, file=sys.stderr)  # noqa: T201
    return "said enough"


def process(data: bytes) -> str:
    return str(os.getpid())


def environment(data: bytes) -> str:
    return json.dumps(dict(os.environ))


def long(data: bytes) -> str:
    """data: how many characters."""
    return "x" * int(data)


_kept: list[bytes] = []


def hoards(data: bytes) -> str:
    """data: bytes to keep for ever. Takes long enough for somebody to look."""
    _kept.append(b"x" * int(data))
    time.sleep(0.2)
    return "kept"


READERS: tuple[Callable[[bytes], str], ...] = (
    endless, endless_in_c, asleep, eats_memory, eats_memory_at_once, segfault, abort, leaves, killed_at_first, panics,
    breaks, recursion, chatters, process, environment, long, hoards,
)  # fmt: skip


def install() -> None:
    formats, readers = cast(dict[str, Any], media.FORMATS), cast(dict[str, Any], extract._READERS)
    for read in READERS:
        formats[hostile(read.__name__)] = read.__name__

        def reader(data: bytes, kind: str, uri: str, read: Callable[[bytes], str] = read) -> Extracted:
            return Extracted(read(data), "plain", "")

        readers[read.__name__] = reader


if __name__ == "__main__":
    install()
    child.main()
