"""The program that reads documents in a process of its own: `python -P -m pipeline.extract.isolation.child ...`.

Documents come over stdin and go back over stdout, as frames (see `wire`). It holds nothing that is worth saving: it is
killed where a document takes too much, and it ends when its parent does, whatever it is doing then. It imports what
extraction needs and no more, and the heavy readers at the first document that needs them.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedReader, BufferedWriter

from pipeline.errors import ExtractionFailed, InvalidDocument
from pipeline.extract import extract
from pipeline.extract.isolation.wire import BrokenFrame, Header, pack, receive

_PR_SET_PDEATHSIG = 1
_MB = 1024 * 1024
# The parent's limits come first; these are for what happens between two looks of it, or while it is stopped.
_DATA_FACTOR = 2
_DATA_EXTRA = 512 * _MB
_CPU_FACTOR = 2
_CPU_EXTRA = 5  # seconds
_MAX_TOLD = 300  # characters of a foreign error that a person is shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Answers one document after the other until there are no more."""
    parser = argparse.ArgumentParser(prog="pipeline.extract.isolation.child")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--lifeline", type=int, required=True, help="a pipe that ends when the parent does")
    parser.add_argument("--cpu-seconds", type=float, required=True)
    parser.add_argument("--memory-mb", type=int, required=True)
    parser.add_argument("--max-text-bytes", type=int, required=True)
    options = parser.parse_args(arguments)
    requests, answers = _own_pipes()
    _end_with(options.parent, options.lifeline)
    _be_expendable(options.memory_mb)
    _send(answers, {"ready": True})
    while (frame := receive(requests)) is not None:
        header, data = frame
        _allow(options.cpu_seconds)
        try:
            answer, text = _read(header, data, options.max_text_bytes)
            _send(answers, {"id": header["id"], **answer}, text)
        except MemoryError:
            # What is left of this process is not to be relied on.
            _send(answers, {"id": header["id"], "error": "memory"})
            return
        except (BrokenFrame, TypeError, ValueError, RecursionError) as error:
            told = f"{header['uri']} cannot be read: its metadata is not to be written down ({error})"
            _send(answers, {"id": header["id"], "error": ExtractionFailed.__name__, "message": told[: _MAX_TOLD * 2]})


def _read(header: Header, data: bytes, max_text_bytes: int) -> tuple[Header, bytes]:
    """The answer for one document, and its text. Raises MemoryError."""
    uri = header["uri"]
    try:
        found = extract(data, header["media_type"], uri)
        text = found.text.encode("utf-8")
    except InvalidDocument as error:
        return {"error": type(error).__name__, "message": str(error)}, b""
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic in Rust is no Exception, and costs this document only
        traceback.print_exc(limit=-20)
        told = f"{type(error).__name__}: {error}"[:_MAX_TOLD]
        return {
            "error": ExtractionFailed.__name__,
            "message": f"{uri} cannot be read: its reader broke down on it ({told})",
        }, b""
    if len(text) > max_text_bytes:
        return {"error": "text"}, b""
    return {"markup": found.markup, "title": found.title, "metadata": found.metadata, "pages": found.pages}, text


def _own_pipes() -> tuple[BufferedReader, BufferedWriter]:
    """stdin and stdout for frames alone; a library that prints, prints to stderr."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(requests, "rb"), os.fdopen(answers, "wb")


def _send(answers: BufferedWriter, header: Header, payload: bytes = b"") -> None:
    try:
        answers.write(pack({**header, "payload_bytes": len(payload)}))
        answers.write(payload)
        answers.flush()
    except BrokenPipeError:
        os._exit(0)  # nobody is interested any more


def _end_with(parent: int, lifeline: int) -> None:
    """Ends this process when its parent has ended: told by the kernel (Linux), and by the end of a pipe (everywhere).

    A thread that waits for the pipe gets no turn while a reader in C holds the interpreter; the kernel needs no turn.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)

    def wait() -> None:
        while os.read(lifeline, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def _be_expendable(memory_mb: int) -> None:
    """Signals for the whole service are not for this process; where memory ends, it is the first to go."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, _DATA_FACTOR * memory_mb * _MB + _DATA_EXTRA)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as adjustment:
        adjustment.write("1000")


def _allow(cpu_seconds: float) -> None:
    """CPU time for one more document, for a parent that is stopped or gone unnoticed."""
    _limit(resource.RLIMIT_CPU, int(time.process_time() + _CPU_FACTOR * cpu_seconds + _CPU_EXTRA))


def _limit(kind: int, soft: int) -> None:
    with suppress(ValueError, OSError):  # a platform without it, or a lower limit that was set from outside
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main()
