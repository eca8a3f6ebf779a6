"""Finds and ends what a stack left behind when its supervisor was killed.

Never by a program's name: a process is a stray by its recorded pid and start time, by belonging to the process group
of a recorded part, by the stack's own name in its environment, or (Postgres) in its title.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

import psutil

from workers.embedded.home import is_same_process
from workers.embedded.postgres import cluster_processes
from workers.programs import STACK_VARIABLE

ORDERLY_SECONDS = 15.0
KILLED_SECONDS = 10.0


def end_strays(stack: str, parts: list[dict[str, Any]]) -> list[int]:
    """Ends every process of the stack named `stack`; for the holder of its lock. Returns the pids it found.

    `parts` are those of the run file: `{"name", "pid", "started", "stop", "children": [{"pid", "started"}]}`.
    """
    recorded = [part for part in parts if is_same_process(part.get("pid"), part.get("started"))]
    found = {process.pid for process in find_strays(stack, parts)}
    servers = []
    for part in recorded:
        with suppress(psutil.Error, ValueError):
            process = psutil.Process(part["pid"])
            process.send_signal(signal.Signals(part["stop"]))
            process.send_signal(signal.SIGCONT)  # a stopped process would not see it
            servers.append(process)
    psutil.wait_procs(servers, timeout=ORDERLY_SECONDS)
    left = find_strays(stack, parts)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=KILLED_SECONDS)
    return sorted(found)


def find_strays(stack: str, parts: list[dict[str, Any]]) -> list[psutil.Process]:
    """The processes of a stack that run now, ourselves and our ancestors excepted."""
    entries = [entry for part in parts for entry in (part, *part.get("children", ()))]
    pids = {entry["pid"] for entry in entries if is_same_process(entry.get("pid"), entry.get("started"))}
    pids |= {process.pid for process in cluster_processes(stack)}
    # The number of a process group is given to nobody else while a member lives, unless its leader is somebody new.
    groups = {part["pid"] for part in parts if not psutil.pid_exists(part["pid"]) or part["pid"] in pids}
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in ours:
            continue
        with suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.pid in pids or os.getpgid(process.pid) in groups or _is_marked(process, stack):
                found.append(process)
    return found


def _is_marked(process: psutil.Process, stack: str) -> bool:
    try:
        return process.environ().get(STACK_VARIABLE) == stack
    except (psutil.Error, OSError):
        return False
