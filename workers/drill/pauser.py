"""Holds processes still for a while, and lets all of them go on when whoever asked is gone: killed, crashed or done.

A program of its own (`python -I -S pauser.py`), which no Ctrl-C reaches. It reads lines: `stop SECONDS PID...` and
`go PID...`, and answers each with a line when it is done. What is not told to go on goes on after its seconds; at the
end of its input, everything does at once.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stopped: dict[int, float] = {}  # pid -> when it goes on
    buffered = b""
    while True:
        left = min(stopped.values(), default=time.monotonic() + 3600.0) - time.monotonic()
        if select.select([0], [], [], max(0.0, left))[0]:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                _obey(line.decode("ascii").split(), stopped)
                with suppress(OSError):  # nobody listens any more: the end of the input comes next
                    os.write(1, b"done\n")
        _go([pid for pid, until in stopped.items() if until <= time.monotonic()], stopped)
    _go(list(stopped), stopped)


def _obey(words: list[str], stopped: dict[int, float]) -> None:
    if words[0] == "go":
        _go([int(word) for word in words[1:]], stopped)
        return
    until = time.monotonic() + float(words[1])
    for pid in map(int, words[2:]):
        stopped[pid] = until  # before the signal: whatever happens in between, it goes on
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGSTOP)


def _go(pids: list[int], stopped: dict[int, float]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGCONT)
        stopped.pop(pid, None)


if __name__ == "__main__":
    main()
